# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A local cluster that loses processes under load: records carry numbers, files carry digests."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster import NAMES, Cluster
from harness import EICAR, PATIENCE, AckedProducer, Reader, sha256, wait_until

# Copies of each partition.
COPIES = os.environ.get("MEMQ_TEST_COPIES", "3")
# How long metadata is away, by the way it goes.
AWAY_SECONDS = {"stands still": 60.0, "killed": 10.0}
# Records per second of a load that runs for long.
PACE = 2_000


@pytest.fixture
def cluster(folder):
    with Cluster(folder) as running:
        yield running


def make(cluster, topic, *options):
    cluster.cli("topic", "create", topic, "--replication-factor", COPIES, *options)


def check_all_there(cluster, topic, producer):
    """Every number that was sent is there once, and no partition has a gap or an offset twice."""
    assert sorted(producer.acked) == list(range(producer.sent))
    check_once(cluster, topic, producer.sent)


def check_once(cluster, topic, count):
    out = cluster.cli(
        "consume", topic, "--from", "beginning", "--until-end", "--format", "%p %o %v"
    ).stdout.splitlines()
    rows = [tuple(map(int, line.split())) for line in out]
    assert sorted(value for _, _, value in rows) == list(range(count))
    for partition in {row[0] for row in rows}:
        offsets = [offset for at, offset, _ in rows if at == partition]
        assert offsets == list(range(len(offsets))), f"partition {partition}"


def grows(what, acked, by=500, patience=PATIENCE):
    """Waits until more is acknowledged."""
    goal = len(acked) + by
    wait_until(what, lambda: len(acked) >= goal, patience)


def test_a_killed_leaders_partitions_go_on_and_it_rejoins(cluster):
    cluster.cli("topic", "create", "events", "--partitions", "6", "--replication-factor", "3")
    partitions = cluster.json("cluster", "partitions", "events")
    assert all(len(p["replicas"]) == 3 and len(p["isr"]) == 3 for p in partitions)
    nodes = {cluster.node(name)["id"]: name for name in NAMES if name.startswith("replication")}
    assert {p["leader"] for p in partitions} == set(nodes), "leaders are spread"
    producer = AckedProducer(cluster, "events", per_second=PACE)
    reader = Reader(cluster, "events")
    for victim, name in nodes.items():
        grows("records are acknowledged", producer.acked)
        cluster.kill_one(name)
        # Each partition, also those it led: a record more than there were.
        before = {p["partition"]: p["high_watermark"] or 0 for p in partitions}

        def all_go_on():
            now = cluster.json("cluster", "partitions", "events")
            return all(
                p["leader"] not in (None, victim) and victim not in p["isr"]
                and p["high_watermark"] is not None and p["high_watermark"] > before[p["partition"]]
                for p in now
            )

        wait_until(f"all partitions go on without {name}", all_go_on, 10)
        grows("producing goes on", producer.acked, patience=10)
        seen = len(reader.values)
        wait_until("consuming goes on", lambda: len(reader.values) > seen, 10)
        cluster.up()

        def is_whole():
            now = cluster.json("cluster", "partitions", "events")
            return all(len(p["isr"]) == 3 for p in now) and now

        partitions = wait_until(f"{name} has caught up and is in sync again", is_whole)
    assert producer.stop() == 0, producer.said()
    wait_until("all are consumed", lambda: len(reader.values) >= producer.sent)
    assert reader.stop() == 0, reader.said()
    assert sorted(map(int, reader.values)) == list(range(producer.sent))
    check_all_there(cluster, "events", producer)


def test_the_other_uploader_takes_over_a_killed_ones_leases(cluster):
    make(cluster, "events", "--partitions", "4", "--set", "local.retention.bytes=0")
    producer = AckedProducer(cluster, "events", per_second=PACE)
    grows("records are acknowledged", producer.acked)
    uploaders = {cluster.node(name)["id"]: name for name in ("uploader-1", "uploader-2")}

    def holder():
        (group,) = cluster.json("upload", "status")["groups"]
        return group["holder"]

    for _ in range(2):
        first = wait_until("the group has a holder", holder)
        flush = cluster.popen("upload", "flush", "events", stderr=subprocess.DEVNULL)
        cluster.kill_one(uploaders[first])
        began = time.monotonic()
        second = wait_until("the other one holds it", lambda: (now := holder()) != first and now, 15)
        assert uploaders[second] != uploaders[first] and time.monotonic() - began < 15
        flush.wait(PATIENCE)
        grows("producing goes on", producer.acked)
        cluster.cli("upload", "flush", "events")
        cluster.up()
        uploaders = {cluster.node(name)["id"]: name for name in ("uploader-1", "uploader-2")}
    assert producer.stop() == 0, producer.said()
    cluster.cli("upload", "flush", "events")
    partitions = cluster.json("cluster", "partitions", "events")
    assert [p["uploaded_offset"] for p in partitions] == [p["high_watermark"] for p in partitions]
    # Read from objects only: a lost range would be a gap, one announced twice would stand there twice.
    check_all_there(cluster, "events", producer)


def test_files_wait_for_a_killed_scanner_and_none_slips_through(cluster, folder):
    make(cluster, "media", "--scan", "gate")
    contents = {
        "inline": b"harmless", "body": os.urandom(300_000), "parts": os.urandom(1 << 20) * 17,
        "eicar.com": EICAR,
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    cluster.cli("file", "put", "media", folder / "inline", "--name", "before")

    def names():
        return sorted(f["name"] for f in cluster.json("file", "list", "media"))

    cluster.kill_one("scanner-1")
    puts = {
        name: cluster.popen("file", "put", "media", folder / name, stderr=subprocess.PIPE)
        for name in contents
    }
    for name, put in puts.items():
        _, errors = put.communicate(timeout=PATIENCE)
        assert put.returncode == 1 and b"SCAN_HELD" in errors, (name, errors)
    assert names() == ["before"]
    assert len(cluster.json("consume", "media", "--from", "beginning", "--until-end")) == 1
    # One that is there for a scanner in time.
    waiting = cluster.popen("file", "put", "media", folder / "body", "--name", "waited", stderr=subprocess.PIPE)
    cluster.up()
    _, errors = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 0, errors.decode()
    published = ["before", "body", "inline", "parts", "waited"]
    wait_until("all are judged", lambda: names() == published)
    wait_until("the bad one, too", lambda: cluster.json("quarantine", "list", "media"))
    assert [e["name"] for e in cluster.json("quarantine", "list", "media")] == ["eicar.com"]
    assert names() == published
    assert all(f["verdict"] == "clean" for f in cluster.json("file", "list", "media"))
    for name in ("inline", "body", "parts"):
        got = cluster.cli("file", "get", "media", name, "-o", "-").stdout
        assert sha256(got) == sha256(contents[name])


def test_clients_move_to_the_other_ingest(cluster):
    make(cluster, "events", "--partitions", "4")
    producer = AckedProducer(cluster, "events", per_second=PACE)
    reader = Reader(cluster, "events")
    for name in ("ingest-1", "ingest-2"):
        grows("records are acknowledged", producer.acked)
        cluster.kill_one(name)
        grows(f"producing goes on without {name}", producer.acked, patience=10)
        seen = len(reader.values)
        wait_until(f"consuming goes on without {name}", lambda: len(reader.values) > seen + 500, 10)
        cluster.up()
    assert producer.stop() == 0, producer.said()
    wait_until("all are consumed", lambda: len(reader.values) >= producer.sent)
    assert reader.stop() == 0, reader.said()
    assert sorted(map(int, reader.values)) == list(range(producer.sent))
    check_all_there(cluster, "events", producer)


def test_a_half_done_put_is_resumed_on_the_other_ingest(cluster, folder, examples):
    make(cluster, "media")
    data = os.urandom(1 << 20) * 40
    (folder / "film").write_bytes(data)
    put = subprocess.Popen(
        [sys.executable, "put.py", "media", folder / "film"], cwd=examples, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "MEMQ_SERVER": cluster.address},
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(put.stdout.readline, b"")), daemon=True)
    reader.start()
    durable = wait_until(
        "a part is durable", lambda: [line for line in lines if b"durable below" in line], PATIENCE * 2
    )
    acknowledged = int(durable[0].split()[-1])
    assert acknowledged > 0
    cluster.kill_one("ingest-1")
    status = put.wait(PATIENCE * 3)
    reader.join(PATIENCE)
    assert status == 0, put.stderr.read().decode()
    begins = [int(line.split()[-1]) for line in lines if b"begins at" in line]
    assert begins[0] == 0 and begins[-1] >= acknowledged
    (file,) = cluster.json("file", "list", "media", "--server", cluster.address.split(",")[1])
    assert file["sha256"] == sha256(data)
    got = cluster.cli("file", "get", "media", "film", "-o", "-").stdout
    assert sha256(got) == sha256(data)


@pytest.mark.parametrize("way", ["stands still", "killed"])
def test_records_flow_while_metadata_is_away_and_changes_happen_later(cluster, way):
    make(cluster, "events", "--partitions", "4")
    cluster.cli("consume", "events", "--group", "g", "--from", "beginning", "--until-end")
    producer = AckedProducer(cluster, "events", per_second=PACE)
    reader = Reader(cluster, "events")
    grows("records are acknowledged", producer.acked)
    before = {n["id"]: (n["epoch"], n["state"]) for n in cluster.json("cluster", "nodes") if n["service"] != "metadata"}
    if way == "killed":
        cluster.kill_one("metadata-1")
    else:
        cluster.signal("metadata-1", signal.SIGSTOP)
    change = cluster.popen(
        "topic", "create", "later", "--replication-factor", COPIES, stderr=subprocess.PIPE
    )
    end = time.monotonic() + AWAY_SECONDS[way]
    while time.monotonic() < end:
        seen = len(reader.values)
        grows("producing goes on", producer.acked, patience=10)
        wait_until("consuming goes on", lambda: len(reader.values) > seen, 10)
        # A new consumer, too: all it needs is known.
        got = cluster.cli("consume", "events", "--from", "beginning", "--max", "10").stdout
        assert len(got.splitlines()) == 10
    if way == "killed":
        cluster.up()
    else:
        cluster.signal("metadata-1", signal.SIGCONT)
    cluster.wait_ready()
    # It waited, or gave up with an outcome it did not know.
    _, errors = change.communicate(timeout=PATIENCE)
    if change.returncode != 0:
        assert b"may be retried" in errors, errors
        again = cluster.cli("topic", "create", "later", "--replication-factor", COPIES, check=False)
        assert again.returncode == 0 or b"TOPIC_EXISTS" in again.stderr
    cluster.cli("produce", "later", stdin=b"one\n")
    nodes = {n["id"]: (n["epoch"], n["state"]) for n in cluster.json("cluster", "nodes") if n["service"] != "metadata"}
    assert nodes == before, "nobody was expired by it"
    assert producer.stop() == 0, producer.said()
    wait_until("all are consumed", lambda: len(reader.values) >= producer.sent)
    assert reader.stop() == 0, reader.said()
    assert sorted(map(int, reader.values)) == list(range(producer.sent))
    check_all_there(cluster, "events", producer)


def test_each_service_is_restarted_alone_under_load_and_no_client_fails(cluster, folder):
    make(cluster, "events", "--partitions", "4")
    make(cluster, "media", "--scan", "gate")
    (folder / "body").write_bytes(os.urandom(1_000_000))
    producer = AckedProducer(cluster, "events", per_second=PACE)
    reader = Reader(cluster, "events")
    for number, name in enumerate(NAMES):
        grows("records are acknowledged", producer.acked)
        put = cluster.popen(
            "file", "put", "media", folder / "body", "--name", f"{number}", stderr=subprocess.PIPE
        )
        took = cluster.stop_one(name)
        assert took < 10, f"{name} took {took:.1f} s to end"
        cluster.up()
        _, errors = put.communicate(timeout=PATIENCE * 2)
        assert put.returncode == 0, f"a put while {name} restarted: {errors.decode()}"
        grows(f"producing goes on after {name} restarted", producer.acked)
    assert producer.stop() == 0, producer.said()
    wait_until("all are consumed", lambda: len(reader.values) >= producer.sent)
    assert reader.stop() == 0, reader.said()
    assert sorted(map(int, reader.values)) == list(range(producer.sent))
    check_all_there(cluster, "events", producer)
    assert len(cluster.json("file", "list", "media")) == len(NAMES)


def test_everything_is_there_after_all_processes_were_killed_at_once(cluster, folder):
    make(cluster, "events", "--partitions", "4")
    make(cluster, "media", "--scan", "gate")
    body = os.urandom(2_000_000)
    (folder / "body").write_bytes(body)
    cluster.cli("file", "put", "media", folder / "body")
    producer = AckedProducer(cluster, "events")
    grows("records are acknowledged", producer.acked, 2_000)
    for name in NAMES:
        cluster.signal(name, signal.SIGKILL)
    producer.abandon()
    cluster.up()
    values = [int(v) for v in cluster.values("events")]
    assert set(producer.acked) <= set(values) and len(values) == len(set(values))
    got = cluster.cli("file", "get", "media", "body", "-o", "-").stdout
    assert sha256(got) == sha256(body)
    # It goes on as before.
    producer = AckedProducer(cluster, "events", 10_000_000)
    grows("records are acknowledged", producer.acked)
    assert producer.stop() == 0, producer.said()


def test_the_first_lines_work_with_three_copies(cluster, folder):
    """What works against one process works here, word for word but for the factor."""
    copies = ("--replication-factor", COPIES)
    numbers = [b"%d" % n for n in range(1, 100_001)]
    assert cluster.cli("cluster", "status").returncode == 0
    cluster.cli("topic", "create", "events", "--partitions", "4", *copies)
    cluster.cli("produce", "events", stdin=b"\n".join(numbers) + b"\n")
    out = cluster.cli(
        "consume", "events", "--from", "beginning", "--max", "100000", "--format", "%v"
    ).stdout.splitlines()
    assert sorted(out, key=int) == numbers
    group = ("consume", "events", "--from", "beginning", "--until-end", "--group", "g1")
    assert len(cluster.cli(*group, "--format", "%p %o %v").stdout.splitlines()) == 100_000
    assert cluster.cli(*group).stdout == b""

    cluster.cli("topic", "create", "media", "--scan", "gate", *copies)
    headers = Path("/usr/include/linux")
    cluster.cli("file", "put", "media", "--recursive", headers)
    files = {
        str(p.relative_to(headers)): p.read_bytes()
        for p in headers.rglob("*")
        if p.is_file() and not p.is_symlink()
    }
    listed = cluster.json("file", "list", "media")
    assert {f["name"]: f["sha256"] for f in listed} == {n: sha256(b) for n, b in files.items()}
    name = max(files, key=lambda name: len(files[name]))
    cluster.cli("file", "get", "media", name, "-o", folder / "out")
    assert (folder / "out").read_bytes() == files[name]
    (folder / "eicar.com").write_bytes(EICAR)
    refused = cluster.cli("file", "put", "media", folder / "eicar.com", check=False)
    assert refused.returncode == 3 and b"eicar" in refused.stderr.lower()
    assert [entry["name"] for entry in cluster.json("quarantine", "list", "media")] == ["eicar.com"]
    assert cluster.cli("file", "get", "media", "eicar.com", "-o", "-", check=False).returncode == 1

    cluster.cli("upload", "flush", "events")
    rows = cluster.json("upload", "status", "events")["partitions"]
    assert sum(row["uploaded_offset"] for row in rows) == 100_000
    data = cluster.data / "replication-a"
    # A storage node knows no names.
    topic = cluster.json("topic", "describe", "events")["id"]
    frames = cluster.cli("log", "dump", "--data", data, "--live", "--partition", f"{topic}/0")
    assert b"batch" in frames.stdout
    assert cluster.cli("log", "dump", "--data", data, check=False).returncode == 1

    cluster.cli("topic", "create", "cold", "--set", "local.retention.bytes=0", *copies)
    cluster.cli("produce", "cold", stdin=b"\n".join(numbers) + b"\n")
    cluster.cli("upload", "flush", "cold")
    wait_until(
        "the disks are reclaimed",
        lambda: all(
            row["local_start_offset"] == row["uploaded_offset"]
            for row in cluster.json("upload", "status", "cold")["partitions"]
        ),
    )
    assert sorted(map(int, cluster.values("cold"))) == list(range(1, 100_001))
