# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""HTTP/2 by hand, for peers that behave as no library would let them."""

from __future__ import annotations

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK, PADDED = 1, 4, 1, 8
ERRORS = {
    0: "NO_ERROR", 1: "PROTOCOL_ERROR", 2: "INTERNAL_ERROR", 3: "FLOW_CONTROL_ERROR", 4: "SETTINGS_TIMEOUT",
    5: "STREAM_CLOSED", 6: "FRAME_SIZE_ERROR", 7: "REFUSED_STREAM", 8: "CANCEL", 9: "COMPRESSION_ERROR",
    11: "ENHANCE_YOUR_CALM",
}


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", length: int | None = None) -> bytes:
    length = len(payload) if length is None else length
    return struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header without an index, without Huffman."""

    def text(value: bytes) -> bytes:
        if len(value) < 127:
            return bytes([len(value)]) + value
        rest, out = len(value) - 127, [127]
        while rest >= 128:
            out.append(rest & 127 | 128)
            rest >>= 7
        return bytes([*out, rest]) + value

    return b"\0" + text(name) + text(value)


def request_block(path: str, extra: list[tuple[bytes, bytes]] | None = None) -> bytes:
    pairs = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"test"),
        (b"te", b"trailers"), (b"content-type", b"application/grpc"), *(extra or []),
    ]
    return b"".join(literal(name, value) for name, value in pairs)


class RawConnection:
    """A connection whose peer is us: preface and settings sent, unless `hello` is false."""

    def __init__(self, port: int, hello: bool = True, acknowledges: bool = True, patience: float = 60):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        if hello:
            # What the server announces counts once it is acknowledged.
            self.send(PREFACE + frame(SETTINGS))
            while self.read_frame()[0] != SETTINGS:
                pass
            if acknowledges:
                self.send(frame(SETTINGS, ACK))

    def send(self, data: bytes) -> bool:
        """False: the other side has had enough."""
        try:
            self.socket.sendall(data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False

    def request(self, stream: int, path: str, flags: int = END_HEADERS, extra=None) -> bool:
        return self.send(frame(HEADERS, flags, stream, request_block(path, extra)))

    def message(self, stream: int, body: bytes, flags: int = 0) -> bool:
        return self.send(frame(DATA, flags, stream, b"\0" + struct.pack(">I", len(body)) + body))

    def read_frame(self) -> tuple[int, int, int, bytes] | None:
        """Type, flags, stream, payload; None when the peer has closed."""
        head = self._take(9)
        if head is None:
            return None
        length = int.from_bytes(head[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        payload = self._take(length)
        return None if payload is None else (kind, flags, stream & 0x7FFFFFFF, payload)

    def _take(self, count: int) -> bytes | None:
        while len(self.buffer) < count:
            try:
                more = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not more:
                return None
            self.buffer += more
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def frames(self):
        while (got := self.read_frame()) is not None:
            yield got

    def ping(self) -> None:
        """Returns when everything before it was taken in."""
        assert self.send(frame(PING, 0, 0, b"memqping"))
        for kind, flags, _, payload in self.frames():
            if kind == PING and flags & ACK and payload == b"memqping":
                return
        raise AssertionError("closed instead of an answer to PING")

    def end(self) -> str:
        """Reads until the peer closes: the error of its GOAWAY, or `closed` when it sent none."""
        error = "closed"
        for kind, _, _, payload in self.frames():
            if kind == GOAWAY:
                error = ERRORS[int.from_bytes(payload[4:8], "big")]
        return error

    def reset_of(self, stream: int) -> str:
        """Reads until the peer resets the stream: the error."""
        for kind, _, of, payload in self.frames():
            if kind == RST_STREAM and of == stream:
                return ERRORS[int.from_bytes(payload, "big")]
        raise AssertionError("closed instead of a reset")

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "RawConnection":
        return self

    def __exit__(self, *_) -> None:
        self.close()
