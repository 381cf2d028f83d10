# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Long columns of numbers in files that are gone with the process: a history of any length costs the heap nothing."""

from __future__ import annotations

import mmap
import tempfile

FIRST_CAPACITY = 4096


class Column:
    """Signed 64-bit numbers, or bytes (`kind` "q" or "B"); grows at its end."""

    def __init__(self, folder: str | None = None, kind: str = "q"):
        self.kind = kind
        self.width = 8 if kind == "q" else 1
        self.count = 0
        self.file = tempfile.TemporaryFile(dir=folder)
        self._map(FIRST_CAPACITY)

    def _map(self, capacity: int) -> None:
        self.capacity = capacity
        self.file.truncate(capacity * self.width)
        self.memory = mmap.mmap(self.file.fileno(), capacity * self.width)
        self.view = memoryview(self.memory).cast(self.kind)

    def _grow(self, capacity: int) -> None:
        self.view.release()
        self.memory.close()
        self._map(capacity)

    def append(self, value: int) -> None:
        if self.count == self.capacity:
            self._grow(2 * self.capacity)
        self.view[self.count] = value
        self.count += 1

    def extend_to(self, count: int) -> None:
        """Zeros up to a length."""
        if count > self.capacity:
            self._grow(max(count, 2 * self.capacity))
        self.count = max(self.count, count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.view[index]

    def __setitem__(self, index: int, value: int) -> None:
        if not 0 <= index < self.count:
            raise IndexError(index)
        self.view[index] = value

    def close(self) -> None:
        self.view.release()
        self.memory.close()
        self.file.close()
