#!/usr/bin/env python3
# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Makes Python stubs of MemQ's API from proto/ into the folder build beside this file."""

import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PROTO = HERE.parents[1] / "proto"


def make(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    sources = [*sorted(PROTO.glob("memq/v1/*.proto")), HERE / "status.proto"]
    status = protoc.main(
        [
            "protoc",
            f"-I{PROTO}",
            f"-I{HERE}",
            # google/protobuf/*.proto come with grpcio-tools.
            f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            *map(str, sources),
        ]
    )
    if status:
        sys.exit(status)


if __name__ == "__main__":
    make(HERE / "build")
    print(f"stubs are in {HERE / 'build'}")
