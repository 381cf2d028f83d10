# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""The command line on real records and real files, as a person would type it."""

import json
import os
import select
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

from harness import EICAR, MEMQ, Server, sha256, wait_until

HEADERS = Path("/usr/include/linux")


def test_a_hundred_thousand_records_come_back_once_and_whole(shared_server):
    numbers = [b"%d" % n for n in range(1, 100_001)]
    shared_server.cli("topic", "create", "events", "--partitions", "4")
    shared_server.cli("produce", "events", stdin=b"\n".join(numbers) + b"\n")
    out = shared_server.cli(
        "consume", "events", "--from", "beginning", "--max", "100000", "--format", "%v"
    ).stdout.splitlines()
    assert sorted(out, key=int) == numbers

    line = ("consume", "events", "--from", "beginning", "--until-end", "--group", "g1")
    first = shared_server.cli(*line, "--format", "%p %o %v").stdout.splitlines()
    assert len(first) == 100_000
    partition, offset, value = first[-1].split()
    assert int(partition) in range(4) and int(offset) < 100_000 and value in numbers
    # The group has committed: it goes on where it stood, whatever --from says.
    assert shared_server.cli(*line).stdout == b""
    shared_server.cli("produce", "events", stdin=b"more\n")
    assert shared_server.cli(*line, "--format", "%v").stdout == b"more\n"


def test_records_leave_the_ssd_and_are_read_from_objects_without_noticing(shared_server):
    values = [b"%d %s" % (n, b"x" * 200) for n in range(20_000)]
    shared_server.cli(
        "topic", "create", "cold", "--partitions", "2", "--set", "local.retention.bytes=0"
    )
    shared_server.cli("produce", "cold", stdin=b"\n".join(values) + b"\n")
    shared_server.cli("upload", "flush", "cold")

    def reclaimed():
        rows = [row for row in shared_server.json("upload", "status", "cold")["partitions"]]
        return rows if all(r["local_start_offset"] == r["uploaded_offset"] for r in rows) else None

    rows = wait_until("the SSD is reclaimed", reclaimed)
    assert sum(row["uploaded_offset"] for row in rows) == 20_000
    assert sorted(shared_server.values("cold")) == sorted(values)
    status = shared_server.json("upload", "status")
    assert status["objects"] >= 1 and status["billed_requests"] >= 1 and status["object_bytes"] > 0


def test_a_folder_of_real_files_comes_back_byte_for_byte(shared_server):
    shared_server.cli("topic", "create", "media", "--scan", "gate")
    shared_server.cli("file", "put", "media", "--recursive", HEADERS)
    files = {
        str(p.relative_to(HEADERS)): p.read_bytes()
        for p in HEADERS.rglob("*")
        if p.is_file() and not p.is_symlink()
    }
    assert len(files) > 500
    listed = shared_server.json("file", "list", "media")
    assert {f["name"]: f["sha256"] for f in listed} == {n: sha256(b) for n, b in files.items()}
    assert all(f["verdict"] == "clean" and f["version"] == 1 for f in listed)
    assert all(f["size"] == len(files[f["name"]]) for f in listed)
    # Who reads only the beginning ends it quietly.
    head = shared_server.popen(
        "file", "list", "media", "-o", "json", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    head.stdout.close()
    assert head.stderr.read() == b"" and head.wait(60) == 0
    for name in sorted(files)[:: len(files) // 25]:
        assert shared_server.cli("file", "get", "media", name, "-o", "-").stdout == files[name]


def test_empty_files_utf8_names_and_links(shared_server, folder):
    tree = folder / "tree"
    (tree / "früh/☃").mkdir(parents=True)
    (tree / "empty").write_bytes(b"")
    (tree / "früh/☃/näme with space").write_bytes(b"\0\1\2")
    (tree / "link").symlink_to("empty")
    shared_server.cli("topic", "create", "names")
    done = shared_server.cli("file", "put", "names", "--recursive", tree)
    assert b"link" in done.stderr
    names = [f["name"] for f in shared_server.json("file", "list", "names")]
    assert names == sorted(["empty", "früh/☃/näme with space"])
    for name, want in (("empty", b""), ("früh/☃/näme with space", b"\0\1\2")):
        target = folder / "out"
        shared_server.cli("file", "get", "names", name, "-o", target)
        assert target.read_bytes() == want


def test_a_link_named_on_the_command_line_is_followed(shared_server, folder):
    (folder / "target").write_bytes(b"bytes")
    (folder / "tree").mkdir()
    (folder / "tree/inside").write_bytes(b"inside")
    (folder / "tree/link").symlink_to("inside")
    (folder / "link").symlink_to("target")
    (folder / "folder link").symlink_to("tree")
    shared_server.cli("topic", "create", "links")
    shared_server.cli("file", "put", "links", folder / "link")
    done = shared_server.cli("file", "put", "links", "--recursive", folder / "folder link")
    assert b"skipped link: symbolic link" in done.stderr
    assert [f["name"] for f in shared_server.json("file", "list", "links")] == ["inside", "link"]
    out = shared_server.cli("file", "get", "links", "link", "-o", "-").stdout
    assert out == b"bytes"


def test_the_report_of_a_folder_comes_while_it_is_put(server, folder):
    tree = folder / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(b"first")
    with open(tree / "b", "wb") as large:
        large.truncate(1 << 30)
    server.cli("topic", "create", "slow")
    put = server.popen(
        "file", "put", "slow", "--recursive", tree, "--concurrency", "1", "-o", "json",
        stdout=subprocess.PIPE,
    )
    wait_until("the first is there", lambda: server.json("file", "list", "slow"))
    server.process.send_signal(signal.SIGSTOP)
    # The second cannot be done: what comes now did not wait for it.
    head = b""
    while b'"name": "a"' not in head and select.select([put.stdout], [], [], 30)[0]:
        head += os.read(put.stdout.fileno(), 1 << 16)
    server.process.send_signal(signal.SIGCONT)
    put.kill()
    put.wait(60)
    assert head.startswith(b'{"files": [') and b'"name": "a"' in head


def test_a_large_file_is_put_whole_and_read_by_range(shared_server, folder):
    data = os.urandom(1 << 20) * 40 + b"the end"
    path = folder / "large"
    path.write_bytes(data)
    shared_server.cli("topic", "create", "large", "--scan", "gate")
    shared_server.cli("file", "put", "large", path)
    target = folder / "out"
    shared_server.cli("file", "get", "large", "large", "-o", target)
    assert sha256(target.read_bytes()) == sha256(data)
    part = shared_server.cli(
        "file", "get", "large", "large", "--offset", "40000000", "--length", "1000003", "-o", "-"
    ).stdout
    assert part == data[40_000_000:41_000_003]


def test_an_infected_file_is_refused_named_and_kept_out_of_sight(shared_server, folder):
    shared_server.cli("topic", "create", "gated", "--scan", "gate")
    for name, data in (
        ("eicar.com", EICAR),
        ("big.bin", os.urandom(1 << 20) + EICAR + os.urandom(1 << 20)),
    ):
        path = folder / name
        path.write_bytes(data)
        refused = shared_server.cli("file", "put", "gated", path, check=False)
        assert refused.returncode == 3
        assert b"eicar" in refused.stderr.lower()
        read = shared_server.cli("file", "get", "gated", name, "-o", "-", check=False)
        assert read.returncode == 1 and read.stdout == b""
    assert shared_server.json("file", "list", "gated") == []
    entries = shared_server.json("quarantine", "list", "gated")
    assert sorted(e["name"] for e in entries) == ["big.bin", "eicar.com"]
    assert all("eicar" in e["signature"].lower() for e in entries)

    kept = {e["name"]: e["id"] for e in entries}
    shared_server.cli("quarantine", "delete", kept["big.bin"])
    shared_server.cli("quarantine", "release", kept["eicar.com"], "--reason", "a test file")
    wait_until(
        "the released file is published",
        lambda: [f["name"] for f in shared_server.json("file", "list", "gated")] == ["eicar.com"],
    )
    assert shared_server.cli("file", "get", "gated", "eicar.com", "-o", "-").stdout == EICAR
    assert shared_server.json("quarantine", "list", "gated") == []


def test_produce_answers_each_line_as_it_is_acknowledged(shared_server):
    shared_server.cli("topic", "create", "lines")
    process = shared_server.popen(
        "produce", "lines", "--print-acked", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    # The input stays open: a line is sent and acknowledged without waiting for more.
    for value in (b"one\n", b"two\n", b"three\n"):
        process.stdin.write(value)
        process.stdin.flush()
        assert process.stdout.readline() == value
    process.stdin.close()
    assert process.wait(30) == 0
    for acks in ("0", "1", "all"):
        shared_server.cli("produce", "lines", "--acks", acks, stdin=b"acks %s\n" % acks.encode())
    wait_until("acks=0 arrived too", lambda: len(shared_server.values("lines")) == 6)


def test_produce_goes_on_when_nobody_reads_the_acknowledgements(shared_server):
    shared_server.cli("topic", "create", "unread")
    process = shared_server.popen(
        "produce", "unread", "--print-acked", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.close()
    # More than the values that may wait to be printed.
    line = b"x" * 99_999 + b"\n"
    for _ in range(200):
        process.stdin.write(line)
    process.stdin.close()
    assert process.wait(60) == 0
    assert len(shared_server.values("unread")) == 200


def test_dump_shows_the_frames_live_and_stopped(folder):
    with Server(folder / "data") as server:
        server.cli("topic", "create", "events", "--partitions", "2")
        server.cli("produce", "events", "--partition", "0", stdin=b"a\nb\nc\n")
        dump = ("log", "dump", "--data", server.data, "--partition", "events/0")
        live = server.cli(*dump, "--live")
        assert b"events/0" in live.stdout or b"batch" in live.stdout.lower()
        refused = server.cli(*dump, check=False)
        assert refused.returncode == 1 and b"--live" in refused.stderr
        assert server.stop() == 0
        assert server.cli(*dump).stdout


def test_status_admin_pages_and_a_graceful_end(folder):
    server = Server(folder / "data")
    started = time.monotonic()
    with server.start():
        print(f"ready after {time.monotonic() - started:.1f} s")
        nodes = server.json("cluster", "nodes")
        assert sorted(n["service"] for n in nodes) == sorted(
            ["metadata", "replication", "ingest", "uploader", "scanner", "rebalancer"]
        )
        assert len({n["id"] for n in nodes}) == 6
        assert all(n["pid"] == server.process.pid and n["state"] == "ready" for n in nodes)
        server.cli("topic", "create", "t", "--partitions", "3")
        rows = server.json("cluster", "partitions")
        replication = next(n["id"] for n in nodes if n["service"] == "replication")
        assert [r["partition"] for r in rows] == [0, 1, 2]
        assert all(r["leader"] == replication and r["isr"] == [replication] for r in rows)
        for page, words in (("metrics", b"memq_"), ("healthz", b""), ("readyz", b"")):
            with urllib.request.urlopen(f"http://{server.admin}/{page}") as answer:
                assert answer.status == 200 and words in answer.read()
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 10


def test_trimmed_records_are_gone_on_every_tier_and_stay_gone(folder):
    with Server(folder / "data", "--upload-collect-interval", "200ms").start() as server:
        server.cli("topic", "create", "logs")
        server.cli("produce", "logs", stdin=b"".join(b"%d\n" % n for n in range(1_000)))
        server.cli("upload", "flush", "logs")
        server.cli("produce", "logs", stdin=b"".join(b"%d\n" % n for n in range(1_000, 2_000)))
        assert server.json("topic", "trim", "logs", "--before", "1200") == [
            {"topic": "logs", "partition": 0, "log_start_offset": 1200}
        ]
        assert server.values("logs") == [b"%d" % n for n in range(1_200, 2_000)]
        # Said twice, or about less, it changes nothing; above the committed end it is refused.
        assert server.json("topic", "trim", "logs", "--before", "7")[0]["log_start_offset"] == 1200
        refused = server.cli("topic", "trim", "logs", "--before", "2001", check=False)
        assert refused.returncode == 1 and b"OFFSET_OUT_OF_RANGE" in refused.stderr, refused.stderr
        wait_until("the object is collected", lambda: server.json("upload", "status")["objects"] == 0)
        server.kill()
        server.start()
        assert server.values("logs") == [b"%d" % n for n in range(1_200, 2_000)]
        assert server.json("topic", "trim", "logs", "--before", "end")[0]["log_start_offset"] == 2000
        assert server.values("logs") == []
        server.cli("produce", "logs", stdin=b"next\n")
        assert server.values("logs") == [b"next"]


def test_retention_deletes_what_is_old_or_too_much_and_nothing_else(folder):
    options = ("--upload-collect-interval", "200ms", "--retention-check-interval", "200ms")
    with Server(folder / "data", *options).start() as server:
        server.cli("topic", "create", "sized", "--set", "retention.bytes=20000")
        server.cli("topic", "create", "aged", "--set", "retention.ms=3600000")
        for round in range(4):
            lines = b"".join(b"%d %s\n" % (n, b"x" * 100) for n in range(round * 100, round * 100 + 100))
            for topic in ("sized", "aged"):
                server.cli("produce", topic, stdin=lines)
                server.cli("upload", "flush", topic)

        def start(topic):
            return server.json("upload", "status", topic)["partitions"][0]["log_start_offset"]

        # A run of 100 records has about 11 kB: two of them are kept, three would be more than is needed.
        wait_until("retention.bytes deletes", lambda: start("sized") == 200)
        assert len(server.values("sized")) == 200
        assert start("aged") == 0 and len(server.values("aged")) == 400
        server.cli("topic", "alter", "aged", "--set", "retention.ms=1")
        wait_until("retention.ms deletes", lambda: start("aged") == 400)
        assert server.values("aged") == []


def test_a_partition_at_its_cap_refuses_its_own_producers_until_it_is_uploaded(folder):
    # Nothing is uploaded by itself here: the uploader does not look.
    options = ("--upload-observe-interval", "60s")
    with Server(folder / "data", *options).start() as server:
        server.cli("topic", "create", "capped", "--set", "local.retention.bytes=1048576")
        server.cli("topic", "create", "free")
        line = b"x" * 1023 + b"\n"
        # In batches of 64 KiB at most: a larger one that has no room any more would leave more of it free.
        for _ in range(64):
            full = server.cli("produce", "capped", "--delivery-timeout", "3", stdin=line * 64, check=False)
            if full.returncode != 0:
                break
        assert full.returncode == 1 and b"PARTITION_QUOTA_EXCEEDED" in full.stderr, full.stderr
        held = len(server.values("capped"))
        # What was on its way when the cap was reached may lie above it.
        assert 900 <= held < 4096
        server.cli("produce", "free", stdin=line * 4096)
        assert len(server.values("free")) == 4096
        server.cli("upload", "flush", "capped")
        server.cli("produce", "capped", stdin=line * 100)
        assert len(server.values("capped")) == held + 100
