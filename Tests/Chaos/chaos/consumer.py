# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A consumer that speaks gRPC itself and writes down every reply: from the beginning on, in sessions that begin anywhere
(`--sessions`), or once to the end when all is over (`--final`)."""

from __future__ import annotations

import asyncio
import random
import time

import grpc

from . import batches
from .api import channel
from .client import options, run, split, tell
from .history import Runs, Writer, name_of

WAIT_MS = 500
ANSWER_SECONDS = 10.0
SESSION_SECONDS = 4.0


class Consumer:
    def __init__(self, given, history: Writer):
        self.given, self.history = given, history
        self.topics: dict[str, list[int]] = {}
        for partition in given.partitions:
            topic, number = split(partition)
            self.topics.setdefault(topic, []).append(number)
        self.position: dict[str, int] = {}
        self.watermark: dict[str, int] = {}
        # Leader epoch of the record before the position: the server is to see that nothing was lost before it.
        self.epoch: dict[str, int] = {}
        self.server = 0
        self.random = random.Random(given.seed)
        self.read = 0

    def start(self, partition: str, offset: int) -> None:
        self.position[partition] = offset
        self.watermark.pop(partition, None)
        self.epoch.pop(partition, None)
        self.history.put(e="start", p=partition, o=offset)

    async def fetch(self, stub, topic: str, numbers: list[int]) -> None:
        api = self.given.api
        request = api.ingest_pb2.FetchRequest(
            topic=topic, max_bytes=1 << 20, wait_max_ms=WAIT_MS,
            positions=[self.place(f"{topic}/{n}", n) for n in numbers],
        )
        async for part in stub.Fetch(request, timeout=ANSWER_SECONDS):
            self.take(f"{topic}/{part.partition}", part)

    def place(self, partition: str, number: int):
        at = self.given.api.ingest_pb2.FetchPosition
        return at(partition=number, offset=self.position[partition], last_epoch=self.epoch.get(partition))

    def take(self, partition: str, part) -> None:
        position = self.position[partition]
        if part.HasField("error"):
            code = self.given.api.code(part.error)
            if code in ("OFFSET_OUT_OF_RANGE", "LOG_TRUNCATED"):
                self.history.put(e="range", p=partition, o=position, limit=part.error.limit, why=code)
            else:
                self.history.put(e="error", p=partition, why=code)
            return
        runs, first, last = Runs(), None, position
        for offset, epoch, value in batches.records(part.batches):
            if offset < position:
                continue
            name = name_of(value)
            if name is None:
                self.history.put(e="error", p=partition, why=f"offset {offset} holds {value[:60]!r}")
                name = (-2, 0)
            if first is None:
                first = offset
            elif offset != last:
                # A gap inside a reply: an event of its own, so that the checker sees where.
                self.history.put(e="read", p=partition, o=first, r=runs.rows)
                runs, first = Runs(), offset
            runs.add(*name, epoch)
            last = offset + 1
            self.read += 1
        if runs.rows or part.high_watermark != self.watermark.get(partition):
            self.history.put(
                e="read", p=partition, o=position if first is None else first, h=part.high_watermark, r=runs.rows
            )
        self.watermark[partition] = part.high_watermark
        # Where the server says to go on: what it leaves out shows as a gap.
        self.position[partition] = max(part.next_offset, last) if runs.rows else part.next_offset
        if part.HasField("last_epoch"):
            self.epoch[partition] = part.last_epoch
        else:
            self.epoch.pop(partition, None)

    async def calls(self, stop: asyncio.Event, one) -> None:
        """Calls one(stub, channel) again and again, at the other ingest after a failure, until it gives true."""
        while not stop.is_set():
            try:
                async with channel(self.given.servers[self.server % len(self.given.servers)]) as opened:
                    stub = self.given.api.ingest_pb2_grpc.IngestServiceStub(opened)
                    while not stop.is_set():
                        if await one(stub, opened):
                            return
            except (grpc.RpcError, asyncio.TimeoutError) as error:
                code = error.code().name if isinstance(error, grpc.RpcError) else "TIMEOUT"
                self.history.put(e="error", why=code)
                self.server += 1
                await asyncio.sleep(0.1)

    async def follow(self, stop: asyncio.Event, topic: str, numbers: list[int]) -> None:
        for number in numbers:
            self.start(f"{topic}/{number}", 0)
        until = time.monotonic() + SESSION_SECONDS

        async def one(stub, opened):
            nonlocal until
            if self.given.sessions and time.monotonic() > until:
                for number in numbers:
                    partition = f"{topic}/{number}"
                    self.start(partition, self.random.randint(0, self.position[partition]))
                until = time.monotonic() + SESSION_SECONDS
                self.server += self.random.randint(0, 1)
                return False
            before = self.read
            await self.fetch(stub, topic, numbers)
            if self.read == before:
                await asyncio.sleep(0.02)
            return False

        while not stop.is_set():
            await self.calls(stop, one)

    async def to_the_end(self, stop: asyncio.Event, topic: str, number: int) -> None:
        """Everything, up to a watermark that two questions agree on."""
        api, partition = self.given.api, f"{topic}/{number}"
        self.start(partition, 0)
        end = None

        async def one(stub, opened):
            nonlocal end
            answer = await stub.Offsets(
                api.ingest_pb2.OffsetsRequest(topic=topic, partitions=[number], spec=api.replication_pb2.OFFSET_SPEC_LATEST),
                timeout=ANSWER_SECONDS,
            )
            (row,) = answer.offsets
            if row.HasField("error"):
                await asyncio.sleep(0.1)
                return False
            while self.position[partition] < row.offset:
                before = self.position[partition]
                await self.fetch(stub, topic, [number])
                if self.position[partition] == before:
                    await asyncio.sleep(0.1)
            if end != row.offset:
                end = row.offset
                return False
            described = await api.metadata_pb2_grpc.MetadataServiceStub(opened).DescribeTopic(
                api.metadata_pb2.DescribeTopicRequest(name=topic), timeout=ANSWER_SECONDS
            )
            epoch = described.partitions[number].leader_epoch
            self.history.put(e="end", p=partition, o=self.position[partition], epoch=epoch)
            return True

        await self.calls(stop, one)

    async def main(self, stop: asyncio.Event) -> None:
        async def report():
            while True:
                tell(read=self.read)
                await asyncio.sleep(0.25)

        reporting = asyncio.ensure_future(report())
        if self.given.final:
            await asyncio.gather(*(self.to_the_end(stop, t, n) for t, numbers in self.topics.items() for n in numbers))
        else:
            await asyncio.gather(*(self.follow(stop, t, numbers) for t, numbers in self.topics.items()))
        reporting.cancel()
        tell(read=self.read)


async def main(stop: asyncio.Event, given) -> None:
    history = Writer(given.history, kind="final" if given.final else "consumer", client="grpcio")
    await Consumer(given, history).main(stop)
    history.close()


if __name__ == "__main__":
    given = options(
        ("--final", {"action": "store_true"}), ("--sessions", {"action": "store_true"}),
        ("--seed", {"type": int, "default": 0}),
    )
    run(main, given)
