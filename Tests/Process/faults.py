# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Faults of a disk, injected into real processes: libraries that are preloaded, and what tells them what to do."""

import errno
import mmap
import struct
import subprocess
from pathlib import Path

from harness import ROOT

ENTRY = struct.Struct("16s96siiii")
ENTRIES = 8


def library(folder: Path, name: str) -> Path:
    """Tests/Process/NAME.c, compiled to be preloaded."""
    path = folder / f"{name}.so"
    if not path.exists():
        source = ROOT / f"Tests/Process/{name}.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], check=True)
    return path


class Faults:
    """Switches faults of a running process on and off; its environment goes with the process's start."""

    def __init__(self, folder: Path):
        self.path = folder / "faults"
        self.path.write_bytes(bytes(ENTRY.size * ENTRIES))
        with open(self.path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)
        self.environment = {
            "LD_PRELOAD": str(library(folder, "faulty_disk")), "FAULTY_DISK": str(self.path),
        }
        self.count = 0

    def set(self, call: str, path: str, number: int = errno.EIO, times: int = -1, bytes: int = 0) -> int:
        """Begins a fault: of `write`, `sync` or `read` on files whose path contains `path`. Gives its place."""
        at = self.count
        self.count += 1
        entry = ENTRY.pack(call.encode(), path.encode(), number, 0, 0, bytes)
        self.memory[at * ENTRY.size : (at + 1) * ENTRY.size] = entry
        # Last: from now on it counts.
        self._times(at, times)
        return at

    def _times(self, at: int, times: int) -> None:
        struct.pack_into("i", self.memory, at * ENTRY.size + 116, times)

    def stop(self, at: int) -> None:
        self._times(at, 0)

    def had(self, at: int) -> int:
        """How often it happened."""
        return struct.unpack_from("i", self.memory, at * ENTRY.size + 120)[0]
