# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Histories: what each client did and saw, one JSON object per line, one file per client.

Times (`t`) are nanoseconds of the machine's monotonic clock, so those of all clients compare. `p` is "topic/partition". A record is
told by (producer, partition, n): its producer's number and its place, from 0, among all that the producer sends to the partition.
The first line of a file says whose it is (`kind`). docs/operations/chaos.md lists every event.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

now_ns = time.monotonic_ns


def value_of(producer: int, n: int) -> bytes:
    """A record's value: its name and a filler whose length depends on it (up to 400 bytes)."""
    return b"%d:%d:" % (producer, n) + b"x" * (n * 7919 % 401)


def name_of(value: bytes) -> tuple[int, int] | None:
    """(producer, n) of a value, nil when it is none that value_of makes."""
    parts = value.split(b":", 2)
    if len(parts) != 3 or not parts[0].isdigit() or not parts[1].isdigit():
        return None
    producer, n = int(parts[0]), int(parts[1])
    return (producer, n) if value == value_of(producer, n) else None


class Runs:
    """Records in the order of their offsets, put together as [producer, n, count, leader epoch]."""

    def __init__(self):
        self.rows: list[list[int]] = []

    def add(self, producer: int, n: int, epoch: int) -> None:
        if self.rows:
            last = self.rows[-1]
            if last[0] == producer and last[1] + last[2] == n and last[3] == epoch:
                last[2] += 1
                return
        self.rows.append([producer, n, 1, epoch])


class Writer:
    """Appends events to a file. A line is whole or, after a kill of its process, the last one."""

    def __init__(self, path: Path, **header):
        # Line by line in the kernel: what was written outlives this process.
        self.file = open(path, "w", buffering=1)
        self.put(e="begin", **header)

    def put(self, **event) -> None:
        event.setdefault("t", now_ns())
        self.file.write(json.dumps(event, separators=(",", ":")) + "\n")

    def close(self) -> None:
        self.file.close()


@dataclass(frozen=True)
class Place:
    """Where in the histories something stands."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def read(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, event) of a file, one at a time. A last line that was cut short is left out."""
    with open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield number, json.loads(line)
            except ValueError:
                raise ValueError(f"{path.name}:{number} is not an event") from None
