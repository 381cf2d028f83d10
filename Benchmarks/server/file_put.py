# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Puts one large file into a fresh server; prints throughput, CPU and the peak memory of server and client.

The floor is the same bytes written in 1 MiB pieces with an fdatasync every 16 MiB (the first part size), on the same disk.

    .venv/bin/python Benchmarks/server/file_put.py [--gibibytes 4] [--scan off|gate]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "Tests/Process"))
from harness import MEMQ, Server, sha256  # noqa: E402

MIB = 1 << 20


def peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def floor(source: Path, target: Path) -> float:
    begun = time.monotonic()
    with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
        written = 0
        while piece := reader.read(MIB):
            writer.write(piece)
            written += len(piece)
            if written % (16 * MIB) == 0:
                os.fdatasync(writer.fileno())
        os.fdatasync(writer.fileno())
    seconds = time.monotonic() - begun
    target.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gibibytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scan", choices=["off", "gate"], default="off")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="memq-bench-"))
    try:
        source = folder / "source"
        size = int(options.gibibytes * 1024) * MIB
        with open(source, "wb") as out:
            block = os.urandom(64 * MIB)
            for _ in range(size // len(block)):
                out.write(block)
        puts, floors, cpus = [], [], []
        with Server(folder / "data") as server:
            server.cli("topic", "create", "bench", "--scan", options.scan)
            for number in range(options.rounds):
                floors.append(floor(source, folder / "floor"))
                before = cpu_seconds(server.process.pid)
                begun = time.monotonic()
                put = subprocess.Popen(
                    [MEMQ, "file", "put", "bench", source, "--name", f"f{number}", "-o", "json"],
                    env={**os.environ, "MEMQ_SERVER": server.address},
                    stdout=subprocess.DEVNULL,
                )
                client_peak = 0.0
                while put.poll() is None:
                    try:
                        client_peak = max(client_peak, peak_mib(put.pid))
                    except (OSError, AssertionError):
                        pass
                    time.sleep(0.05)
                assert put.returncode == 0
                puts.append(time.monotonic() - begun)
                cpus.append(cpu_seconds(server.process.pid) - before)
                server.cli("file", "delete", "bench", f"f{number}")
            gib = size / (1 << 30)
            put, raw = statistics.median(puts), statistics.median(floors)
            print(f"file put of {gib:.1f} GiB, scan {options.scan}, medians of {options.rounds} rounds")
            print(f"  put            {size / MIB / put:8.0f} MiB/s")
            print(f"  write+fdatasync {size / MIB / raw:7.0f} MiB/s")
            print(f"  ratio          {raw / put:8.2f}")
            print(f"  server CPU     {statistics.median(cpus) / gib:8.2f} s/GiB (user and system)")
            print(f"  server peak    {peak_mib(server.process.pid):8.0f} MiB")
            print(f"  client peak    {client_peak:8.0f} MiB")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


main()
