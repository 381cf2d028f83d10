# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Durable produce on one node against pwrite + fdatasync of the same bytes in groups of the same size, round by round.

One server with a fresh data folder; the producer waits for acks=all of every record. The floor writes as many bytes as the
round's record batches held, in pieces of the mean size of the server's group commits, into preallocated files on the same
disk, with an fdatasync after each. Needs release builds of memq (MEMQ_BIN) and of bench-produce:

    swift build -c release --product memq && swift build -c release --package-path Benchmarks --product bench-produce
    MEMQ_BIN=$PWD/.build/release .venv/bin/python Benchmarks/server/produce.py
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "Tests/Process"))
from harness import Server  # noqa: E402

MIB = 1 << 20
FILE_BYTES = 256 * MIB


def metric(server: Server, name: str) -> float:
    """The sum of a metric over its labels."""
    with urllib.request.urlopen(f"http://{server.admin}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")


class Floor:
    """Preallocated files, kept from round to round as a volume keeps its segments: a file written before is quicker to write."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = []

    def seconds(self, total: int, group: int) -> float:
        """For `total` bytes in groups; no file is made while the clock runs."""
        block = os.urandom(group)
        while len(self.files) * (FILE_BYTES // group * group) < total:
            descriptor = os.open(self.folder / f"floor-{len(self.files)}", os.O_RDWR | os.O_CREAT)
            os.posix_fallocate(descriptor, 0, FILE_BYTES)
            os.fsync(descriptor)
            self.files.append(descriptor)
        begun = time.monotonic()
        written = 0
        for descriptor in self.files:
            position = 0
            while position + group <= FILE_BYTES and written < total:
                os.pwrite(descriptor, block, position)
                os.fdatasync(descriptor)
                position += group
                written += group
        return (time.monotonic() - begun) * total / written


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=2048, help="bytes of values per round")
    parser.add_argument("--record-bytes", type=int, default=16384)
    parser.add_argument("--partitions", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--acks", choices=["0", "1", "all"], default="all")
    options = parser.parse_args()
    bench = ROOT / "Benchmarks/.build/release/bench-produce"
    folder = Path(tempfile.mkdtemp(prefix="memq-bench-"))
    rows = []
    floor = Floor(folder)
    try:
        # No uploads: they would share the disk with what is measured.
        with Server(folder / "data", environment={"MEMQ_UPLOAD_OBSERVE_INTERVAL": "60s"}) as server:
            for number in range(options.rounds):
                topic = f"bench-{number}"
                server.cli("topic", "create", topic, "--partitions", options.partitions)
                groups = metric(server, "memq_storage_groups_total")
                cpu = cpu_seconds(server.process.pid)
                appended = metric(server, "memq_replication_append_bytes_total")
                done = subprocess.run(
                    [bench, server.address, topic, str(options.mib), str(options.record_bytes), options.acks],
                    check=True, capture_output=True,
                )
                made = json.loads(done.stdout)
                cpu = cpu_seconds(server.process.pid) - cpu
                appended = metric(server, "memq_replication_append_bytes_total") - appended
                groups = metric(server, "memq_storage_groups_total") - groups
                group = max(4096, int(appended / groups) // 4096 * 4096)
                raw = floor.seconds(int(appended), group)
                gib = made["bytes"] / (1 << 30)
                rows.append((made["seconds"], raw, cpu / gib, made["cpu_seconds"] / gib, group))
                print(
                    f"round {number + 1}: produce {made['bytes'] / MIB / made['seconds']:.0f} MiB/s, "
                    f"floor {appended / MIB / raw:.0f} MiB/s, {groups:.0f} groups of {group >> 10} KiB",
                    flush=True,
                )
                server.cli("topic", "delete", topic)
            print(
                f"acks={options.acks}, {options.record_bytes} B records, {options.partitions} partitions, "
                f"medians of {options.rounds} rounds of {options.mib} MiB"
            )
            print(f"  produce          {options.mib / statistics.median(r[0] for r in rows):8.0f} MiB/s")
            print(f"  pwrite+fdatasync {options.mib / statistics.median(r[1] for r in rows):8.0f} MiB/s")
            print(f"  ratio            {statistics.median(r[1] / r[0] for r in rows):8.2f}")
            print(f"  server CPU       {statistics.median(r[2] for r in rows):8.2f} s/GiB (user and system)")
            print(f"  client CPU       {statistics.median(r[3] for r in rows):8.2f} s/GiB")
            print(f"  server peak      {peak_mib(server.process.pid):8.0f} MiB")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


main()
