#!/usr/bin/env python3
# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Gets a file or a range of it: python get.py TOPIC NAME DESTINATION [OFFSET LENGTH]"""

import hashlib
import sys

from common import Servers, crc32c
from memq.v1 import file_pb2, file_pb2_grpc


def get(servers: Servers, topic: str, name: str, out, offset: int = 0, length: int = 0):
    """Writes the bytes to `out`; the file's description. Each chunk is checked, and the digest when it is the whole file."""
    request = file_pb2.GetRequest(topic=topic, name=name, offset=offset, length=length)
    digest = hashlib.sha256()
    file = None
    for part in file_pb2_grpc.FileServiceStub(servers.channel).Get(request):
        if part.HasField("file"):
            file = part.file
        if crc32c(part.chunk) != part.crc32c:
            raise ValueError(f"the chunk at {part.offset} was damaged on its way")
        digest.update(part.chunk)
        out.write(part.chunk)
    if offset == 0 and length == 0 and digest.digest() != file.sha256:
        raise ValueError("the file has not the digest it was published with")
    return file


if __name__ == "__main__":
    topic, name, destination = sys.argv[1:4]
    place = [int(text) for text in sys.argv[4:6]]
    with open(destination, "wb") as out:
        file = get(Servers(), topic, name, out, *place)
    print(f"{file.name}, {file.size} bytes, version {file.version}")
