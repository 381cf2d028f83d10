# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""What a producer sees of a leader that goes: the longest time between two acknowledgements around each fault.

`memq produce` (the Swift SDK, idempotent, acks=all) sends steadily to one partition of three copies; its leader is killed, paused, cut
off or stopped cleanly, and is back in sync before the next. All that was sent must be there in the end, once and in order.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import threading
import time
from pathlib import Path

from .api import make_stubs
from .load import Client
from .run import Failed, say
from .service import CLIENTS, NODES, Cluster

TOPIC = "gaps"
KINDS = ("kill", "pause", "cut", "stop")
# Longer than a silent node is borne, so that another one must take over.
HOLD_SECONDS = 5.0
PATIENCE = 60.0
# Around each fault so much is looked at: from before it until all is in sync again.
BEFORE_SECONDS = 0.5
AFTER_SECONDS = 1.0


class Steady:
    """A producer at a steady pace that notes when each acknowledgement was printed."""

    def __init__(self, cluster: Cluster, log: Path, per_second: int):
        self.sent = 0
        self.acked: list[int] = []
        self.times: list[float] = []
        self.per_second = per_second
        self.stopping = threading.Event()
        self.errors = open(log, "wb")
        self.process = subprocess.Popen(
            [*cluster.network.prefix(CLIENTS), str(cluster.binaries / "memq"), "produce", TOPIC, "--print-acked",
             "--server", ",".join(cluster.servers)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, start_new_session=True,
        )
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read)]
        for thread in self.threads:
            thread.start()

    def _write(self) -> None:
        chunk = max(self.per_second // 100, 1)
        due = time.monotonic()
        try:
            while not self.stopping.is_set():
                self.process.stdin.write(b"".join(b"%d\n" % (self.sent + k) for k in range(chunk)))
                self.process.stdin.flush()
                self.sent += chunk
                due = max(due + 0.01, time.monotonic() - 0.1)
                self.stopping.wait(max(due - time.monotonic(), 0))
            self.process.stdin.close()
        except OSError:
            pass

    def _read(self) -> None:
        for line in self.process.stdout:
            self.times.append(time.monotonic())
            self.acked.append(int(line))

    def stop(self) -> int:
        self.stopping.set()
        status = self.process.wait(PATIENCE * 3)
        for thread in self.threads:
            thread.join(PATIENCE)
        return status

    def gap(self, begin: float, end: float) -> tuple[float, float]:
        """The longest time between two acknowledgements that overlaps the span, and when it began."""
        at = len(self.times) - 1
        longest, when = 0.0, begin
        while at > 0 and self.times[at] > begin:
            if self.times[at - 1] < end and self.times[at] - self.times[at - 1] > longest:
                longest, when = self.times[at] - self.times[at - 1], self.times[at - 1]
            at -= 1
        return longest, when


class Gaps:
    def __init__(self, options, folder: Path, keep: Path):
        self.options, self.folder, self.keep = options, folder, keep

    def row(self) -> dict:
        return self.watcher.said.get("partitions", {}).get(f"{TOPIC}/0", {})

    def leader(self) -> str | None:
        nodes, row = self.watcher.said.get("nodes", {}), self.row()
        for name in NODES:
            address = self.cluster.services[name].address
            if address in nodes and row.get("leader") == nodes[address][0]:
                return name
        return None

    def wait(self, what: str, check) -> None:
        end = time.monotonic() + PATIENCE
        while not check():
            if time.monotonic() > end:
                raise Failed(f"{what}: not within {PATIENCE:.0f} s")
            if self.producer and self.producer.process.poll() is not None:
                raise Failed(f"the producer ended with status {self.producer.process.returncode}")
            time.sleep(0.01)

    def is_whole(self) -> bool:
        # As of now, not of before the fault.
        return self.leader() is not None and len(self.row().get("isr", [])) == len(NODES)

    def run(self) -> dict:
        options = self.options
        make_stubs(self.folder / "stubs")
        self.producer = None
        self.cluster = cluster = Cluster(self.folder, options.bin, self.keep, segment="64MiB")
        try:
            cluster.start()
            cluster.wait_ready()
            cluster.memq("topic", "create", TOPIC, "--partitions", 1, "--replication-factor", 3)
            self.watcher = Client(cluster, self.keep, "watcher", "watcher", "--partitions", f"{TOPIC}/0")
            self.wait("all are in sync", self.is_whole)
            self.producer = Steady(cluster, self.keep / "log/producer.err", options.per_second)
            report = {"per_second": options.per_second, "kinds": {}}
            for kind in KINDS:
                count = getattr(options, kind)
                if count:
                    report["kinds"][kind] = self.measure(kind, count)
            status = self.producer.stop()
            sent = self.producer.sent
            values = [int(v) for v in cluster.memq(
                "consume", TOPIC, "--from", "beginning", "--until-end", "--format", "%v", patience=600).stdout.split()]
            said = (self.keep / "log/producer.err").read_text().strip()
            report["records"] = sent
            report["producer_errors"] = said.splitlines()[:10]
            report["ok"] = status == 0 and values == list(range(sent))
            if not report["ok"]:
                report["wrong"] = f"producer's status {status}; {len(values)} of {sent} records are there, in order: " \
                                  f"{values == sorted(set(values))}"
            return report
        finally:
            if self.producer and self.producer.process.poll() is None:
                self.producer.process.kill()
            cluster.close()

    def measure(self, kind: str, count: int) -> dict:
        found = []
        for number in range(count):
            goal = len(self.producer.acked) + self.options.per_second // 2
            self.wait("records are acknowledged", lambda: len(self.producer.acked) > goal)
            name, epoch = self.leader(), self.row()["epoch"]
            service, network = self.cluster.services[name], self.cluster.network
            others = [other for other in network.address if other != name]
            began = time.monotonic()
            wall = time.time()
            if kind == "kill":
                service.kill()
            elif kind == "pause":
                service.pause()
            elif kind == "cut":
                for other in others:
                    network.cut(name, other)
                    network.cut(other, name)
            else:
                in_time = service.stop()
                if not in_time:
                    raise Failed(f"{name} did not end in time")
            if kind in ("pause", "cut"):
                time.sleep(HOLD_SECONDS)
            self.wait("another one leads", lambda: self.row().get("epoch", 0) > epoch and self.leader() not in (None, name))
            goal = len(self.producer.acked) + self.options.per_second // 2
            self.wait("acknowledgements go on", lambda: len(self.producer.acked) > goal)
            if kind == "pause":
                service.go_on()
            elif kind == "cut":
                for other in [name, *others]:
                    network.mend(other)
            else:
                service.start()
            self.wait("it is in sync again", lambda: self.is_whole())
            time.sleep(AFTER_SECONDS)
            gap, when = self.producer.gap(began - BEFORE_SECONDS, time.monotonic())
            found.append(gap)
            at = time.strftime("%H:%M:%S", time.gmtime(wall)) + f".{int(wall % 1 * 1000):03}"
            say(f"{kind} {number + 1} of {count}: {name} at {at}, gap {gap:.2f} s, {when - began:+.2f} s from it")
        ordered = sorted(found)
        return {
            "count": count, "p50_seconds": round(statistics.median(ordered), 3),
            "p95_seconds": round(ordered[int(0.95 * (count - 1))], 3), "worst_seconds": round(ordered[-1], 3),
            "above_2_seconds": sum(gap > 2 for gap in ordered), "gaps_seconds": [round(gap, 3) for gap in found],
        }


NAMES = {
    "kill": "kill -9 of the leader", "pause": "SIGSTOP of the leader", "cut": "the leader is cut off", "stop": "SIGTERM of the leader",
}


def table(report: dict) -> str:
    lines = ["| | times | p50 | p95 | worst | above 2 s |", "|---|---|---|---|---|---|"]
    for kind, row in report["kinds"].items():
        lines.append(
            f"| {NAMES[kind]} | {row['count']} | {row['p50_seconds']:.2f} s | {row['p95_seconds']:.2f} s | "
            f"{row['worst_seconds']:.2f} s | {row['above_2_seconds']} |"
        )
    return "\n".join(lines)
