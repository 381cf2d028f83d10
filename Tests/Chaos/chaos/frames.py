# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A wire in user space: hands Ethernet frames from one interface to another, later, and leaves some out.

    python -m chaos.frames OUTER INNER TO_MS FROM_MS JITTER_MS LOSS SEED

What comes in at INNER leaves at OUTER after TO_MS, what comes in at OUTER leaves at INNER after FROM_MS. Frames keep their order.
Says "ready" and goes on until it is killed.
"""

from __future__ import annotations

import random
import selectors
import socket
import sys
import time
from collections import deque

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_IGNORE_OUTGOING = 23
# Frames keep what the kernel knows of checksums and of segments that are to be cut later.
PACKET_VNET_HDR = 15
FRAME_MAX = 70_000
# Beyond that, frames are dropped, as a switch would.
WAITING_MAX = 20_000


def end(interface: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    opened.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
    opened.bind((interface, ETH_P_ALL))
    opened.setblocking(False)
    return opened


def main() -> None:
    outer, inner = end(sys.argv[1]), end(sys.argv[2])
    to_ms, from_ms, jitter_ms, loss = map(float, sys.argv[3:7])
    choose = random.Random(int(sys.argv[7]))
    ways = {inner: (outer, to_ms / 1e3, deque()), outer: (inner, from_ms / 1e3, deque())}
    selector = selectors.DefaultSelector()
    for source in ways:
        selector.register(source, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        due = min((waiting[0][0] for _, _, waiting in ways.values() if waiting), default=None)
        ready = selector.select(None if due is None else max(due - time.monotonic(), 0))
        now = time.monotonic()
        for key, _ in ready:
            _, delay, waiting = ways[key.fileobj]
            for _ in range(256):
                try:
                    frame = key.fileobj.recv(FRAME_MAX)
                except BlockingIOError:
                    break
                if choose.random() < loss or len(waiting) >= WAITING_MAX:
                    continue
                at = now + delay + choose.random() * jitter_ms / 1e3
                waiting.append((max(at, waiting[-1][0]) if waiting else at, frame))
        for target, _, waiting in ways.values():
            while waiting and waiting[0][0] <= now:
                try:
                    target.send(waiting.popleft()[1])
                except OSError:
                    # Its buffer is full, or the other end is being taken away: a lost frame.
                    pass


main()
