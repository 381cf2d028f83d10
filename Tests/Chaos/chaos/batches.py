# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Reads uncompressed record batches v2: (offset, leader epoch, value) of each record."""

from __future__ import annotations

import struct
from typing import Iterator

# Base offset, length of what follows, leader epoch, magic, CRC, attributes, last offset delta, timestamps, producer id and epoch,
# base sequence, count.
HEADER = struct.Struct(">qiibIhiqqqhii")


class Malformed(Exception):
    pass


def varint(data: memoryview, at: int) -> tuple[int, int]:
    shift = value = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return (value >> 1) ^ -(value & 1), at
        shift += 7


def records(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    view, at = memoryview(data), 0
    while at < len(view):
        base, length, epoch, magic, _, attributes, _, _, _, _, _, _, count = HEADER.unpack_from(view, at)
        end = at + 12 + length
        if magic != 2 or attributes & 7 or end > len(view):
            raise Malformed(f"magic {magic}, attributes {attributes}, {length} bytes at {at} of {len(view)}")
        at += HEADER.size
        for _ in range(count):
            size, at = varint(view, at)
            following = at + size
            at += 1
            _, at = varint(view, at)
            delta, at = varint(view, at)
            key, at = varint(view, at)
            at += max(key, 0)
            value, at = varint(view, at)
            yield base + delta, epoch, bytes(view[at : at + max(value, 0)])
            at = following
        if at != end:
            raise Malformed(f"a batch of {length} bytes ends at {at}, not {end}")
