# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""gRPC stubs made from proto/, and what every client of ours does with them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import grpc

ROOT = Path(__file__).resolve().parents[3]
# Names are numbers here, and proxies of the environment are not for us. Back-off as short as a test's patience.
CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0), ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500), ("grpc.max_receive_message_length", 72 << 20),
    # One connection per channel, not one shared by all of the process.
    ("grpc.use_local_subchannel_pool", 1),
]


def make_stubs(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "proto/memq/v1").glob("*.proto"))
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--python_out={folder}",
         f"--grpc_python_out={folder}", *map(str, sources)],
        check=True,
    )


class Api:
    """`api.ingest_pb2` and so on, from a folder that make_stubs filled."""

    def __init__(self, folder: Path | str):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))

    def __getattr__(self, name):
        return importlib.import_module(f"memq.v1.{name}")

    def code(self, error) -> str:
        """An ErrorDetail's reason, such as NOT_LEADER."""
        return self.errors_pb2.ErrorCode.Name(error.code).removeprefix("ERROR_CODE_")


def channel(address: str):
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
