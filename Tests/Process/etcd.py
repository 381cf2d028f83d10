# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A real etcd of one or more members on loopback ports."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

from harness import free_port, wait_until


class Etcd:
    def __init__(self, folder: Path, count: int = 1, client_options: tuple = ()):
        assert shutil.which("etcd"), "etcd is missing: run scripts/setup"
        self.folder = folder / "etcd"
        self.folder.mkdir()
        base = free_port(range(2 * count))
        self.ports = [base + 2 * index for index in range(count)]
        self.endpoints = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        # With them the members' client ports speak TLS.
        self.client_options = client_options
        self.processes: list[subprocess.Popen | None] = [None] * count
        self.log = open(self.folder / "log", "ab")

    def run(self, index: int) -> None:
        """Starts a member, again with its data when it ran before."""
        client = f"http{'s' if self.client_options else ''}://127.0.0.1:{self.ports[index]}"
        peer = f"http://127.0.0.1:{self.ports[index] + 1}"
        peers = ",".join(f"m{i}=http://127.0.0.1:{port + 1}" for i, port in enumerate(self.ports))
        self.processes[index] = subprocess.Popen(
            [
                "etcd", "--name", f"m{index}", "--data-dir", self.folder / f"m{index}",
                "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", peers, "--log-level", "warn", *map(str, self.client_options),
            ],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )

    def __enter__(self) -> "Etcd":
        for index in range(len(self.ports)):
            self.run(index)
        if not self.client_options:
            wait_until("etcd answers", lambda: self.control("endpoint", "health") is not None)
        return self

    def __exit__(self, *_) -> None:
        for index in range(len(self.ports)):
            self.kill(index)
        self.log.close()

    def kill(self, index: int) -> None:
        """kill -9, and gone."""
        if process := self.processes[index]:
            process.send_signal(signal.SIGKILL)
            process.wait()
            self.processes[index] = None

    def kill_all(self) -> None:
        for index in range(len(self.ports)):
            self.kill(index)

    def run_all(self) -> None:
        for index in range(len(self.ports)):
            self.run(index)

    def control(self, *arguments: str, endpoints: str | None = None) -> str | None:
        """etcdctl; None when it fails."""
        done = subprocess.run(
            ["etcdctl", "--endpoints", endpoints or self.endpoints, *arguments],
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=30,
        )
        return done.stdout if done.returncode == 0 else None

    def leader(self) -> int:
        """The member that leads."""
        for index, port in enumerate(self.ports):
            out = self.control("endpoint", "status", "-w", "fields", endpoints=f"127.0.0.1:{port}") or ""
            fields = dict(line.split(" : ", 1) for line in out.splitlines() if " : " in line)
            if '"Leader"' in fields and fields['"Leader"'] == fields['"MemberID"']:
                return index
        raise AssertionError("no member of etcd leads")
