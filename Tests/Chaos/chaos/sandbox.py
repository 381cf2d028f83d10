# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A run in namespaces of its own for processes, mounts and network: whatever ends it, kill -9 too, the kernel takes all of it down."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PREFIX = "memq-chaos-"
TOOLS = {
    "unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2", "tc": "iproute2", "nft": "nftables",
    "mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mount": "mount", "cc": "build-essential",
}
PR_SET_PDEATHSIG = 1
END_SECONDS = 60


class Refused(Exception):
    """This machine, or this user, can't do it; the text says why and what helps."""


def check_machine() -> None:
    if os.geteuid() != 0:
        raise Refused("needs root: it makes network namespaces and mounts disks (all of its own)")
    missing = {package for tool, package in TOOLS.items() if not shutil.which(tool)}
    if missing:
        raise Refused(f"these Debian packages are missing: {' '.join(sorted(missing))}; scripts/setup installs them")
    tried = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, text=True
    )
    if tried.returncode != 0:
        raise Refused(f"this machine does not let it make namespaces: {tried.stderr.strip()} (in a container: --privileged)")


def _sweep(base: Path) -> None:
    """Folders of runs that were killed: nobody holds their lock."""
    for folder in base.glob(PREFIX + "*"):
        try:
            with open(folder / "lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass


def run(arguments: list[str]) -> int:
    """Runs this program again inside, with `--inside FOLDER`; its exit status. The folder goes with it."""
    check_machine()
    base = Path(tempfile.gettempdir())
    _sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = open(folder / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    libc = ctypes.CDLL(None, use_errno=True)

    def with_parent():
        # Without us it ends, too, and the namespaces with it.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        outer = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc",
             sys.executable, "-m", "chaos", *arguments, "--inside", str(folder)],
            preexec_fn=with_parent, close_fds=True,
        )
        stopped = 0.0

        def stop(*_):
            # The one inside, which unshare waits for.
            nonlocal stopped
            if stopped:
                return
            stopped = time.monotonic()
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            for child in children:
                os.kill(int(child), signal.SIGTERM)

        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, stop)
        while True:
            try:
                return outer.wait(0.5)
            except subprocess.TimeoutExpired:
                if stopped and time.monotonic() > stopped + END_SECONDS:
                    outer.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()
