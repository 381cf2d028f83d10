#!/usr/bin/env python3
# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Asks for what is not there and shows what comes back: python typed_error.py

An error is more than a status and a sentence: a code for the program, the thing concerned, limit and actual value, and whether the same
call may succeed later.
"""

import grpc

from common import MemQError, Servers
from memq.v1 import metadata_pb2, metadata_pb2_grpc


def show(what: str, call) -> None:
    try:
        call()
    except grpc.RpcError as error:
        reason = MemQError.of(error)
        if reason is None:
            raise
        print(f"{what}: {error.code().name}")
        print(f"  code       {reason.code}")
        print(f"  subject    {reason.subject}")
        print(f"  message    {reason.message}")
        print(f"  limit      {reason.limit}")
        print(f"  actual     {reason.actual}")
        print(f"  retriable  {reason.retriable}")


if __name__ == "__main__":
    metadata = metadata_pb2_grpc.MetadataServiceStub(Servers().channel)
    show(
        "a topic that is not there",
        lambda: metadata.DescribeTopic(metadata_pb2.DescribeTopicRequest(name="nowhere")),
    )
    show(
        "more replicas than nodes",
        lambda: metadata.CreateTopic(
            metadata_pb2.CreateTopicRequest(name="wide", partition_count=1, replication_factor=99)
        ),
    )
