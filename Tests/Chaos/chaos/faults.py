# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""The faults: each begins, holds for a while and is healed. Whom they meet is chosen by the run's seed and by who leads then."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Callable

from .service import CLIENTS, INGESTS, NODES, Cluster


@dataclass
class Hit:
    """A fault under way."""

    # Processes it takes something from; no second one meets them meanwhile.
    victims: list[str]
    says: str
    heal: Callable[[], None]


class Catalogue:
    """Begins faults of a cluster. `leader` gives the name of the storage node that leads a partition at the moment."""

    def __init__(self, cluster: Cluster, leader: Callable[[random.Random], str]):
        self.cluster, self.leader = cluster, leader

    def begin(self, name: str, choose: random.Random, busy: set[str]) -> Hit | None:
        """Nil: all whom it could meet are busy with another fault."""
        return FAULTS[name](self, choose, busy)

    def _one(self, choose: random.Random, busy: set[str], names: list[str]) -> str | None:
        free = [name for name in names if name not in busy]
        # Always one draw, so that what follows does not depend on who was busy.
        draw = choose.random()
        return free[int(draw * len(free))] if free else None

    def _leading(self, choose: random.Random, busy: set[str]) -> str | None:
        name = self.leader(choose)
        return None if name in busy else name

    def _service(self, name: str):
        return self.cluster.services[name]

    # ---- Processes ---------------------------------------------------------------------------------------------------

    def _kill(self, *names: str) -> Hit:
        for name in names:
            self._service(name).process.kill()
        for name in names:
            self._service(name).kill()
        return Hit(list(names), f"kill -9 of {', '.join(names)}", lambda: [self._service(name).start() for name in names])

    def _pause(self, name: str) -> Hit:
        self._service(name).pause()
        return Hit([name], f"SIGSTOP of {name}", self._service(name).go_on)

    def kill_node(self, choose, busy):
        name = self._one(choose, busy, NODES)
        return name and self._kill(name)

    def kill_leader(self, choose, busy):
        name = self._leading(choose, busy)
        return name and self._kill(name)

    def kill_metadata(self, choose, busy):
        name = self._one(choose, busy, self.cluster.instances)
        return name and self._kill(name)

    def kill_ingest(self, choose, busy):
        name = self._one(choose, busy, INGESTS)
        return name and self._kill(name)

    def kill_uploader(self, choose, busy):
        name = self._one(choose, busy, ["uploader-1"])
        return name and self._kill(name)

    def kill_all(self, choose, busy):
        return None if busy else self._kill(*self.cluster.services)

    def restart(self, choose, busy):
        """A clean stop, which hands leaderships over."""
        name = self._one(choose, busy, [*NODES, *INGESTS, *self.cluster.instances])
        if name is None:
            return None
        in_time = self._service(name).stop()
        return Hit([name], f"SIGTERM of {name}" + ("" if in_time else ", which did not end in time"), self._service(name).start)

    def pause_node(self, choose, busy):
        name = self._one(choose, busy, NODES)
        return name and self._pause(name)

    def pause_leader(self, choose, busy):
        name = self._leading(choose, busy)
        return name and self._pause(name)

    def pause_metadata(self, choose, busy):
        name = self._one(choose, busy, self.cluster.instances)
        return name and self._pause(name)

    def pause_ingest(self, choose, busy):
        name = self._one(choose, busy, INGESTS)
        return name and self._pause(name)

    # ---- Members of etcd; a majority of them is not always left -------------------------------------------------------

    def kill_etcd(self, choose, busy):
        name = self._one(choose, busy, self.cluster.members)
        return name and self._kill(name)

    def kill_etcd_majority(self, choose, busy):
        names = choose.sample(self.cluster.members, choose.choice([2, 3]))
        return None if busy & set(names) else self._kill(*names)

    def pause_etcd(self, choose, busy):
        name = self._one(choose, busy, self.cluster.members)
        return name and self._pause(name)

    def isolate_etcd(self, choose, busy):
        name = self._one(choose, busy, self.cluster.members)
        return None if name is None or busy else self._isolate(name)

    # ---- Network -----------------------------------------------------------------------------------------------------

    def _others(self, name: str) -> list[str]:
        return [other for other in self.cluster.services if other != name]

    def cut_in(self, choose, busy):
        """A node hears one of the others, or none of them, no more; it is still heard."""
        name = self._one(choose, busy, NODES)
        peer = choose.choice([*NODES, *self.cluster.instances, "all"])
        if name is None or name == peer:
            return None
        senders = self._others(name) if peer == "all" else [peer]
        for sender in senders:
            self.cluster.network.cut(sender, name)
        return Hit([name], f"{name} does not hear {peer}", lambda: self.cluster.network.mend(name))

    def cut_out(self, choose, busy):
        """A node is heard by one of the others, or by none of them, no more; it still hears."""
        name = self._one(choose, busy, NODES)
        peer = choose.choice([*NODES, *self.cluster.instances, "all"])
        if name is None or name == peer:
            return None
        hearers = self._others(name) if peer == "all" else [peer]
        if busy & set(hearers):
            return None
        for hearer in hearers:
            self.cluster.network.cut(name, hearer)
        return Hit([name, *hearers], f"{peer} does not hear {name}", lambda: [self.cluster.network.mend(h) for h in hearers])

    def isolate(self, choose, busy):
        """A leader whom nobody hears and who hears nobody."""
        name = self._leading(choose, busy)
        return None if name is None or busy else self._isolate(name)

    def _isolate(self, name: str) -> Hit:
        everybody = [*self._others(name), CLIENTS]
        for other in everybody:
            self.cluster.network.cut(name, other)
            self.cluster.network.cut(other, name)
        return Hit([*self.cluster.services], f"{name} is cut off",
                   lambda: [self.cluster.network.mend(other) for other in [name, *everybody]])

    def isolate_metadata(self, choose, busy):
        """An instance that nobody hears and that hears nobody, its store neither."""
        name = self._one(choose, busy, self.cluster.instances)
        return None if name is None or busy else self._isolate(name)

    def slow_link(self, choose, busy):
        name = self._one(choose, busy, NODES)
        kilobits = choose.choice([1_000, 3_000, 10_000])
        if name is None:
            return None
        self.cluster.network.narrow(name, kilobits)
        return Hit([name], f"the link of {name} carries {kilobits} kbit/s", lambda: self.cluster.network.widen(name))

    def delay(self, choose, busy):
        name = self._one(choose, busy, [*NODES, *self.cluster.instances, *self.cluster.members])
        to_ms, from_ms = choose.choice([5, 50, 200]), choose.choice([5, 50, 200])
        loss = choose.choice([0, 0, 0.02])
        if name is None:
            return None
        self.cluster.network.lengthen(name, to_ms, from_ms, jitter_ms=10, loss=loss, seed=choose.randrange(1 << 30))
        return Hit([name], f"frames take {to_ms} ms to {name} and {from_ms} ms from it, {loss:.0%} are lost",
                   lambda: self.cluster.network.shorten(name))

    # ---- Disk and clock ----------------------------------------------------------------------------------------------

    def full_disk(self, choose, busy):
        # Not of a member of etcd: those end by themselves then.
        name = self._one(choose, busy, [name for name in (*NODES, *self.cluster.instances) if self._service(name).disk])
        if name is None:
            return None
        disk = self._service(name).disk
        disk.fill()
        return Hit([name], f"the disk of {name} is full", disk.empty)

    def _power(self, names: list[str]) -> Hit:
        # All of them at one moment: none goes on with what another has lost.
        for name in names:
            self._service(name).pause()
        for name in names:
            self._service(name).lose_power()

        def heal():
            for name in names:
                self._service(name).disk.mount()
            for name in names:
                self._service(name).start()

        return Hit(names, f"power cut of {', '.join(names)}", heal)

    def _on_disks(self) -> list[str]:
        return [name for name in (*NODES, *self.cluster.instances, *self.cluster.members) if self._service(name).disk]

    def power_cut(self, choose, busy):
        name = self._one(choose, busy, self._on_disks())
        return name and self._power([name])

    def power_cut_all(self, choose, busy):
        return None if busy else self._power(self._on_disks())

    def clock(self, choose, busy):
        name = self._one(choose, busy, [*NODES, *self.cluster.instances])
        offset = choose.choice([-86_400, -3_600, -5, 5, 3_600, 86_400])
        if name is None:
            return None
        self._service(name).set_clock(offset)
        return Hit([name], f"the clock of {name} is {offset:+d} s off", lambda: self._service(name).set_clock(0))


# Those that need an etcd.
ETCD_FAULTS = ["kill-etcd", "kill-etcd-majority", "pause-etcd", "isolate-etcd", "isolate-metadata"]
FAULTS = {
    name.replace("_", "-"): getattr(Catalogue, name)
    for name in (
        "kill_node", "kill_leader", "kill_metadata", "kill_ingest", "kill_uploader", "kill_all", "restart", "pause_node",
        "pause_leader", "pause_metadata", "pause_ingest", "cut_in", "cut_out", "isolate", "slow_link", "delay", "full_disk",
        "power_cut", "power_cut_all", "clock", "kill_etcd", "kill_etcd_majority", "pause_etcd", "isolate_etcd", "isolate_metadata",
    )
}
