# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""One run: a cluster, load, faults one after another (sometimes two at once), healing, a final read, and the checker's word."""

from __future__ import annotations

import random
import signal
import sys
import time
from pathlib import Path

from .api import make_stubs
from .checker import check
from .faults import FAULTS, Catalogue, Hit
from .history import Writer
from .load import Load
from .service import NODES, Cluster

# A fault holds for so long; longer than the session timeout, so that somebody is fenced, or shorter, so that nobody is.
HOLD_SECONDS = (0.3, 6.0)
PAUSE_SECONDS = (0.5, 2.0)
SECOND_FAULT_SHARE = 0.3
# After the faults: in sync, led and acknowledging again. Debug builds on a busy machine; a cluster that hangs takes longer.
SETTLE_SECONDS = 60.0
FLUSH_SECONDS = 90.0
READ_SECONDS = 240.0


class Failed(Exception):
    pass


def say(text: str) -> None:
    print(f"chaos: {text}", file=sys.stderr, flush=True)


class Run:
    def __init__(self, options, folder: Path, keep: Path):
        self.options, self.folder, self.keep = options, folder, keep
        self.choose = random.Random(options.seed)
        self.began = time.monotonic()
        self.faults: list[dict] = []
        self.problems: list[str] = []
        self.settles: list[float] = []

    def say(self, text: str) -> None:
        say(f"{time.monotonic() - self.began:6.1f} s  {text}")

    def run(self) -> dict:
        options = self.options
        make_stubs(self.folder / "stubs")
        self.cluster = Cluster(self.folder, options.bin, self.keep, fakes_clocks="clock" in options.faults,
                               etcd=options.etcd)
        self.load = None
        self.control = Writer(self.keep / "control.jsonl", kind="control", seed=options.seed, seconds=options.seconds,
                              faults=options.faults)
        try:
            self.cluster.start()
            self.cluster.wait_ready()
            topics = {"events": 2, "tiered": 1}
            for topic, count in topics.items():
                more = ("--set", "local.retention.bytes=0") if topic == "tiered" else ("--set", "object.tier=false")
                self.cluster.memq("topic", "create", topic, "--partitions", count, "--replication-factor", 3, *more)
            self.load = Load(self.cluster, self.keep, topics, options.seed, options.rate)
            self._settle("before the first fault")
            self.say(f"the cluster runs; faults for {options.seconds} s, seed {options.seed}")
            self._inflict()
            self._end()
        except (Failed, RuntimeError) as failure:
            self.problems.append(str(failure))
        except KeyboardInterrupt:
            self.problems.append("interrupted")
        finally:
            if self.load:
                self.load.kill()
            self.cluster.close()
            self.control.close()
        return self._judge()

    # ---- Faults ------------------------------------------------------------------------------------------------------

    def _leader(self, choose: random.Random) -> str:
        """The node that leads a partition drawn by the seed, as the cluster last said."""
        partition = choose.choice(self.load.partitions)
        row = self.load.watcher.said.get("partitions", {}).get(partition, {})
        for name in NODES:
            if self._ids().get(name) == row.get("leader"):
                return name
        return choose.choice(NODES)

    def _ids(self) -> dict[str, int]:
        nodes = self.load.watcher.said.get("nodes", {})
        return {name: nodes[s.address][0] for name, s in self.cluster.services.items() if s.address in nodes}

    def _inflict(self) -> None:
        catalogue = Catalogue(self.cluster, self._leader)
        end = time.monotonic() + self.options.seconds
        bag: list[str] = []
        while time.monotonic() < end:
            hits: list[Hit] = []
            wanted = 2 if self.choose.random() < SECOND_FAULT_SHARE else 1
            for _ in range(wanted):
                if not bag:
                    # Each kind once before any comes again.
                    bag = list(self.options.faults)
                    self.choose.shuffle(bag)
                name = bag.pop()
                busy = {victim for hit in hits for victim in hit.victims}
                hit = catalogue.begin(name, self.choose, busy)
                if hit is None:
                    continue
                self.control.put(e="fault", what=name, says=hit.says)
                self.faults.append({"fault": name, "says": hit.says, "at_seconds": round(time.monotonic() - self.began, 1)})
                hits.append(hit)
                self.say(f"{hit.says}")
            if not hits:
                continue
            hold = self.choose.uniform(*HOLD_SECONDS)
            self._sleep(hold)
            for hit in hits:
                hit.heal()
                self.control.put(e="heal", says=hit.says)
            self._settle(" and ".join(hit.says for hit in hits))
            self._sleep(self.choose.uniform(*PAUSE_SECONDS))

    def _sleep(self, seconds: float) -> None:
        """The schedule's own time, which is not waited for anything."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._look_at_clients()
            time.sleep(min(left, 0.25))

    def _look_at_clients(self) -> None:
        if dead := self.load.dead():
            raise Failed(f"a client gave up: {dead}")
        for service in self.cluster.services.values():
            if service.process and service.process.poll() not in (None, -signal.SIGKILL, 0):
                raise Failed(f"{service.name} ended by itself with status {service.process.returncode}; its log: {service.log.name}")

    def _settle(self, after: str) -> None:
        """Every partition led and all of its replicas in sync, every producer acknowledged again."""
        began = time.monotonic()
        before = self.load.acked()
        while True:
            self._look_at_clients()
            watcher = self.load.watcher
            rows = watcher.said.get("partitions", {})
            fresh = watcher.since.get("partitions", 0)
            missing = [p for p in self.load.partitions
                       if not (row := rows.get(p)) or not row["leader"] or len(row["isr"]) < len(NODES)]
            now = self.load.acked()
            stuck = [lane for lane in now if now[lane] <= before.get(lane, 0)]
            lanes = 5 * len(self.load.partitions) + 2
            if not missing and not stuck and len(now) == lanes and time.monotonic() - began > 0.5:
                break
            if time.monotonic() - began > SETTLE_SECONDS:
                raise Failed(
                    f"not healed {SETTLE_SECONDS:.0f} s after {after}: partitions without leader or full ISR: "
                    f"{ {p: rows.get(p) for p in missing} or 'none'}; producers without an acknowledgement: {stuck or 'none'}"
                    f" (the cluster last changed {time.monotonic() - fresh:.0f} s ago)"
                )
            time.sleep(0.1)
        self.settles.append(time.monotonic() - began)

    def _end(self) -> None:
        self.say("the faults are over; waiting for what is in flight")
        self.problems += self.load.stop(self.load.producers, FLUSH_SECONDS)
        # Consumers see the last of it, too.
        time.sleep(1)
        self.problems += self.load.stop(self.load.consumers, FLUSH_SECONDS)
        self.say("reading everything")
        self.problems += self.load.read_all(READ_SECONDS)
        self.load.stop([self.load.watcher], 10)
        for service in self.cluster.services.values():
            if not service.is_running:
                self.problems.append(f"{service.name} does not run in the end")

    def _judge(self) -> dict:
        self.say("checking")
        report = check(self.keep, self.folder)
        wrong = [*self.problems, *report.shown]
        counts = dict(report.counts)
        return {
            "ok": not self.problems and report.ok, "seed": self.options.seed, "seconds": self.options.seconds,
            "faults": self.faults, "counts": counts, "violations": dict(report.violations), "wrong": wrong,
            "settle_seconds": {"median": round(sorted(self.settles)[len(self.settles) // 2], 2),
                               "worst": round(max(self.settles), 2)} if self.settles else None,
        }
