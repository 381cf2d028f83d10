#!/usr/bin/env python3
# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Each line of standard input becomes a record: python produce.py TOPIC [PARTITION]

A batch that is not acknowledged is sent again with the same sequence number, to another server when one is gone: with a
producer id it is appended once, however often it comes.
"""

import sys

from common import MemQError, Servers
from memq.v1 import ingest_pb2, ingest_pb2_grpc, metadata_pb2, replication_pb2, types_pb2

BATCH_RECORDS = 500


def produce(servers: Servers, topic: str, partition: int, lines) -> int:
    producer = servers.retrying(
        lambda channel: ingest_pb2_grpc.IngestServiceStub(channel).InitProducer(
            metadata_pb2.InitProducerRequest()
        )
    )
    sequence = 0
    batch = []

    def send():
        request = ingest_pb2.ProduceRequest(
            request_id=1,
            topic=topic,
            partition=partition,
            acks=replication_pb2.ACKS_ALL,
            producer_id=producer.producer_id,
            producer_epoch=producer.producer_epoch,
            base_sequence=sequence,
            records=[types_pb2.Record(value=line) for line in batch],
        )

        def once(channel):
            # A stream may carry many requests, and a fast producer keeps several under way; one at a time is easier to read.
            (answer,) = ingest_pb2_grpc.IngestServiceStub(channel).Produce(iter([request]))
            if answer.HasField("error"):
                raise MemQError(answer.error)
            return answer

        answer = servers.retrying(once)
        print(f"{topic}/{partition}: {len(batch)} records from offset {answer.base_offset}")
        batch.clear()
        return answer.record_count

    for line in lines:
        batch.append(line)
        if len(batch) == BATCH_RECORDS:
            sequence += send()
    if batch:
        sequence += send()
    return sequence


if __name__ == "__main__":
    topic = sys.argv[1]
    partition = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    count = produce(Servers(), topic, partition, (line.rstrip(b"\n") for line in sys.stdin.buffer))
    print(f"{count} records acknowledged")
