# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""What the clients of a run have in common: their options, their end, and what they tell the run."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

from .api import Api


def options(*more: tuple[str, dict]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--servers", required=True, help="addresses of ingests, separated by commas")
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--stubs", type=Path, required=True)
    parser.add_argument("--partitions", default="", help="TOPIC/NUMBER, separated by commas")
    for name, settings in more:
        parser.add_argument(name, **settings)
    found = parser.parse_args()
    found.servers = found.servers.split(",")
    found.partitions = [p for p in found.partitions.split(",") if p]
    found.api = Api(found.stubs)
    return found


def split(partition: str) -> tuple[str, int]:
    topic, number = partition.rsplit("/", 1)
    return topic, int(number)


def tell(**what) -> None:
    """One line to the run."""
    print(json.dumps(what, separators=(",", ":")), flush=True)


def run(main, *arguments) -> None:
    """Runs main(stop, …) until it returns; SIGTERM sets `stop`."""

    async def whole():
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        await main(stop, *arguments)

    asyncio.run(whole())
    sys.stdout.flush()
