# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A local cluster for tests: Deploy/local/up on ports and a folder of its own, behind the interface of one server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from harness import BIN, PATIENCE, ROOT, Server, free_port, wait_until

LOCAL = ROOT / "Deploy/local"
NAMES = [
    "metadata-1", "replication-a", "replication-b", "replication-c", "uploader-1", "uploader-2",
    "scanner-1", "rebalancer-1", "ingest-1", "ingest-2",
]
OFFSETS = dict(zip(NAMES, [1, 2, 12, 22, 3, 13, 4, 5, 0, 10])) | {"metadata-2": 11}
# Debug builds on a busy machine take longer than the 20 s that people are promised.
START_SECONDS = os.environ.get("MEMQ_TEST_UP_SECONDS", "60")


def listens(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


class Cluster(Server):
    """Ten processes, told by the name that up gives them."""

    def __init__(self, folder: Path, *options: str, environment: dict | None = None):
        super().__init__(folder / "cluster")
        self.base = free_port([*OFFSETS.values(), *(offset + 1000 for offset in OFFSETS.values())])
        self.options = options
        self.names = [*NAMES, "metadata-2"] if "--etcd" in options else NAMES
        self.environment = environment or {}
        self.address = f"127.0.0.1:{self.base},127.0.0.1:{self.base + 10}"
        self.admin = f"127.0.0.1:{self.base + 1000}"
        self.process = None
        # The processes write to logs of their own.
        self.log.touch()

    def script(self, name: str, *arguments: str, patience: float = 150) -> subprocess.CompletedProcess:
        # Files instead of pipes: a process that inherited a pipe by mistake would keep the test waiting, unexplained.
        # Ours are nobody's configuration.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MEMQ_TEST_")}
        environment = {**inherited, "MEMQ_BIN": str(BIN), "MEMQ_DATA": str(self.data), **self.environment}
        out, err = Path(f"{self.data}.out"), Path(f"{self.data}.err")
        with open(out, "wb") as stdout, open(err, "wb") as stderr:
            status = subprocess.run(
                [LOCAL / name, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=stdout,
                stderr=stderr, env=environment, timeout=patience,
            ).returncode
        return subprocess.CompletedProcess(name, status, out.read_text(), err.read_text())

    def up(self, *options: str, check: bool = True) -> subprocess.CompletedProcess:
        arguments = ["--port", self.base, "--timeout", START_SECONDS, *self.options, *options]
        done = self.script("up", *arguments)
        if check:
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done

    def down(self) -> subprocess.CompletedProcess:
        done = self.script("down")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done

    def start(self, ready: bool = True) -> "Cluster":
        self.up()
        return self

    def close(self) -> None:
        for name in self.names:
            self.signal(name, signal.SIGCONT)
            self.signal(name, signal.SIGKILL)
        if self.data.exists():
            self.down()

    def __enter__(self) -> "Cluster":
        return self.start()

    # Single processes.
    def pid(self, name: str) -> int | None:
        """Of a recorded process that lives."""
        try:
            pid = int((self.data / "run" / f"{name}.pid").read_text().split()[0])
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            return None
        # Numbers are given again; ours name our folder or our port.
        ours = b"memq-" + name.rsplit("-", 1)[0].encode()
        return pid if state not in "ZX" and ours in command else None

    def pids(self) -> dict[str, int | None]:
        return {name: self.pid(name) for name in self.names}

    def port_of(self, name: str) -> int:
        return self.base + OFFSETS[name]

    def signal(self, name: str, number: int) -> None:
        if pid := self.pid(name):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def kill_one(self, name: str) -> None:
        """kill -9, and gone."""
        assert self.pid(name), f"{name} does not run"
        self.signal(name, signal.SIGKILL)
        wait_until(f"{name} is gone", lambda: self.pid(name) is None, pause=0.005)
        # Its sockets may be there for a moment longer, and who starts it anew is refused.
        ports = (self.port_of(name), self.port_of(name) + 1000)
        wait_until(f"the ports of {name} are closed", lambda: not any(map(listens, ports)), pause=0.005)

    def stop_one(self, name: str) -> float:
        """SIGTERM, and gone; how long that took."""
        began = time.monotonic()
        self.signal(name, signal.SIGTERM)
        wait_until(f"{name} has ended", lambda: self.pid(name) is None)
        return time.monotonic() - began

    def node(self, name: str) -> dict:
        """Its entry in `cluster nodes`."""
        address = f"127.0.0.1:{self.port_of(name)}"
        (node,) = [n for n in self.json("cluster", "nodes") if n["address"] == address]
        return node

    def logs(self, lines: int = 15) -> str:
        text = ""
        for name in self.names:
            path = self.data / "log" / f"{name}.log"
            if path.exists():
                tail = path.read_text(errors="replace").splitlines()[-lines:]
                text += f"--- {name}\n" + "\n".join(tail) + "\n"
        return text

    def cli(self, *arguments, **options):
        try:
            return super().cli(*arguments, **options)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def is_ready(self) -> bool:
        return self.cli("cluster", "status", check=False).returncode == 0

    def wait_ready(self) -> None:
        wait_until("the cluster is ready", self.is_ready, PATIENCE * 2)
