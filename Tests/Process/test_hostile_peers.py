# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Peers that break HTTP/2, or use it to hurt: each is answered as docs/protocols/rpc.md says, and others go on."""

import itertools
import os
import socket
import struct
import time
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from harness import PATIENCE
from interop import InteropServer, Stub, load_messages
from raw_http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ERRORS,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    RawConnection,
    frame,
    literal,
    request_block,
)

MIB = 1 << 20
# One attacker at a time: a stream window of 8 MiB, and what the allocator keeps.
ATTACK_MEMORY_MAX = 64 * MIB
UNARY = "/grpc.testing.TestService/EmptyCall"
STREAM = "/grpc.testing.TestService/StreamingInputCall"
HOLD = "/memq.testing.MemoryService/Hold"
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def m(tmp_path_factory):
    return load_messages(tmp_path_factory.mktemp("testing"))


@pytest.fixture(scope="module")
def ours():
    with InteropServer() as server:
        yield server


@pytest.fixture(scope="module")
def neighbour(ours, m):
    """Another client's channel, connected before any attack."""
    with grpc.insecure_channel(ours.address) as channel:
        stub = Stub(channel, m)
        stub.empty(m.Empty(), timeout=PATIENCE)
        yield lambda: stub.empty(m.Empty(), timeout=PATIENCE)


def cpu_seconds(server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@pytest.fixture(autouse=True)
def bounded(ours, neighbour, request):
    """Around every test: the neighbour is served, memory stays bounded; what it cost is printed."""
    neighbour()
    ours.restart_peak()
    memory, cpu = ours.memory(), cpu_seconds(ours)
    yield
    neighbour()
    grown = ours.memory("VmHWM") - memory
    print(f"{request.node.name}: {cpu_seconds(ours) - cpu:.2f} CPU s, {grown / MIB:.1f} MiB")
    assert grown < ATTACK_MEMORY_MAX


def word(value: int) -> bytes:
    return struct.pack(">I", value)


def opened(stream: int = 1, path: str = STREAM) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, request_block(path))


# name: the bytes after preface and settings, and the error of the GOAWAY that follows.
BROKEN = {
    "a frame above the size we announce": (frame(DATA, 0, 1, length=(256 << 10) + 1), "FRAME_SIZE_ERROR"),
    "a ping of 7 bytes": (frame(PING, 0, 0, bytes(7)), "FRAME_SIZE_ERROR"),
    "settings of 5 bytes": (frame(SETTINGS, 0, 0, bytes(5)), "FRAME_SIZE_ERROR"),
    "an acknowledgement of settings with settings": (frame(SETTINGS, ACK, 0, bytes(6)), "FRAME_SIZE_ERROR"),
    "a window update of 3 bytes": (frame(WINDOW_UPDATE, 0, 0, bytes(3)), "FRAME_SIZE_ERROR"),
    "a reset of 3 bytes": (opened() + frame(RST_STREAM, 0, 1, bytes(3)), "FRAME_SIZE_ERROR"),
    "a priority of 4 bytes": (frame(PRIORITY, 0, 1, bytes(4)), "FRAME_SIZE_ERROR"),
    "settings on a stream": (frame(SETTINGS, 0, 1), "PROTOCOL_ERROR"),
    "a window beyond 2^31-1 in settings": (
        frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)), "FLOW_CONTROL_ERROR"),
    "a frame size below 16 KiB in settings": (frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 1)), "PROTOCOL_ERROR"),
    "33 settings in one frame": (
        frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 1) * 33), "ENHANCE_YOUR_CALM"),
    "a window update of 0": (frame(WINDOW_UPDATE, 0, 0, word(0)), "PROTOCOL_ERROR"),
    "a connection window beyond 2^31-1": (
        frame(WINDOW_UPDATE, 0, 0, word(0x7FFFFFFF)) * 2, "FLOW_CONTROL_ERROR"),
    "a push promise": (opened() + frame(PUSH, END_HEADERS, 1, word(2)), "PROTOCOL_ERROR"),
    "data on stream 0": (frame(DATA, 0, 0, b"x"), "PROTOCOL_ERROR"),
    "data on a stream that was never opened": (frame(DATA, 0, 5, b"x"), "PROTOCOL_ERROR"),
    "an even stream": (opened(2), "PROTOCOL_ERROR"),
    "padding longer than its frame": (opened() + frame(DATA, PADDED, 1, b"\x05abc"), "PROTOCOL_ERROR"),
    "a continuation of nothing": (frame(CONTINUATION, END_HEADERS, 1, b""), "PROTOCOL_ERROR"),
    "a ping inside a header block": (
        frame(HEADERS, 0, 1, request_block(UNARY)) + frame(PING, 0, 0, bytes(8)), "PROTOCOL_ERROR"),
    "an index beyond the tables": (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\x7f"), "COMPRESSION_ERROR"),
    "a table larger than allowed": (
        frame(HEADERS, END_HEADERS, 1, b"\x3f\xe1\xff\x7f" + request_block(UNARY)), "COMPRESSION_ERROR"),
    "a Huffman code that is none": (
        frame(HEADERS, END_HEADERS, 1, b"\x00\x84\xff\xff\xff\xff\x00"), "COMPRESSION_ERROR"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_connection_that_breaks_http2_ends_with_its_error(ours, name):
    data, error = BROKEN[name]
    with RawConnection(ours.port) as peer:
        peer.send(data)
        assert peer.end() == error


def test_a_stream_window_beyond_its_limit_ends_the_stream_alone(ours):
    with RawConnection(ours.port) as peer:
        peer.send(opened() + frame(WINDOW_UPDATE, 0, 1, word(0x7FFFFFFF)) * 2)
        assert peer.reset_of(1) == "FLOW_CONTROL_ERROR"
        peer.ping()


def test_a_stream_below_an_earlier_one_is_ignored(ours):
    """It may be one that was closed and forgotten."""
    with RawConnection(ours.port) as peer:
        peer.send(opened(5) + opened(3) + frame(DATA, END_STREAM, 5))
        frames = list(until_end_of(peer, 5))
        assert all(of != 3 for _, _, of, _ in frames)
        peer.ping()


def test_data_beyond_the_window_is_cut_off(ours):
    """The handler takes nothing, so no credit returns; the peer sends 16 MiB into a window of 8."""
    with RawConnection(ours.port) as peer:
        assert peer.request(1, HOLD)
        for _ in range(64):
            if not peer.message(1, bytes((256 << 10) - 5)):
                break
        assert peer.reset_of(1) == "FLOW_CONTROL_ERROR"
        peer.ping()


def test_streams_beyond_the_limit_are_refused_and_the_others_served(ours):
    with RawConnection(ours.port, acknowledges=False) as peer:
        peer.send(b"".join(opened(2 * n + 1, HOLD) for n in range(1100)))
        resets = itertools.islice((got for got in peer.frames() if got[0] == RST_STREAM), 100)
        refused = {of: ERRORS[int.from_bytes(payload, "big")] for _, _, of, payload in resets}
        assert refused == {2 * n + 1: "REFUSED_STREAM" for n in range(1000, 1100)}
        peer.send(frame(DATA, END_STREAM, 1))
        assert any(kind == HEADERS and of == 1 for kind, _, of, _ in until_end_of(peer, 1))


def test_streams_beyond_an_acknowledged_limit_end_the_connection(ours):
    with RawConnection(ours.port) as peer:
        peer.ping()
        peer.send(b"".join(opened(2 * n + 1, HOLD) for n in range(1100)))
        assert peer.end() == "PROTOCOL_ERROR"


def until_end_of(peer, stream):
    for got in peer.frames():
        yield got
        if got[2] == stream and got[0] in (HEADERS, DATA) and got[1] & END_STREAM:
            return


# Floods: what is sent over and over, how often at most. Nothing is read meanwhile, so that answers pile up, too.
FLOODS = {
    "settings": (frame(SETTINGS), 100_000),
    "pings": (frame(PING, 0, 0, bytes(8)), 100_000),
    "empty data frames": (frame(DATA, 0, 1), 100_000),
    "continuations": (frame(CONTINUATION, 0, 1, b""), 100_000),
    "resets": (None, 20_000),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_the_connection(ours, name):
    data, count = FLOODS[name]
    with RawConnection(ours.port) as peer:
        if name == "empty data frames":
            peer.send(opened())
        if name == "continuations":
            peer.send(frame(HEADERS, 0, 1, request_block(UNARY)))
        if name == "resets":
            parts = [opened(2 * n + 1) + frame(RST_STREAM, 0, 2 * n + 1, word(8)) for n in range(count)]
        else:
            parts = [data * 1000] * (count // 1000)
        for part in parts:
            if not peer.send(part):
                break
        assert peer.end() in ("ENHANCE_YOUR_CALM", "INTERNAL_ERROR", "PROTOCOL_ERROR", "closed")


@pytest.mark.parametrize("kind", [PRIORITY, WINDOW_UPDATE])
def test_a_flood_of_frames_that_do_nothing_ends_the_connection(ours, kind):
    payload = word(0) + b"\x10" if kind == PRIORITY else word(1)
    with RawConnection(ours.port) as peer:
        peer.send(opened())
        for _ in range(100):
            if not peer.send(frame(kind, 0, 1, payload) * 1000):
                break
        assert peer.end() in ("ENHANCE_YOUR_CALM", "closed")


def test_header_bombs_are_refused_and_cost_no_memory(ours):
    """An entry of 4 KB in the dynamic table, named 15,000 times by a byte each: 60 MB of headers in one frame."""
    with RawConnection(ours.port) as peer:
        entry = b"\x40" + b"\x01x" + b"\x7f" + bytes([(3900 - 127) & 127 | 128, (3900 - 127) >> 7]) + b"v" * 3900
        block = request_block(UNARY) + entry + b"\xbe" * 15_000
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block))
        frames = list(until_end_of(peer, 1))
        # A status and no message.
        assert frames[-1][0] == HEADERS and not any(kind == DATA for kind, *_ in frames)
        peer.ping()


def test_headers_above_the_limit_are_refused_and_the_connection_goes_on(ours):
    with RawConnection(ours.port) as peer:
        extra = [(b"name-%d" % n, b"v" * 1000) for n in range(20)]
        assert peer.request(1, UNARY, END_HEADERS | END_STREAM, extra)
        frames = list(until_end_of(peer, 1))
        assert frames[-1][0] == HEADERS and not any(kind == DATA for kind, *_ in frames)
        peer.ping()


def test_peers_that_stop_in_the_middle_are_closed_or_hold_nothing_up(ours, neighbour):
    """A preface, a frame, a header block and a body that never become whole, all at once."""
    body = b"\0" + word(1 << 20) + b"x"
    starts = {
        "nothing": (False, b""),
        "half a preface": (False, PREFACE[:10]),
        "a preface without settings": (False, PREFACE),
    }
    peers = {name: RawConnection(ours.port, hello=False) for name in starts}
    waiting = {
        "a frame's head": frame(PING, 0, 0, bytes(8))[:5],
        "half a header block": frame(HEADERS, 0, 1, request_block(UNARY)[:20]),
        "a body": opened() + frame(DATA, 0, 1, body),
    }
    slow = {name: RawConnection(ours.port) for name in waiting}
    try:
        for name, (_, data) in starts.items():
            peers[name].send(data)
        for name, data in waiting.items():
            slow[name].send(data)
        start = time.monotonic()
        with futures.ThreadPoolExecutor(len(peers)) as pool:
            ends = dict(zip(peers, pool.map(lambda peer: peer.end(), peers.values())))
        print(f"closed after {time.monotonic() - start:.1f} s: {ends}")
        # So are a frame, other than DATA, and a header block that are not ended.
        assert slow["a frame's head"].end() == slow["half a header block"].end() == "ENHANCE_YOUR_CALM"
        neighbour()
        # A byte a time changes nothing for others.
        for byte in bytes(20):
            for peer in slow.values():
                peer.send(bytes([byte]))
            neighbour()
    finally:
        for peer in [*peers.values(), *slow.values()]:
            peer.close()


def test_peers_that_vanish_leave_nothing_behind(ours):
    """500 connections with a call each, cut without a word."""
    def vanish(_):
        peer = RawConnection(ours.port)
        peer.send(opened(1, HOLD) + frame(DATA, 0, 1, b"\0" + word(100_000) + bytes(50_000)))
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()

    for _ in range(500):
        vanish(None)


def test_a_table_of_headers_cannot_be_grown_by_many_names(ours):
    """Names and values that are indexed, 10,000 of them over many requests: the table keeps 4 KiB."""
    with RawConnection(ours.port) as peer:
        for stream in range(1, 401, 2):
            extra = b"".join(b"\x40" + literal(b"n%d-%d" % (stream, n), b"v" * 200)[1:] for n in range(50))
            peer.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, request_block(UNARY) + extra))
        assert sum(1 for kind, _, of, _ in until_end_of(peer, 399) if kind == HEADERS) >= 200
