# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""`memq bench disk`: every way and size is measured or said to be missing, and nothing stays behind."""

import json
import os
import subprocess

from harness import MEMQ


def bench(folder, *options, status=0):
    done = subprocess.run(
        [MEMQ, "bench", "disk", "--path", folder, *options], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done


def test_every_way_is_measured_or_said_to_be_missing(folder):
    report = json.loads(bench(folder, "--seconds", "1", "--file-mib", "16", "-o", "json").stdout)
    ways = {"pwritev + fdatasync", "O_DIRECT + fdatasync", "io_uring", "io_uring + O_DIRECT"}
    measured = {row["back_end"] for row in report["writes"]}
    assert "pwritev + fdatasync" in measured
    assert measured | set(report["missing"]) == ways and not measured & set(report["missing"])
    sizes = {4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20}
    for way in measured:
        rows = [row for row in report["writes"] if row["back_end"] == way]
        assert {row["bytes"] for row in rows} == sizes
        for row in rows:
            assert row["writes"] >= 3 and row["bytes_per_second"] > 0
            assert row["p50_us"] <= row["p99_us"] <= row["max_us"]
    assert report["read_bytes_per_second"] > 0
    # A virtual disk, or one whose syncs reach nothing, is no ground for a default.
    assert report["trustworthy"] == (report["doubt"] is None)
    if not report["trustworthy"]:
        assert "No default follows" in report["verdict"]
    assert os.listdir(folder) == []
    text = bench(folder, "--seconds", "1", "--file-mib", "16").stdout
    assert "P99 µs" in text and report["file_system"] in text


def test_too_little_room_is_refused_before_anything_is_written(folder):
    room = os.statvfs(folder)
    too_much = room.f_bavail * room.f_frsize // 2 // (1 << 20) + 1_000
    if too_much > 65_536:
        # The largest file that may be asked for fits: then the limit itself is what is refused.
        assert "--file-mib" in bench(folder, "--file-mib", str(too_much), status=2).stderr
    else:
        refused = bench(folder, "--file-mib", str(too_much), status=1)
        assert "too little room" in refused.stderr
    assert os.listdir(folder) == []
