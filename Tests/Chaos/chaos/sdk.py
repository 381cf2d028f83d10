# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""The Swift SDK as producer and consumer: `memq produce` and `memq consume`, with their histories written here."""

from __future__ import annotations

import asyncio
import signal
import time

from .client import options, run, split, tell
from .history import Runs, Writer, name_of, value_of

# What is sent and not acknowledged, in records.
WAITING_MAX = 2_000
DELIVERY_SECONDS = 300
# From SIGINT on.
END_SECONDS = 20


async def produce(stop: asyncio.Event, given) -> None:
    (partition,) = given.partitions
    topic, number = split(partition)
    history = Writer(
        given.history, kind="producer", producer=given.number, idempotent=given.idempotent, acks=given.acks, client="memq"
    )
    command = [
        given.memq, "produce", topic, "--partition", str(number), "--acks", given.acks, "--print-acked", "--connect-timeout", "60",
        "--delivery-timeout", str(DELIVERY_SECONDS), "--server", ",".join(given.servers),
    ]
    if not given.idempotent:
        command.append("--no-idempotence")
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 20
    )
    waiting: dict[int, int] = {}
    acked = next_n = 0

    async def read():
        nonlocal acked
        while line := await process.stdout.readline():
            name = name_of(line.rstrip(b"\n"))
            first = name[1] - name[1] % given.records
            waiting[first] -= 1
            acked += 1
            if not waiting[first]:
                del waiting[first]
                history.put(e="ack", p=partition, n=first, o=-1)

    reading = asyncio.ensure_future(read())
    told = 0.0
    while not stop.is_set() and process.returncode is None:
        if len(waiting) * given.records < WAITING_MAX:
            waiting[next_n] = given.records
            history.put(e="send", p=partition, n=next_n, c=given.records)
            process.stdin.writelines(value_of(given.number, next_n + k) + b"\n" for k in range(given.records))
            next_n += given.records
            try:
                await process.stdin.drain()
            except ConnectionError:
                break
        if time.monotonic() > told + 0.25:
            tell(acked={partition: acked})
            told = time.monotonic()
        try:
            await asyncio.wait_for(stop.wait(), given.interval)
        except asyncio.TimeoutError:
            pass
    process.stdin.close()
    status = await process.wait()
    await reading
    history.put(e="ended", status=status, open=len(waiting))
    tell(acked={partition: acked}, status=status)
    history.close()


async def collect(lines: asyncio.StreamReader, topic: str, history: Writer, count) -> None:
    """Writes down what `memq consume --format "%p %o %v"` prints, and calls count(records) for it."""
    runs, first, at, last = Runs(), 0, None, 0

    def put():
        nonlocal runs
        if runs.rows:
            history.put(e="read", p=f"{topic}/{at}", o=first, r=runs.rows)
            count(sum(row[2] for row in runs.rows))
        runs = Runs()

    line = await lines.readline()
    # The last line of a process that was killed may be cut short: it was not printed.
    while line.endswith(b"\n"):
        number, offset, value = line.rstrip(b"\n").split(b" ", 2)
        number, offset = int(number), int(offset)
        if number != at or offset != last:
            put()
            at, first = number, offset
        # The command line shows no leader epochs: -1.
        runs.add(*(name_of(value) or (-2, 0)), -1)
        last = offset + 1
        try:
            line = await asyncio.wait_for(asyncio.shield(pending := asyncio.ensure_future(lines.readline())), 0.05)
        except asyncio.TimeoutError:
            put()
            first = last
            line = await pending
    put()


async def consume(stop: asyncio.Event, given) -> None:
    topic = split(given.partitions[0])[0]
    numbers = [split(partition)[1] for partition in given.partitions]
    history = Writer(given.history, kind="consumer", client="memq")
    command = [
        given.memq, "consume", topic, "--from", "beginning", "--format", "%p %o %v", "--connect-timeout", "60",
        "--server", ",".join(given.servers),
    ]
    for number in numbers:
        command += ["--partition", str(number)]
    read = 0

    def count(records: int):
        nonlocal read
        read += records

    for partition in given.partitions:
        history.put(e="start", p=partition, o=0)
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL,
                                                   stdout=asyncio.subprocess.PIPE, limit=1 << 20)
    collecting = asyncio.ensure_future(collect(process.stdout, topic, history, count))
    while not stop.is_set() and process.returncode is None:
        tell(read=read)
        try:
            await asyncio.wait_for(stop.wait(), 0.25)
        except asyncio.TimeoutError:
            pass
    early = process.returncode
    if early is None:
        process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()
    await collecting
    history.put(e="ended", status=early)
    tell(read=read, status=early or 0)
    history.close()


if __name__ == "__main__":
    given = options(
        ("--memq", {"required": True}), ("--number", {"type": int}), ("--acks", {"choices": ["all", "1"], "default": "all"}),
        ("--idempotent", {"action": "store_true"}), ("--records", {"type": int, "default": 5}),
        ("--interval", {"type": float, "default": 0.05}), ("--consume", {"action": "store_true"}),
    )
    run(consume if given.consume else produce, given)
