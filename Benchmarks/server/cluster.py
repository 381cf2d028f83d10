# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A local cluster of ten processes: three copies against one, and what clients see of a killed leader.

Throughput: rounds take turns between topics of one and of three copies; CPU is that of all ten processes. Gaps: a producer sends
steadily to one partition whose leader's node is killed with SIGKILL, started again and back in sync before the next kill; the gap is
the longest time between two acknowledgements around a kill. Needs release builds of every product (MEMQ_BIN) and of bench-produce:

    swift build -c release && swift build -c release --package-path Benchmarks --product bench-produce
    MEMQ_BIN=$PWD/.build/release .venv/bin/python Benchmarks/server/cluster.py [--kills 20] [--rounds 5]
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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "Tests/Process"))
from cluster import Cluster  # noqa: E402
from harness import AckedProducer, wait_until  # noqa: E402

MIB = 1 << 20


def cpu_seconds(cluster: Cluster) -> float:
    ticks = 0
    for pid in cluster.pids().values():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def throughput(cluster: Cluster, options) -> None:
    bench = ROOT / "Benchmarks/.build/release/bench-produce"
    rows = {1: [], 3: []}
    for number in range(options.rounds):
        for copies, found in rows.items():
            topic = f"copies-{copies}-{number}"
            cluster.cli("topic", "create", topic, "--partitions", 12, "--replication-factor", copies)
            server = cluster.address.split(",")[0]
            before = cpu_seconds(cluster)
            done = subprocess.run(
                [bench, server, topic, str(options.mib), "16384", "all"], check=True, capture_output=True
            )
            made = json.loads(done.stdout)
            found.append((made["seconds"], cpu_seconds(cluster) - before, made["cpu_seconds"]))
            print(f"round {number + 1}, {copies} copies: {options.mib / made['seconds']:.0f} MiB/s", flush=True)
            cluster.cli("topic", "delete", topic)
    gib = options.mib / 1024
    print(f"acks=all, 16 KiB records, 12 partitions, medians of {options.rounds} rounds of {options.mib} MiB")
    for copies, found in rows.items():
        seconds, cpu, client = (statistics.median(column) for column in zip(*found))
        print(
            f"  {copies} copies: {options.mib / seconds:6.0f} MiB/s, {cpu / gib:5.2f} CPU-s/GiB over all services, "
            f"{client / gib:5.2f} CPU-s/GiB in the producer"
        )
    ratio = statistics.median(three[1] / one[1] for one, three in zip(rows[1], rows[3]))
    print(f"  CPU of three copies to one: {ratio:.2f}")


class TimedProducer(AckedProducer):
    """Knows when each acknowledgement was printed."""

    def _read(self) -> None:
        self.times = []
        for line in self.process.stdout:
            if line.endswith(b"\n"):
                self.times.append(time.monotonic())
                self.acked.append(int(line))


def gaps(cluster: Cluster, options) -> None:
    cluster.cli("topic", "create", "gaps", "--partitions", 1, "--replication-factor", 3)
    names = {cluster.node(f"replication-{rack}")["id"]: f"replication-{rack}" for rack in "abc"}
    producer = TimedProducer(cluster, "gaps", per_second=2_000)

    def partition() -> dict:
        return cluster.json("cluster", "partitions", "gaps")[0]

    found = []
    for number in range(options.kills):
        wait_until("all copies are in sync", lambda: len(partition()["isr"]) == 3)
        goal = len(producer.acked) + 2_000
        wait_until("records are acknowledged", lambda: len(producer.acked) > goal)
        victim = partition()["leader"]
        killed = time.monotonic()
        cluster.kill_one(names[victim])
        wait_until("another leads", lambda: partition()["leader"] not in (None, victim))
        goal = len(producer.acked) + 4_000
        wait_until("producing goes on", lambda: len(producer.acked) > goal)
        times = [at for at in producer.times if at > killed - 1]
        found.append(max(after - before for before, after in zip(times, times[1:])))
        print(f"kill {number + 1} ({names[victim]}): {found[-1]:.2f} s", flush=True)
        cluster.up()
    assert producer.stop() == 0, producer.said()
    out = cluster.cli("consume", "gaps", "--from", "beginning", "--until-end", "--format", "%v").stdout
    values = list(map(int, out.split()))
    assert values == list(range(producer.sent)), "a record is missing, twice or out of order"
    found.sort()
    print(
        f"gap between acknowledgements over {options.kills} kills of the leader: p50 {found[len(found) // 2]:.2f} s, "
        f"worst {found[-1]:.2f} s; {len(values)} records, each there once and in order"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024, help="bytes of values per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="memq-bench-"))
    try:
        with Cluster(folder, environment={"MEMQ_UPLOAD_OBSERVE_INTERVAL": "60s"}) as cluster:
            if options.rounds:
                throughput(cluster, options)
            if options.kills:
                gaps(cluster, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


main()
