#!/usr/bin/env python3
# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Waits for a record that does not come, but not for ever: python deadline.py TOPIC

The deadline travels with the call: the server ends its work, too.
"""

import sys
import time

import grpc

from common import Servers
from memq.v1 import ingest_pb2, ingest_pb2_grpc, replication_pb2

if __name__ == "__main__":
    ingest = ingest_pb2_grpc.IngestServiceStub(Servers().channel)
    latest = ingest.Offsets(
        ingest_pb2.OffsetsRequest(
            topic=sys.argv[1], partitions=[0], spec=replication_pb2.OFFSET_SPEC_LATEST
        )
    ).offsets[0]
    request = ingest_pb2.FetchRequest(
        topic=sys.argv[1],
        positions=[ingest_pb2.FetchPosition(partition=0, offset=latest.offset)],
        wait_max_ms=30_000,
    )
    began = time.monotonic()
    try:
        list(ingest.Fetch(request, timeout=0.5))
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
        print(f"{error.code().name} after {time.monotonic() - began:.1f} s")
    else:
        sys.exit("a record came, or the server did not wait")
