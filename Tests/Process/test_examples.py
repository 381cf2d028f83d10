# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Examples/python as people run them: against one server and against a local cluster."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster import Cluster
from harness import Server, sha256


@pytest.fixture(scope="module", params=["serve", "cluster"])
def place(request):
    """A server or a cluster, and how many copies its topics have."""
    path = Path(tempfile.mkdtemp(prefix="memq-test-"))
    with (Server(path / "data") if request.param == "serve" else Cluster(path)) as running:
        yield running, 1 if request.param == "serve" else 3
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def run(place, examples):
    server, _ = place

    def run(*arguments, stdin=b""):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=examples, input=stdin, capture_output=True,
            env={**os.environ, "MEMQ_SERVER": server.address}, timeout=180,
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr.decode()}"
        return done.stdout

    return run


def make(place, topic):
    server, copies = place
    server.cli("topic", "create", topic, "--replication-factor", copies)


def test_records(place, run):
    make(place, "events")
    values = [b"value %d" % n for n in range(1_234)]
    said = run("produce.py", "events", stdin=b"\n".join(values) + b"\n")
    assert b"1234 records acknowledged" in said
    assert run("consume.py", "events").splitlines() == values
    assert run("consume.py", "events", 0, 1_000, 3).splitlines() == values[1_000:1_003]
    assert place[0].values("events") == values


def test_files_and_ranges(place, run, tmp_path):
    make(place, "media")
    body = os.urandom(1_500_000)
    (tmp_path / "photo").write_bytes(body)
    assert b"1500000 bytes" in run("put.py", "media", tmp_path / "photo")
    run("get.py", "media", "photo", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == body
    run("get.py", "media", "photo", tmp_path / "part", 1_000_001, 70_000)
    assert (tmp_path / "part").read_bytes() == body[1_000_001:1_070_001]


def test_a_put_is_resumed(place, run, tmp_path):
    make(place, "resumed")
    body = os.urandom(1 << 20) * 18
    (tmp_path / "film").write_bytes(body)
    said = run("resume.py", "resumed", tmp_path / "film").decode()
    durable = int(said.split("broken off, ")[1].split()[0])
    begun = int(said.split("begins at ")[1].split()[0])
    assert 0 < durable <= begun
    (file,) = place[0].json("file", "list", "resumed")
    assert file["sha256"] == sha256(body)
    # No part of a small file is durable before all of it is.
    (tmp_path / "note").write_bytes(body[:1000])
    assert b"broken off, 0 bytes" in run("resume.py", "resumed", tmp_path / "note")
    assert {f["name"] for f in place[0].json("file", "list", "resumed")} == {"film", "note"}


def test_a_deadline(place, run):
    make(place, "quiet")
    assert b"DEADLINE_EXCEEDED" in run("deadline.py", "quiet")


def test_typed_errors(place, run):
    said = run("typed_error.py").decode()
    assert "NOT_FOUND" in said and "TOPIC_NOT_FOUND" in said and "subject    nowhere" in said
    assert "REPLICATION_FACTOR_INVALID" in said and "actual     99" in said
