#!/usr/bin/env python3
# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Prints the values of a partition, one per line: python consume.py TOPIC [PARTITION [OFFSET [COUNT]]]

Without COUNT it ends at the high watermark: at what is committed now.
"""

import sys

from common import MemQError, Servers
from memq.v1 import ingest_pb2, ingest_pb2_grpc


def consume(servers: Servers, topic: str, partition: int = 0, offset: int = 0, count: int | None = None):
    """Yields records, in order, without a gap. Raises LOG_TRUNCATED when an unclean election lost records that it has read."""
    epoch = None
    while count is None or count > 0:

        def fetch(channel):
            request = ingest_pb2.FetchRequest(
                topic=topic,
                # The epoch of what was read last: the server compares it with the log's.
                positions=[ingest_pb2.FetchPosition(partition=partition, offset=offset, last_epoch=epoch)],
                # A long poll: answers as soon as something is there. Records decoded for us; an SDK takes batches.
                wait_max_ms=1_000,
                format=ingest_pb2.FETCH_FORMAT_RECORDS,
            )
            parts = list(ingest_pb2_grpc.IngestServiceStub(channel).Fetch(request))
            for part in parts:
                if part.HasField("error"):
                    raise MemQError(part.error)
            return parts

        end = offset
        for part in servers.retrying(fetch):
            for record in part.records:
                yield record
                if count is not None:
                    count -= 1
                    if count == 0:
                        return
            offset = part.next_offset
            epoch = part.last_epoch if part.HasField("last_epoch") else None
            end = part.high_watermark
        if count is None and offset >= end:
            return


if __name__ == "__main__":
    topic = sys.argv[1]
    numbers = [int(text) for text in sys.argv[2:]]
    for record in consume(Servers(), topic, *numbers):
        sys.stdout.buffer.write(record.value + b"\n")
