#!/usr/bin/env python3
# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Puts a file, and goes on where it was when the connection breaks: python put.py TOPIC FILE [NAME [UPLOAD-ID]]

The upload id, chosen by the client, is the put: whoever starts with the same one is told where to go on, on this server or another.
With UPLOAD-ID (32 hexadecimal digits) a put of an earlier run is resumed.
"""

import hashlib
import os
import queue
import sys
import uuid

from common import Servers, crc32c
from memq.v1 import file_pb2, file_pb2_grpc

CHUNK_BYTES = 256 << 10


def requests(topic, name, path, upload_id, begin_at):
    """A start, chunks from where the server wants them, a finish with the digest of the whole."""
    size = os.path.getsize(path)
    yield file_pb2.PutRequest(
        start=file_pb2.PutStart(topic=topic, name=name, upload_id=upload_id, size=size)
    )
    # The server answers the start with `begin_at`; nothing may be sent before that is known.
    at = begin_at()
    if at is None:
        return
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        read = 0
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            # What is durable already need not be sent.
            fresh = chunk[max(0, at - read) :]
            read += len(chunk)
            if fresh:
                header = file_pb2.PutChunk(offset=read - len(fresh), crc32c=crc32c(fresh))
                yield file_pb2.PutRequest(chunk_header=header, chunk=fresh)
    yield file_pb2.PutRequest(finish=file_pb2.PutFinish(sha256=digest.digest()))


def put(servers: Servers, topic: str, path: str, name: str, upload_id: bytes, progress=print):
    """The published file."""

    def once(channel):
        # Where to begin, told by the answers to the thread that sends the requests; None: nowhere, the stream is broken.
        begin: queue.Queue = queue.Queue()
        try:
            call = file_pb2_grpc.FileServiceStub(channel).Put(
                requests(topic, name, path, upload_id, begin.get)
            )
            for answer in call:
                match answer.WhichOneof("part"):
                    case "begin_at":
                        progress(f"begins at {answer.begin_at}")
                        begin.put(answer.begin_at)
                    case "durable_below":
                        progress(f"durable below {answer.durable_below}")
                    case "published":
                        return answer.published
            raise RuntimeError("the stream ended without a result")
        finally:
            begin.put(None)

    return servers.retrying(once)


if __name__ == "__main__":
    topic, path = sys.argv[1:3]
    name = sys.argv[3] if len(sys.argv) > 3 else os.path.basename(path)
    upload_id = bytes.fromhex(sys.argv[4]) if len(sys.argv) > 4 else uuid.uuid4().bytes
    print(f"upload id {upload_id.hex()}", flush=True)
    published = put(Servers(), topic, path, name, upload_id, lambda text: print(text, flush=True))
    print(f"published {published.name}, {published.size} bytes, sha256 {published.sha256.hex()}")
