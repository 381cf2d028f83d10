# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Disks that fail, fill up or dawdle under a real server: what is acknowledged stays, the rest is refused with its reason."""

import errno
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from faults import Faults, library
from harness import PATIENCE, AckedProducer, Disk, Server, wait_until
from test_log_repair import memq

SEGMENT = ("--segment-bytes", "16MiB")


def page(server, path):
    try:
        with urllib.request.urlopen(f"http://{server.admin}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(server, name):
    lines = page(server, "/metrics")[1].splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name + " "))


def volume_check(server):
    """The problem of the replication service's volumes, as /readyz states it."""
    checks = json.loads(page(server, "/readyz")[1])["checks"]
    return next(c.get("problem") for c in checks if c["check"] == "replication.volumes")


def volume_of(server, topic):
    """Which of the server's volume folders holds the topic's partition 0."""
    found = []
    for name in ("one", "two"):
        out = memq(
            "log", "dump", "--live", "--data", server.data / name, "-o", "json", "--partition", f"{topic_id(server, topic)}/0"
        ).stdout
        if json.loads(out):
            found.append(name)
    (name,) = found
    return name


def topic_id(server, topic):
    return server.json("topic", "describe", topic)["id"]


@pytest.fixture
def faulty(folder):
    """A server on two volumes under a disk that fails on demand, a topic on each."""
    faults = Faults(folder)
    data = folder / "data"
    volumes = f"{data}/one,{data}/two"
    with Server(data, *SEGMENT, "--volumes", volumes, environment=faults.environment) as server:
        for topic in ("a", "b", "c", "d"):
            server.cli("topic", "create", topic)
            server.cli("produce", topic, stdin=b"0\n1\n2\n")
        places = {topic: volume_of(server, topic) for topic in ("a", "b", "c", "d")}
        server.first = next(t for t, v in places.items() if v == "one")
        server.second = next(t for t, v in places.items() if v == "two")
        server.faults = faults
        yield server


@pytest.mark.parametrize("call", ["sync", "write"])
def test_the_first_failed_sync_or_write_retires_one_volume_and_leaves_the_other(faulty, call):
    server, faults = faulty, faulty.faults
    producer = AckedProducer(server, server.first, 3)
    wait_until("records are acknowledged", lambda: len(producer.acked) > 500)
    # Once: the next sync of the same file would work, and lie.
    fault = faults.set(call, "/one/segment-", errno.EIO, times=1)
    wait_until("the fault was had", lambda: faults.had(fault) == 1)
    wait_until("the volume is out of use", lambda: metric(server, "memq_replication_volumes_failed") == 1)
    refused = server.cli("produce", server.first, "--delivery-timeout", "3", stdin=b"y\n", check=False)
    assert refused.returncode == 1 and b"VOLUME_FAILED" in refused.stderr, refused.stderr
    producer.abandon()
    acked = list(producer.acked)
    assert len(acked) > 500
    status, _ = page(server, "/readyz")
    assert status == 503 and "VOLUME_FAILED" in volume_check(server)
    read = server.cli("consume", server.first, "--from", "beginning", "--until-end", check=False)
    assert read.returncode == 1 and b"VOLUME_FAILED" in read.stderr
    # The other volume goes on, with new partitions too.
    server.cli("produce", server.second, stdin=b"3\n4\n")
    assert server.values(server.second) == [b"%d" % n for n in range(5)]

    server.kill()
    server.environment = {}
    server.start()
    assert volume_check(server) is None
    values = [int(v) for v in server.values(server.first)]
    missing = set(acked) - set(values)
    assert not missing, f"{len(missing)} of {len(acked)} acknowledged records are gone"
    assert len(values) == len(set(values))
    server.cli("produce", server.first, stdin=b"x\n")
    assert server.stop() == 0


def test_what_can_not_be_read_is_refused_by_name_and_nothing_else(faulty):
    server, faults = faulty, faulty.faults
    # Started again, so that nothing is in memory, on a disk that gives nothing of one volume's first records.
    for topic in (server.first, server.second):
        server.cli("produce", topic, stdin=b"".join(b"%d\n" % n for n in range(3, 3_000)))
    assert server.stop() == 0
    server.start()
    fault = faults.set("read", "/one/segment-")
    read = server.cli("consume", server.first, "--from", "beginning", "--until-end", check=False)
    assert faults.had(fault) > 0
    assert read.returncode == 1 and b"LOG_CORRUPT" in read.stderr, read.stderr
    assert len(server.values(server.second)) == 3_000
    wait_until("it is counted", lambda: metric(server, "memq_replication_partitions_damaged") == 1)
    # Nobody else has the partition: it takes nothing more, until what the disk gives again is served again.
    refused = server.cli("produce", server.first, "--delivery-timeout", "5", stdin=b"x\n", check=False)
    assert refused.returncode == 1 and b"LOG_CORRUPT" in refused.stderr, refused.stderr
    (row,) = server.json("cluster", "partitions", server.first)
    assert row["damaged"] == [{"node": row["leader"], "from_offset": 0}]
    server.cli("produce", server.second, stdin=b"3000\n")
    faults.stop(fault)
    wait_until("it is whole", lambda: not server.json("cluster", "partitions", server.first)[0]["damaged"])
    assert metric(server, "memq_replication_partitions_damaged") == 0
    server.cli("produce", server.first, stdin=b"3000\n")
    assert [int(v) for v in server.values(server.first)] == list(range(3_001))
    assert server.stop() == 0


def test_short_writes_and_reads_are_completed(faulty):
    server, faults = faulty, faulty.faults
    writes = faults.set("write", "/segment-", number=0, bytes=777)
    reads = faults.set("read", "/segment-", number=0, bytes=1_001)
    lines = b"".join(b"%d-%s\n" % (n, b"v" * 500) for n in range(2_000))
    server.cli("produce", server.first, stdin=lines)
    assert server.stop() == 0
    server.start()
    values = server.values(server.first)
    assert values[3:] == lines.splitlines()
    assert faults.had(writes) > 100 and faults.had(reads) > 100


def test_readyz_says_how_far_the_opening_of_each_volume_is(faulty):
    server, faults = faulty, faulty.faults
    assert server.stop() == 0
    # A disk that gives a few bytes at a time takes long.
    fault = faults.set("read", "/one/segment-", number=0, bytes=16)
    server.start(ready=False)

    def problem():
        try:
            return volume_check(server) or ""
        except (urllib.error.URLError, ConnectionError, StopIteration):
            return ""

    wait_until(
        "it says so",
        lambda: re.search(r"opening \S*/one: (\d+ of \d+ segments, )?\d+ s", problem()), pause=0.005,
    )
    faults.stop(fault)
    wait_until("the server is ready", server.is_ready)
    assert problem() == ""
    assert server.stop() == 0


def test_a_volume_that_can_not_be_opened_leaves_the_other_serving(faulty):
    server = faulty
    assert server.stop() == 0
    path = server.data / "one/volume"
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    # Not all of it gets ready: nobody can lead what is on the volume.
    server.start(ready=False)
    wait_until(
        "the others have leaders",
        lambda: server.cli("produce", server.second, "--delivery-timeout", "1", check=False).returncode == 0
        and server.json("cluster", "partitions", server.second)[0]["leader"],
    )
    assert "LOG_CORRUPT" in volume_check(server)
    assert metric(server, "memq_replication_volumes_failed") == 1
    server.cli("produce", server.second, stdin=b"3\n")
    assert server.values(server.second) == [b"0", b"1", b"2", b"3"]
    refused = server.cli("produce", server.first, "--delivery-timeout", "3", stdin=b"x\n", check=False)
    assert refused.returncode == 1 and b"LOG_CORRUPT" in refused.stderr
    assert server.stop() == 0
    memq("log", "repair", "--data", server.data)
    server.start()
    assert server.values(server.first) == [b"0", b"1", b"2"]
    assert server.stop() == 0


def test_a_slow_sync_only_slows(folder):
    slow = {"LD_PRELOAD": str(library(folder, "slow_sync")), "SLOW_SYNC_NANOSECONDS": "2000000"}
    with Server(folder / "data", *SEGMENT, environment=slow) as server:
        server.cli("topic", "create", "events")
        begun = time.monotonic()
        server.cli("produce", "events", stdin=b"".join(b"%d\n" % n for n in range(5_000)))
        assert time.monotonic() - begun > 0.002
        assert sorted(int(v) for v in server.values("events")) == list(range(5_000))
        lines = page(server, "/metrics")[1].splitlines()
        total, count = (
            next(float(line.split()[-1]) for line in lines if line.startswith(f"memq_storage_sync_seconds_{end} "))
            for end in ("sum", "count")
        )
        assert total / count >= 0.002
        assert server.stop() == 0


def test_metadata_on_a_full_disk_refuses_changes_and_heals_when_there_is_room(folder):
    disk = Disk(folder, "64M")
    filler = disk.mount_point / "filler"
    server = Server(disk.mount_point / "data", *SEGMENT, "--volumes", folder / "volume")
    server.log = folder / "server.log"
    try:
        server.start()
        with open(filler, "ab") as file:
            size, step = 0, 16 << 20
            while step >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), size, step)
                    size += step
                except OSError:
                    step //= 2
        made = []
        for number in range(300):
            name = f"topic-{number}"
            if server.cli("topic", "create", name, "--partitions", "20", check=False).returncode != 0:
                break
            made.append(name)
        assert "the disk is full" in server.log.read_text()
        filler.unlink()
        # By itself, in the same life.
        wait_until(
            "topics are made again",
            lambda: server.cli("topic", "create", "after", check=False).returncode == 0,
        )
        assert {*made, "after"} <= {topic["name"] for topic in server.json("topic", "list")}
        assert server.stop() == 0
        server.start()
        assert {*made, "after"} <= {topic["name"] for topic in server.json("topic", "list")}
    finally:
        server.close()
        disk.close()


def test_metadata_whose_commit_can_not_be_synced_says_so_and_ends_and_has_all_when_it_is_back(folder):
    faults = Faults(folder)
    server = Server(folder / "data", *SEGMENT, environment=faults.environment)
    try:
        server.start()
        server.cli("topic", "create", "before")
        # Once: the next sync of the same file would work, and lie.
        faults.set("sync", "meta.sqlite-wal", errno.EIO, times=1)
        refused = server.cli("topic", "create", "lost", check=False)
        assert refused.returncode != 0
        # By itself, for its supervisor to start it anew, and not as if it had been told to.
        assert server.process.wait(15) == 1
        assert "Can't go on; the process ends" in server.log.read_text()
        server.start()
        names = {topic["name"] for topic in server.json("topic", "list")}
        assert "before" in names
        # Refused with an unknown outcome: whichever it was, it is settled now.
        server.cli("topic", "create", "after")
        if "lost" not in names:
            server.cli("topic", "create", "lost")
        server.cli("produce", "before", stdin=b"1\n")
        assert server.stop() == 0
        server.start()
        assert {"before", "lost", "after"} == {topic["name"] for topic in server.json("topic", "list")}
    finally:
        server.close()


def test_a_full_disk_refuses_and_heals_when_there_is_room(folder):
    disk = Disk(folder, "400M")
    filler = disk.mount_point / "filler"
    server = Server(folder / "data", *SEGMENT, "--volumes", disk.mount_point / "volume")
    try:
        server.start()
        # Nothing leaves the disk by an upload.
        server.cli("topic", "create", "events", "--set", "object.tier=false")
        free = shutil.disk_usage(disk.mount_point).free
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - (80 << 20))
        value = b"v" * 10_000
        taken = 0
        refused = None
        while taken < 40_000:
            lines = b"".join(b"%d-%s\n" % (taken + n, value) for n in range(500))
            done = server.cli("produce", "events", "--delivery-timeout", "15", stdin=lines, check=False)
            if done.returncode != 0:
                refused = done.stderr
                break
            taken += 500
        assert refused and b"VOLUME_FULL" in refused, refused
        # Who waits less long hears the same, and that nothing was appended, before its time is over.
        done = server.cli("produce", "events", "--delivery-timeout", "5", stdin=lines, check=False)
        assert done.returncode == 1, done.stderr
        assert b"VOLUME_FULL" in done.stderr and b"OUTCOME_UNKNOWN" not in done.stderr, done.stderr
        before = server.values("events")
        assert len(before) >= taken > 0
        # The volume is no failed one, and goes on as soon as there is room.
        assert volume_check(server) is None
        filler.unlink()
        server.cli("produce", "events", "--delivery-timeout", "60", stdin=b"again\n")
        assert server.values("events")[-1] == b"again"
        assert server.stop() == 0
        server.start()
        assert server.values("events")[: len(before)] == before
    finally:
        server.close()
        disk.close()


def test_direct_writes_where_the_file_system_has_none_are_refused_by_name(folder):
    # ramfs has no O_DIRECT.
    subprocess.run(["mount", "-t", "ramfs", "ramfs", folder], check=True)
    try:
        server = Server(folder / "mq", *SEGMENT, "--volume-writes", "direct")
        server.start(ready=False)
        assert server.process.wait(PATIENCE) != 0
        assert "the file system takes no direct writes" in server.log.read_text()
    finally:
        server.close()
        subprocess.run(["umount", "--lazy", folder], check=True)
