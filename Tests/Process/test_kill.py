# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""kill -9 at every step: what was acknowledged is there afterwards, byte for byte."""

import os
import random
import subprocess
import threading

import pytest

from harness import AckedProducer, Server, sha256, wait_until


def test_records_survive_kills_under_load(folder):
    with Server(folder / "data") as server:
        server.cli("topic", "create", "events", "--partitions", "4")
        acked: list[int] = []
        first = 0
        for round_number in range(4):
            producer = AckedProducer(server, "events", first)
            goal = random.Random(round_number).randint(200, 20_000)
            wait_until("some are acknowledged", lambda: len(producer.acked) > goal)
            server.kill()
            producer.abandon()
            acked += producer.acked
            first = producer.sent
            server.start()
        values = [int(v) for v in server.values("events")]
        assert set(acked) <= set(values)
        assert len(values) == len(set(values)), "an idempotent producer's records are there once"


def test_a_producer_goes_on_over_a_restart_and_nothing_is_lost_or_doubled(folder):
    with Server(folder / "data") as server:
        server.cli("topic", "create", "events", "--partitions", "3")
        producer = AckedProducer(server, "events")
        wait_until("some are acknowledged", lambda: len(producer.acked) > 2_000)
        server.kill()
        server.start()
        before = len(producer.acked)
        wait_until("it goes on", lambda: len(producer.acked) > before + 2_000)
        assert producer.stop() == 0
        assert producer.acked and sorted(producer.acked) == list(range(producer.sent))
        assert sorted(int(v) for v in server.values("events")) == list(range(producer.sent))


def test_files_offsets_and_objects_survive_a_kill(folder):
    small = os.urandom(3_000)
    large = os.urandom(1 << 20) * 20
    (folder / "small").write_bytes(small)
    (folder / "large").write_bytes(large)
    with Server(folder / "data") as server:
        server.cli("topic", "create", "media", "--scan", "gate")
        server.cli("topic", "create", "cold", "--set", "local.retention.bytes=0")
        server.cli("produce", "cold", stdin=b"".join(b"%d\n" % n for n in range(5_000)))
        server.cli("file", "put", "media", folder / "small")
        server.cli("file", "put", "media", folder / "large")
        group = ("consume", "cold", "--group", "g", "--from", "beginning", "--max", "1234")
        server.cli(*group)
        server.kill()
        server.start()
        server.cli("upload", "flush", "cold")
        server.kill()
        server.start()
        assert [f["name"] for f in server.json("file", "list", "media")] == ["large", "small"]
        for name, want in (("small", small), ("large", large)):
            got = server.cli("file", "get", "media", name, "-o", "-").stdout
            assert sha256(got) == sha256(want)
        assert sorted(int(v) for v in server.values("cold")) == list(range(5_000))
        rest = server.cli("consume", "cold", "--group", "g", "--until-end").stdout.splitlines()
        assert len(rest) == 5_000 - 1234
        assert server.stop() == 0


@pytest.mark.parametrize("megabytes", [64])
def test_a_put_goes_on_after_a_kill_in_the_middle(folder, megabytes):
    data = os.urandom(1 << 20) * megabytes
    path = folder / "body"
    path.write_bytes(data)
    with Server(folder / "data") as server:
        server.cli("topic", "create", "media")
        put = server.popen("file", "put", "media", path, stderr=subprocess.PIPE)
        bodies = server.data / "objects"

        def some_bytes_are_there():
            sizes = [f.stat().st_size for f in bodies.rglob("*") if f.is_file()]
            return max(sizes, default=0) > 17 << 20 or put.poll() is not None

        wait_until("a part is written", some_bytes_are_there, pause=0.005)
        server.kill()
        server.start()
        _, errors = put.communicate(timeout=120)
        assert put.returncode == 0, errors.decode()
        got = server.cli("file", "get", "media", "body", "-o", "-").stdout
        assert sha256(got) == sha256(data)
