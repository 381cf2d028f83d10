# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A member of a consumer group, one life after the other: `memq consume --group`, which leaves, is killed or stands still for longer than its
session, and begins again. With `--last` one life that ends when the group has read everything. `--watch` writes down what the group commits."""

from __future__ import annotations

import asyncio
import random
import signal
import time

import grpc

from .api import channel
from .client import options, run, split, tell
from .history import Writer
from .sdk import END_SECONDS, collect

SESSION_SECONDS = 6
LIFE_SECONDS = (3.0, 12.0)
# Below the session timeout and above.
PAUSE_SECONDS = (1.0, 10.0)
LAST_SECONDS = 120.0
ASK_SECONDS = 0.3


class Member:
    def __init__(self, given, history: Writer):
        self.given, self.history = given, history
        self.topic = split(given.partitions[0])[0]
        self.random = random.Random(given.seed)
        self.read = self.lives = 0

    async def begin(self, *more) -> asyncio.subprocess.Process:
        self.lives += 1
        self.history.put(e="life")
        return await asyncio.create_subprocess_exec(
            self.given.memq, "consume", self.topic, "--group", self.given.group, "--from", "beginning", "--format", "%p %o %v",
            "--session-timeout", f"{SESSION_SECONDS}s", "--connect-timeout", "60", "--server", ",".join(self.given.servers), *more,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, limit=1 << 20)

    def count(self, records: int) -> None:
        self.read += records
        tell(read=self.read, lives=self.lives)

    async def end(self, process, collecting, by: int) -> None:
        """Its end by a signal, and the last of what it printed."""
        process.send_signal(by)
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()
        await collecting

    async def wait(self, process, stop: asyncio.Event, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not stop.is_set() and process.returncode is None and time.monotonic() < end:
            try:
                await asyncio.wait_for(stop.wait(), 0.1)
            except asyncio.TimeoutError:
                pass

    async def lead_lives(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            process = await self.begin()
            collecting = asyncio.ensure_future(collect(process.stdout, self.topic, self.history, self.count))
            await self.wait(process, stop, self.random.uniform(*LIFE_SECONDS))
            fate = self.random.choice(("leaves", "leaves", "is killed", "stands still"))
            if fate == "stands still" and not stop.is_set() and process.returncode is None:
                process.send_signal(signal.SIGSTOP)
                await self.wait(process, stop, self.random.uniform(*PAUSE_SECONDS))
                process.send_signal(signal.SIGCONT)
                # It learns that others have its partitions, and goes on as a member.
                await self.wait(process, stop, self.random.uniform(*LIFE_SECONDS))
            if (status := process.returncode) is not None:
                await collecting
                self.history.put(e="ended", status=status)
                raise SystemExit(f"memq consume --group ended by itself with status {status}")
            await self.end(process, collecting, signal.SIGKILL if fate == "is killed" and not stop.is_set() else signal.SIGINT)
            self.history.put(e="ended", by=fate)

    async def read_last(self) -> None:
        """Until nothing is left; a member that was killed keeps its partitions until its session is over."""
        process = await self.begin("--until-end")
        collecting = asyncio.ensure_future(collect(process.stdout, self.topic, self.history, self.count))
        try:
            await asyncio.wait_for(process.wait(), LAST_SECONDS)
        except asyncio.TimeoutError:
            await self.end(process, collecting, signal.SIGKILL)
            raise SystemExit(f"the group did not come to the end within {LAST_SECONDS:.0f} s") from None
        await collecting
        self.history.put(e="ended", status=process.returncode)
        if process.returncode != 0:
            raise SystemExit(f"the group's last member ended with status {process.returncode}")

    async def watch(self, stop: asyncio.Event) -> None:
        api, known, server = self.given.api, {}, 0
        while not stop.is_set():
            try:
                async with channel(self.given.servers[server % len(self.given.servers)]) as opened:
                    stub = api.ingest_pb2_grpc.IngestServiceStub(opened)
                    while not stop.is_set():
                        began = time.monotonic_ns()
                        answer = await stub.FetchOffsets(api.metadata_pb2.FetchOffsetsRequest(group=self.given.group), timeout=3)
                        for row in answer.offsets:
                            partition = f"{self.topic}/{row.topic_partition.partition}"
                            if known.get(partition) != row.offset:
                                known[partition] = row.offset
                                self.history.put(e="committed", p=partition, o=row.offset, since=began)
                        tell(committed=known)
                        await asyncio.sleep(ASK_SECONDS)
            except (grpc.RpcError, asyncio.TimeoutError):
                server += 1
                await asyncio.sleep(0.2)


async def main(stop: asyncio.Event, given) -> None:
    history = Writer(given.history, kind="member", group=given.group, partitions=given.partitions, client="memq")
    member = Member(given, history)
    try:
        if given.last:
            await member.read_last()
        else:
            watching = asyncio.ensure_future(member.watch(stop)) if given.watch else None
            await member.lead_lives(stop)
            if watching:
                await watching
    finally:
        history.close()


if __name__ == "__main__":
    given = options(
        ("--memq", {"required": True}), ("--group", {"required": True}), ("--seed", {"type": int, "default": 0}),
        ("--watch", {"action": "store_true"}), ("--last", {"action": "store_true"}),
    )
    run(main, given)
