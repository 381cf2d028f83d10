# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""`memq serve` on a unix socket: its file, and who may take it."""

import os
import stat
import subprocess

import grpc

from harness import MEMQ, PATIENCE, Server


class SocketServer(Server):
    """Listens on a unix socket; the admin pages stay on a port."""

    def __init__(self, folder, name="data"):
        super().__init__(folder / name, "--admin-listen", "127.0.0.1:0")
        self.path = folder / "memq.sock"
        self.address = f"unix:{self.path}"


def test_a_socket_serves_and_goes_with_its_server_and_a_dead_ones_is_replaced(folder):
    server = SocketServer(folder)
    with server.start():
        assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o600
        server.cli("topic", "create", "events", "--partitions", "1")
        server.cli("produce", "events", stdin=b"a\nb\n")
        with grpc.insecure_channel(server.address) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert check(b"", timeout=PATIENCE) == b"\x08\x01"
        # Another server does not get the socket of a living one.
        command = [MEMQ, "serve", "--data", folder / "other", "--listen", server.address]
        second = subprocess.run(
            [*command, "--admin-listen", "127.0.0.1:0"], capture_output=True, text=True, timeout=PATIENCE
        )
        assert second.returncode == 1
        assert "another process listens there" in second.stderr
        assert server.values("events") == [b"a", b"b"]
        server.kill()
        assert server.path.exists()
        server.start()
        assert server.values("events") == [b"a", b"b"]
        assert server.stop() == 0
        assert not server.path.exists()
