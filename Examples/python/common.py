# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""What the examples share: a connection to one of several servers, typed errors, the checksum of chunks."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parent / "build"))
try:
    import status_pb2
    from memq.v1 import errors_pb2
except ModuleNotFoundError:
    sys.exit("the stubs are missing: python make_stubs.py makes them")


class MemQError(Exception):
    """What a server refused, and why: the ErrorDetail that comes with every failed call."""

    def __init__(self, detail: errors_pb2.ErrorDetail):
        self.code = errors_pb2.ErrorCode.Name(detail.code).removeprefix("ERROR_CODE_")
        self.subject, self.message, self.retriable = detail.subject, detail.message, detail.retriable
        self.limit = detail.limit if detail.HasField("limit") else None
        self.actual = detail.actual if detail.HasField("actual") else None
        super().__init__(f"{self.code}: {self.subject}: {self.message}")

    @staticmethod
    def of(error: grpc.RpcError) -> MemQError | None:
        """The error in the details of a failed call: google.rpc.Status, with an ErrorDetail among its details.

        None when there is none, because no server of MemQ answered: nobody listens, the connection broke, the deadline passed.
        """
        for name, value in error.trailing_metadata() or ():
            if name == "grpc-status-details-bin":
                for any_message in status_pb2.Status.FromString(value).details:
                    detail = errors_pb2.ErrorDetail()
                    if any_message.Unpack(detail):
                        return MemQError(detail)
        return None


class Servers:
    """Any ingest of the cluster serves everything; when one is gone, the next one is asked."""

    def __init__(self, addresses: str | None = None):
        addresses = addresses or os.environ.get("MEMQ_SERVER") or "127.0.0.1:7460"
        self.addresses = addresses.split(",")
        self.channel = grpc.insecure_channel(self.addresses[0])

    def next(self) -> None:
        self.channel.close()
        self.addresses.append(self.addresses.pop(0))
        self.channel = grpc.insecure_channel(self.addresses[0])

    def retrying(self, call, seconds: float = 60):
        """The result of `call(channel)`, tried again while that can help.

        Only for calls that may be made twice: reads, idempotent produce, puts with an upload id.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                return call(self.channel)
            except grpc.RpcError as error:
                reason = MemQError.of(error)
                lost = error.code() == grpc.StatusCode.UNAVAILABLE
                if not (lost or (reason and reason.retriable)) or time.monotonic() > end:
                    raise reason or error
                if lost:
                    self.next()
            except MemQError as error:
                if not error.retriable or time.monotonic() > end:
                    raise
            time.sleep(0.1)


def _table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C in plain Python, some MB/s; the packages crc32c and google-crc32c use the processor's own instruction."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
