#!/usr/bin/env python3
# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Breaks a put off as soon as a part of it is durable, and goes on there: python resume.py TOPIC FILE

Parts are 16 MiB at first, so a smaller file begins at 0 again.
"""

import os
import queue
import sys
import uuid

from common import Servers
from memq.v1 import file_pb2_grpc
from put import put, requests

# A part is acknowledged when it is whole.
FIRST_PART_BYTES = 16 << 20


def break_off(servers: Servers, topic: str, path: str, name: str, upload_id: bytes) -> int:
    """Sends the file until something is durable, then cancels; how much that was."""
    begin: queue.Queue = queue.Queue()

    def all_but_the_finish():
        for request in requests(topic, name, path, upload_id, begin.get):
            if request.HasField("finish"):
                # Held back: the stream stays open until it is cancelled.
                begin.get()
                return
            yield request

    call = file_pb2_grpc.FileServiceStub(servers.channel).Put(all_but_the_finish())
    durable = 0
    for answer in call:
        match answer.WhichOneof("part"):
            case "begin_at":
                begin.put(answer.begin_at)
                if os.path.getsize(path) < FIRST_PART_BYTES:
                    break
            case "durable_below" if answer.durable_below > 0:
                durable = answer.durable_below
                break
    call.cancel()
    begin.put(None)
    return durable


if __name__ == "__main__":
    topic, path = sys.argv[1:3]
    name = os.path.basename(path)
    servers = Servers()
    upload_id = uuid.uuid4().bytes
    print(f"broken off, {break_off(servers, topic, path, name, upload_id)} bytes are durable")
    published = put(servers, topic, path, name, upload_id)
    print(f"published {published.name}, {published.size} bytes, sha256 {published.sha256.hex()}")
