# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Loop-mounted disks: small enough to be filled, and with a power cord."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path

from .network import command

FS_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_WITHOUT_FLUSH = 2
UNMOUNT_SECONDS = 20
# A file system has less than this when filled.
LEFT_BYTES = 64 << 10


class Disk:
    def __init__(self, folder: Path, name: str, file_system: str, size: str = "1G"):
        self.image, self.folder = folder / f"{name}.img", folder / name
        self.folder.mkdir(parents=True)
        command("truncate", "-s", size, self.image)
        command(f"mkfs.{file_system}", "-q", {"ext4": "-F", "xfs": "-f"}[file_system], self.image)
        self.file_system = file_system
        self.mount()

    def mount(self) -> None:
        command("mount", "-o", "loop", self.image, self.folder)

    def unmount(self) -> None:
        end = time.monotonic() + UNMOUNT_SECONDS
        while command("umount", self.folder, check=False).returncode != 0:
            if time.monotonic() > end:
                raise RuntimeError(f"{self.folder} can't be unmounted")
            time.sleep(0.02)

    def cut_power(self) -> None:
        """What was not flushed is gone; every later write fails until the disk is mounted anew."""
        opened = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(opened, FS_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_WITHOUT_FLUSH))
        finally:
            os.close(opened)

    def fill(self) -> None:
        """Takes all the room there is."""
        with open(self.folder / "ballast", "ab") as ballast:
            size = 0
            step = 64 << 20
            while step >= 4096:
                try:
                    os.posix_fallocate(ballast.fileno(), size, step)
                    size += step
                except OSError:
                    step //= 2

    def empty(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)
