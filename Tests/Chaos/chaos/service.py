# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""The processes of Deploy/local, each in a network namespace of its own, its data on a disk of its own where it has any."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from .api import ROOT
from .disks import Disk
from .network import Network, command

# Name: last part of its address, port. With metadata in etcd there are two instances and three members besides.
SERVICES = {
    "metadata-1": (11, 7461), "replication-a": (21, 7462), "replication-b": (22, 7462), "replication-c": (23, 7462),
    "uploader-1": (41, 7463), "ingest-1": (31, 7460), "ingest-2": (32, 7460),
}
ETCD_SERVICES = {"etcd-1": (51, 2379), "etcd-2": (52, 2379), "etcd-3": (53, 2379), "metadata-1": (11, 7461), "metadata-2": (12, 7461)}
NODES = ["replication-a", "replication-b", "replication-c"]
INGESTS = ["ingest-1", "ingest-2"]
DISKS = {"replication-a": "ext4", "replication-b": "xfs", "replication-c": "ext4"}
METADATA_DISKS = {"metadata-1": "ext4"}
ETCD_DISKS = {"etcd-1": "ext4", "etcd-2": "xfs", "etcd-3": "ext4"}
ETCD_PREFIX = "/memq/chaos"
CLIENTS = "clients"
CLOCK_SOURCE = ROOT / "Tests/Chaos/clock_offset.c"
STOP_SECONDS = 15


class Service:
    """One process; may be killed, stopped, paused, and started again with what it had."""

    def __init__(self, cluster: "Cluster", name: str):
        self.cluster, self.name = cluster, name
        self.kind = name.split("-")[0]
        self.process: subprocess.Popen | None = None
        self.is_paused = False
        self.port = cluster.layout[name][1]
        self.address = f"{cluster.network.address[name]}:{self.port}"
        self.disk = Disk(cluster.folder / "disks", name, cluster.disks[name], cluster.disk) if name in cluster.disks else None
        self.clock = cluster.folder / f"clock-{name}"
        self.log = cluster.logs / f"{name}.log"

    def etcd_command(self) -> list[str]:
        """A member of an etcd whose clients and peers are the cluster's network only."""
        client, peer = f"http://{self.address}", self.peer
        members = ",".join(f"{name}={self.cluster.services[name].peer}" for name in self.cluster.members)
        return [
            "etcd", "--name", self.name, "--data-dir", str(self.disk.folder / "data"), "--log-level", "warn",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", members,
        ]

    @property
    def peer(self) -> str:
        return f"http://{self.address.split(':')[0]}:{self.port + 1}"

    def command(self) -> list[str]:
        if self.kind == "etcd":
            return self.etcd_command()
        cluster, host = self.cluster, self.address.split(":")[0]
        words = [cluster.binaries / f"memq-{self.kind}"]
        if self.kind == "metadata" and cluster.members:
            # Its example names a folder.
            words += ["--etcd-endpoints", cluster.endpoints, "--etcd-prefix", ETCD_PREFIX]
        else:
            words += ["--config", ROOT / f"services/{self.kind}/config.example.yaml"]
        words += ["--listen", self.address, "--admin-listen", f"{host}:{self.port + 1000}"]
        if self.kind != "metadata":
            words += ["--metadata", cluster.metadata]
        if self.disk:
            words += ["--data", self.disk.folder / "data"]
        if self.kind == "replication":
            # Retention finds nothing to delete in a run; looking for it often must not delete anything either.
            words += ["--rack", self.name[-1], "--segment-bytes", cluster.segment, "--retention-check-interval", "1s"]
        if self.kind in ("ingest", "uploader"):
            words += ["--objects", cluster.folder / "objects"]
        if self.kind == "uploader":
            words += ["--upload-linger", "3s", "--upload-object-bytes", "1MiB", "--upload-collect-interval", "5s"]
        return [str(word) for word in words]

    def start(self) -> None:
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("MEMQ_") or key.startswith("MEMQ_LOG")
        }
        if self.cluster.fakes_clocks and self.kind in ("metadata", "replication"):
            if not self.clock.exists():
                self.set_clock(0)
            environment |= {"LD_PRELOAD": str(self.cluster.clock_library), "CLOCK_OFFSET": str(self.clock)}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self.cluster.network.prefix(self.name), *self.command()], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment, start_new_session=True,
            )
        self.is_paused = False

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        if self.is_running:
            self.process.kill()
            self.process.wait()

    def stop(self) -> bool:
        """SIGTERM; whether it ended in time."""
        if not self.is_running:
            return True
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
            return True
        except subprocess.TimeoutExpired:
            self.kill()
            return False

    def pause(self) -> None:
        """SIGSTOP, and no thread of it runs any more."""
        if not self.is_running:
            return
        self.process.send_signal(signal.SIGSTOP)
        self.is_paused = True
        tasks = Path(f"/proc/{self.process.pid}/task")
        end = time.monotonic() + 5
        while time.monotonic() < end:
            states = [self._state(task) for task in tasks.iterdir()]
            # D: inside the kernel, which it will not leave.
            if all(state in "TDtZX" for state in states):
                return
            time.sleep(0.001)

    @staticmethod
    def _state(task: Path) -> str:
        try:
            return (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return "X"

    def go_on(self) -> None:
        if self.is_running:
            self.process.send_signal(signal.SIGCONT)
        self.is_paused = False

    def lose_power(self) -> None:
        """Stands still, loses its disk, is gone: nothing of it happens after the cut, as with a real one."""
        self.pause()
        self.disk.cut_power()
        self.kill()
        self.disk.unmount()

    def set_clock(self, offset_seconds: int) -> None:
        # In place: the process has the file mapped.
        with open(self.clock, "r+b" if self.clock.exists() else "wb") as file:
            file.write(offset_seconds.to_bytes(8, sys.byteorder, signed=True))

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Cluster:
    """All of them on one network."""

    def __init__(
        self, folder: Path, binaries: Path, keep: Path, fakes_clocks: bool = False, segment: str = "16MiB", disk: str = "1G",
        uploads: bool = True, etcd: bool = False,
    ):
        self.folder, self.binaries, self.logs = folder, binaries, keep / "log"
        self.fakes_clocks, self.segment, self.disk = fakes_clocks, segment, disk
        self.logs.mkdir(parents=True, exist_ok=True)
        if fakes_clocks:
            self.clock_library = folder / "clock_offset.so"
            command("cc", "-shared", "-fPIC", "-O1", "-o", self.clock_library, CLOCK_SOURCE, "-ldl")
        (folder / "objects").mkdir()
        (folder / "disks").mkdir()
        self.layout = {**(ETCD_SERVICES if etcd else {}), **SERVICES}
        self.disks = {**(ETCD_DISKS if etcd else METADATA_DISKS), **DISKS}
        # Of metadata, and of etcd.
        self.instances = [name for name in self.layout if name.startswith("metadata-")]
        self.members = [name for name in self.layout if name.startswith("etcd-")]
        self.network = Network()
        for name, (last, _) in self.layout.items():
            self.network.add(name, last)
        self.network.add(CLIENTS, 100)
        self.metadata = self._addresses(self.instances)
        self.endpoints = self._addresses(self.members)
        self.services = {name: Service(self, name) for name in self.layout if uploads or name != "uploader-1"}
        self.servers = [self.services[name].address for name in INGESTS]

    def _addresses(self, names: list[str]) -> str:
        return ",".join(f"{self.network.address[name]}:{self.layout[name][1]}" for name in names)

    def start(self) -> None:
        for service in self.services.values():
            service.start()

    def memq(self, *words, check: bool = True, patience: float = 120) -> subprocess.CompletedProcess:
        """The command line, run where the clients are."""
        done = subprocess.run(
            [*self.network.prefix(CLIENTS), str(self.binaries / "memq"), *map(str, words), "--server", ",".join(self.servers)],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=patience,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"memq {' '.join(map(str, words))}: {done.stderr.strip()}")
        return done

    def wait_ready(self, patience: float = 90) -> None:
        """All of them are known and say that they are ready."""
        end = time.monotonic() + patience
        while True:
            done = self.memq("cluster", "nodes", "-o", "json", check=False)
            ready = [node["address"] for node in json.loads(done.stdout) if node["state"] == "ready"] if not done.returncode else []
            missing = [name for name, service in self.services.items() if service.address not in ready]
            missing = [name for name in missing if name not in (*self.instances, *self.members)]
            if not missing:
                return
            if time.monotonic() > end:
                raise RuntimeError(f"not ready after {patience:.0f} s: {', '.join(missing)}; {done.stderr.strip()}")
            time.sleep(0.2)

    def close(self) -> None:
        for service in self.services.values():
            service.kill()
