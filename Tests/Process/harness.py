# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Real processes for tests: servers on free loopback ports, the command line, loop-mounted disks."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("MEMQ_BIN", ROOT / ".build/debug"))
MEMQ = BIN / "memq"
# The harmless test signature every scanner knows, in two halves so that this file is not flagged itself.
EICAR = (
    r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STAND" r"ARD-ANTIVIRUS-TEST-FILE!$H+H*"
).encode()
FS_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_WITHOUT_FLUSH = 2
# Debug builds on a busy two-core machine: generous, as these only bound a hang.
PATIENCE = 60.0


# Handed out by this run: a service that has not bound its port yet must not lose it to the next.
TAKEN_PORTS = set()


def free_port(offsets=(0, 1000)) -> int:
    """A port P such that P plus each offset is free at the moment, below those that outgoing connections take; no port twice in a run."""
    while True:
        port = random.randint(10000, 31000)
        if any(port + offset in TAKEN_PORTS for offset in offsets):
            continue
        try:
            for offset in offsets:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port + offset))
            TAKEN_PORTS.update(port + offset for offset in offsets)
            return port
        except OSError:
            continue


def wait_until(what: str, check, patience: float = PATIENCE, pause: float = 0.05):
    """Polls a real condition until it holds; fails with its name when patience ends."""
    end = time.monotonic() + patience
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"gave up after {patience:.0f} s: {what}")
        time.sleep(pause)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Server:
    """`memq serve` on a data folder; can be killed and started again on the same port."""

    def __init__(self, data: Path, *options: str, environment: dict | None = None):
        self.data = Path(data)
        self.options = options
        self.environment = environment or {}
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.admin = f"127.0.0.1:{self.port + 1000}"
        self.log = Path(str(self.data).rstrip("/") + f".{self.port}.log")
        self.process: subprocess.Popen | None = None

    def start(self, ready: bool = True) -> "Server":
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [MEMQ, "serve", "--data", self.data, "--listen", self.address, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )
        if ready:
            try:
                wait_until("the server is ready", self.is_ready)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.log.read_text()[-4000:]}") from None
        return self

    def is_ready(self) -> bool:
        assert self.process.poll() is None, f"the server ended: {self.log.read_text()[-4000:]}"
        return self.cli("cluster", "status", check=False).returncode == 0

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.kill()

    def __enter__(self) -> "Server":
        return self if self.process else self.start()

    def __exit__(self, *_) -> None:
        self.close()

    # The command line against this server.
    def popen(self, *arguments, **options) -> subprocess.Popen:
        environment = {**os.environ, "MEMQ_SERVER": self.address}
        return subprocess.Popen([MEMQ, *map(str, arguments)], env=environment, **options)

    def cli(
        self, *arguments, stdin: bytes | None = None, check: bool = True, patience: float = 180
    ) -> subprocess.CompletedProcess:
        environment = {**os.environ, "MEMQ_SERVER": self.address}
        done = subprocess.run(
            [MEMQ, *map(str, arguments)],
            input=stdin if stdin is not None else b"",
            capture_output=True,
            env=environment,
            timeout=patience,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"memq {' '.join(map(str, arguments))}: exit {done.returncode}\n"
                f"{done.stderr.decode(errors='replace')[-3000:]}\n"
                f"--- server\n{self.log.read_text()[-3000:]}"
            )
        return done

    def json(self, *arguments):
        return json.loads(self.cli(*arguments, "-o", "json").stdout)

    def values(self, topic: str) -> list[bytes]:
        """Every value of a topic, in the order consumed."""
        out = self.cli("consume", topic, "--from", "beginning", "--until-end", "--format", "%v")
        return out.stdout.splitlines()


class AckedProducer:
    """`memq produce --print-acked`, fed with numbers until it is told to stop; collects what was acknowledged."""

    def __init__(
        self, server: Server, topic: str, first: int = 0, *options: str, per_second: int | None = None
    ):
        self.acked: list[int] = []
        self.sent = first
        # Nil: as fast as it takes them.
        self.pause = 50 / per_second if per_second else 0
        self.errors = tempfile.TemporaryFile()
        self.stopping = threading.Event()
        self.process = server.popen(
            "produce",
            topic,
            "--print-acked",
            *options,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        self.writer = threading.Thread(target=self._write, daemon=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.writer.start()
        self.reader.start()

    def _write(self) -> None:
        try:
            while not self.stopping.is_set():
                self.process.stdin.write(b"%d\n" % self.sent)
                self.sent += 1
                if self.sent % 50 == 0:
                    self.process.stdin.flush()
                    self.stopping.wait(self.pause)
        except (BrokenPipeError, OSError, ValueError):
            pass
        finally:
            try:
                self.process.stdin.close()
            except OSError:
                pass

    def _read(self) -> None:
        for line in self.process.stdout:
            if line.endswith(b"\n"):
                self.acked.append(int(line))

    def said(self) -> str:
        """What it wrote to standard error."""
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def stop(self) -> int:
        """Ends the input and waits for the producer; its exit status."""
        self.stopping.set()
        self.writer.join(PATIENCE)
        status = self.process.wait(PATIENCE * 3)
        self.reader.join(PATIENCE)
        return status

    def abandon(self) -> None:
        """kill -9 of the producer: what it has printed stands."""
        self.stopping.set()
        self.process.kill()
        self.process.wait(PATIENCE)
        self.writer.join(PATIENCE)
        self.reader.join(PATIENCE)


class Reader:
    """`memq consume` from the beginning, until it is told to stop; collects what it printed."""

    def __init__(self, server: Server, topic: str, *options: str):
        self.values: list[bytes] = []
        self.errors = tempfile.TemporaryFile()
        self.process = server.popen(
            "consume",
            topic,
            "--from",
            "beginning",
            *options,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.values.append(line.rstrip(b"\n"))

    def said(self) -> str:
        """What it wrote to standard error."""
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def stop(self) -> int:
        """Ctrl-C; its exit status."""
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(PATIENCE)
        self.thread.join(PATIENCE)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)


class Disk:
    """A loop-mounted ext4 or xfs whose power can be cut: what was not flushed is gone afterwards."""

    def __init__(self, folder: Path, size: str = "3G", file_system: str = "ext4"):
        self.image = Path(folder) / "disk.img"
        self.mount_point = Path(folder) / "disk"
        self.mount_point.mkdir(parents=True)
        subprocess.run(["truncate", "-s", size, self.image], check=True)
        force = {"ext4": "-F", "xfs": "-f"}[file_system]
        subprocess.run([f"mkfs.{file_system}", "-q", force, self.image], check=True)
        self.mounted = False
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self.image, self.mount_point], check=True)
        self.mounted = True

    def cut_power(self) -> None:
        folder = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, FS_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_WITHOUT_FLUSH))
        finally:
            os.close(folder)

    def unmount(self) -> None:
        if self.mounted:
            wait_until(
                "the disk can be unmounted",
                lambda: subprocess.run(
                    ["umount", self.mount_point], stderr=subprocess.DEVNULL
                ).returncode
                == 0,
            )
            self.mounted = False

    def close(self) -> None:
        self.unmount()
        self.image.unlink(missing_ok=True)
        shutil.rmtree(self.mount_point, ignore_errors=True)
