# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""The clients of a run, each a process where the clients are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from .service import CLIENTS, Cluster


class Client:
    """One client process; what it tells on standard output is kept as `said`, the last value of each name."""

    def __init__(self, cluster: Cluster, keep: Path, name: str, module: str, *words):
        self.name, self.said, self.since = name, {}, {}
        command = [
            *cluster.network.prefix(CLIENTS), sys.executable, "-m", f"chaos.{module}", "--servers", ",".join(cluster.servers),
            "--history", str(keep / f"{name}.jsonl"), "--stubs", str(cluster.folder / "stubs"), *map(str, words),
        ]
        self.errors = keep / "log" / f"{name}.err"
        with open(self.errors, "ab") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
                env={**os.environ, "GRPC_VERBOSITY": "NONE"},
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            try:
                for name, value in json.loads(line).items():
                    if self.said.get(name) != value:
                        self.since[name] = time.monotonic()
                    self.said[name] = value
            except ValueError:
                pass

    def acked(self) -> int:
        return sum(self.said.get("acked", {}).values())

    def last_words(self) -> str:
        return self.errors.read_text(errors="replace").strip()[-1500:]


class Load:
    def __init__(self, cluster: Cluster, keep: Path, topics: dict[str, int], seed: int, rate: float):
        self.cluster, self.keep, self.seed = cluster, keep, seed
        self.partitions = [f"{topic}/{n}" for topic, count in topics.items() for n in range(count)]
        everything = ",".join(self.partitions)
        memq = cluster.binaries / "memq"
        # Seconds between batches of a lane.
        pace = ("--interval", 0.2 / rate)

        def client(name, module, *words):
            return Client(cluster, keep, name, module, *words)

        self.watcher = client("watcher", "watcher", "--partitions", everything)
        self.producers = [
            client("producer-1", "producer", "--number", 1, "--idempotent", "--partitions", everything, *pace),
            client("producer-2", "producer", "--number", 2, "--idempotent", "--partitions", everything, *pace),
            client("producer-3", "producer", "--number", 3, "--idempotent", "--acks", 1, "--partitions", everything, *pace),
            client("producer-4", "producer", "--number", 4, "--retry", "always", "--partitions", everything, *pace),
            client("producer-5", "producer", "--number", 5, "--retry", "never", "--partitions", everything, *pace),
            client("producer-6", "sdk", "--number", 6, "--idempotent", "--memq", memq, "--partitions", self.partitions[0], *pace),
            client("producer-7", "sdk", "--number", 7, "--idempotent", "--memq", memq, "--partitions", self.partitions[-1], *pace),
        ]
        first = [p for p in self.partitions if p.split("/")[0] == self.partitions[0].split("/")[0]]
        self.consumers = [
            client("consumer-1", "consumer", "--partitions", everything),
            client("consumer-2", "consumer", "--partitions", everything, "--sessions", "--seed", seed),
            client("consumer-3", "sdk", "--consume", "--memq", memq, "--partitions", ",".join(first)),
            client("member-1", "member", *self._group(first), "--seed", seed, "--watch"),
            client("member-2", "member", *self._group(first), "--seed", seed + 1),
        ]
        self.shared = first

    def _group(self, partitions: list[str]) -> tuple:
        return ("--memq", self.cluster.binaries / "memq", "--group", "chaos", "--partitions", ",".join(partitions))

    @property
    def clients(self) -> list[Client]:
        return [self.watcher, *self.producers, *self.consumers]

    def acked(self) -> dict[str, int]:
        """By "producer partition": how much is acknowledged."""
        return {
            f"{producer.name} {partition}": count
            for producer in self.producers for partition, count in producer.said.get("acked", {}).items()
        }

    def dead(self) -> str | None:
        for client in self.clients:
            if client.process.poll() is not None:
                return f"{client.name} ended with status {client.process.returncode}: {client.last_words() or 'no word'}"
        return None

    def stop(self, clients: list[Client], patience: float) -> list[str]:
        """SIGTERM, and the end of each; who did not end, or not well."""
        for client in clients:
            client.process.terminate()
        end, wrong = time.monotonic() + patience, []
        for client in clients:
            try:
                status = client.process.wait(max(end - time.monotonic(), 0.1))
                if status != 0:
                    wrong.append(f"{client.name} ended with status {status}: {client.last_words()}")
            except subprocess.TimeoutExpired:
                wrong.append(f"{client.name} did not end within {patience:.0f} s: what it had in flight was never answered")
                client.process.kill()
                client.process.wait()
        return wrong

    def read_all(self, patience: float) -> list[str]:
        """The final read, and what the group has left; empty: done."""
        lasts = [
            (Client(self.cluster, self.keep, "final", "consumer", "--final", "--partitions", ",".join(self.partitions)),
             "the final read"),
            (Client(self.cluster, self.keep, "member-last", "member", *self._group(self.shared), "--last"),
             "the group's last member"),
        ]
        end, wrong = time.monotonic() + patience, []
        for client, what in lasts:
            try:
                status = client.process.wait(max(end - time.monotonic(), 0.1))
                if status != 0:
                    wrong.append(f"{what} ended with status {status}: {client.last_words()}")
            except subprocess.TimeoutExpired:
                client.process.kill()
                client.process.wait()
                wrong.append(f"{what} did not come to an end within {patience:.0f} s")
        return wrong

    def kill(self) -> None:
        for client in self.clients:
            if client.process.poll() is None:
                client.process.kill()
                client.process.wait()
