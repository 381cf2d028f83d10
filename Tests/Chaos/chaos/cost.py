# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""What three copies cost: processor time of all services for a fixed payload, against one copy, and the bytes that leaders send to
followers, as the kernel counts them on each connection.

Rounds take turns between the two; the payload is records of 16 KiB through `memq produce`, acks=all, until the last one is acknowledged and
every copy is in sync.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import time
from pathlib import Path

from .run import Failed, say
from .service import CLIENTS, NODES, Cluster

LINE_BYTES = 16 << 10
PARTITIONS = 12
PATIENCE = 120.0


class Cost:
    def __init__(self, options, folder: Path, keep: Path):
        self.options, self.folder, self.keep = options, folder, keep

    def run(self) -> dict:
        self.cluster = cluster = Cluster(self.folder, self.options.bin, self.keep, segment="256MiB", disk="6G", uploads=False)
        rows: dict[int, list[dict]] = {1: [], 3: []}
        try:
            cluster.start()
            cluster.wait_ready()
            for number in range(self.options.rounds + 1):
                for copies, found in rows.items():
                    row = self.round(f"copies-{copies}-{number}", copies)
                    # The first round of each makes segments and warms up.
                    if number:
                        found.append(row)
                    say(f"round {number}, copies {copies}: {row['cpu_seconds_per_gib']:.2f} CPU-s/GiB, "
                        f"{row['mib_per_second']:.0f} MiB/s" + (f", {row['stream']:.4f} × payload" if copies == 3 else ""))
        finally:
            cluster.close()
        report = {
            f"copies_{copies}": {name: round(statistics.median(row[name] for row in found), 4) for name in found[0]}
            for copies, found in rows.items()
        }
        ratios = [three["cpu_seconds_per_gib"] / one["cpu_seconds_per_gib"] for one, three in zip(rows[1], rows[3])]
        return {"mib": self.options.mib, "rounds": self.options.rounds, "cpu_ratio": round(statistics.median(ratios), 3), **report}

    def round(self, topic: str, copies: int) -> dict:
        cluster = self.cluster
        cluster.memq("topic", "create", topic, "--partitions", PARTITIONS, "--replication-factor", copies,
                     "--set", "object.tier=false")
        lines = self.options.mib * (1 << 20) // LINE_BYTES
        block = b"".join(b"%015d" % n + b"x" * (LINE_BYTES - 16) + b"\n" for n in range(64))
        before, sent_before, began = self.cpu(), self.sent(), time.monotonic()
        producer = subprocess.Popen(
            [*cluster.network.prefix(CLIENTS), str(cluster.binaries / "memq"), "produce", topic, "--server", cluster.servers[0]],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )
        for _ in range(lines // 64):
            producer.stdin.write(block)
        producer.stdin.close()
        if producer.wait(PATIENCE) != 0:
            raise Failed("the producer failed")
        seconds = time.monotonic() - began
        end = time.monotonic() + PATIENCE
        while True:
            partitions = json.loads(cluster.memq("cluster", "partitions", topic, "-o", "json").stdout)
            if all(len(row["isr"]) == copies for row in partitions):
                break
            if time.monotonic() > end:
                raise Failed(f"{topic} is not in sync")
        cpu = self.cpu() - before
        payload = lines // 64 * len(block)
        found = {"cpu_seconds_per_gib": cpu / (payload / (1 << 30)), "mib_per_second": payload / (1 << 20) / seconds}
        if copies > 1:
            sent = self.sent()
            found["stream"] = sum(sent[key] - sent_before.get(key, 0) for key in sent) / (payload * (copies - 1))
        cluster.memq("topic", "delete", topic)
        return found

    def cpu(self) -> float:
        return sum(service.cpu_seconds() for service in self.cluster.services.values() if service.is_running)

    def sent(self) -> dict[str, int]:
        """By connection of a storage node's port with another node: bytes it sent, as TCP counts them."""
        found = {}
        addresses = {self.cluster.network.address[name] for name in NODES}
        for name in NODES:
            out = self.cluster.network.inside(name, "ss", "-tinHO", "sport", "=", ":7462").stdout
            for line in out.splitlines():
                local, peer = re.findall(r"(\d+\.\d+\.\d+\.\d+:\d+)", line)[:2]
                counted = re.search(r"bytes_sent:(\d+)", line)
                if peer.rsplit(":", 1)[0] in addresses and counted:
                    found[f"{local} {peer}"] = int(counted[1])
        return found


def table(report: dict) -> str:
    one, three = report["copies_1"], report["copies_3"]
    return "\n".join([
        "| | CPU-s/GiB over all services | MiB/s | bytes on each leader → follower stream |", "|---|---|---|---|",
        f"| one copy | {one['cpu_seconds_per_gib']:.2f} | {one['mib_per_second']:.0f} | |",
        f"| three copies | {three['cpu_seconds_per_gib']:.2f} | {three['mib_per_second']:.0f} | {three['stream']:.4f} × payload |",
        f"| three to one (median of the rounds') | {report['cpu_ratio']:.2f} | | |",
    ])
