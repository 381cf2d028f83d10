# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Damaged disks and the command line: what verify finds, what repair mends, what the server still serves."""

import json
import subprocess

import pytest

from harness import MEMQ, Server, wait_until

SEGMENT = ("--segment-bytes", "16MiB")


def memq(*arguments, status=0):
    done = subprocess.run([MEMQ, *map(str, arguments)], capture_output=True, timeout=120)
    assert done.returncode == status, (done.returncode, done.stdout[-3000:], done.stderr[-3000:])
    return done


def verify(data, status=0):
    (volume,) = json.loads(memq("log", "verify", "--data", data, "-o", "json", status=status).stdout)
    return volume


def frames(data, partition):
    out = memq("log", "dump", "--data", data, "--partition", partition, "-o", "json").stdout
    return [frame for frame in json.loads(out) if frame["type"] == "batch"]


def flip(data, frame, at):
    """Changes a byte in the segment file that holds the frame."""
    for path in sorted((data / "volume-0").glob("segment-*")):
        with open(path, "r+b") as file:
            sequence = int.from_bytes(file.read(56)[48:56], "big")
            if sequence != frame["segment"]:
                continue
            position = frame["position"] + at
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 0x20]))
            return path.name, position
    raise AssertionError(f"no file holds segment {frame['segment']}")


@pytest.fixture
def stopped(folder):
    """The data folder of a stopped server with two topics, and what is in them."""
    with Server(folder / "data", *SEGMENT) as server:
        for topic in ("events", "others"):
            server.cli("topic", "create", topic)
        for part in range(5):
            for topic in ("events", "others"):
                lines = b"".join(b"%s-%d\n" % (topic.encode(), part * 200 + n) for n in range(200))
                server.cli("produce", topic, stdin=lines)
        assert server.stop() == 0
        yield server


def test_a_damaged_batch_is_named_and_cut_only_when_told_to(stopped):
    data = stopped.data
    before = verify(data)
    assert before["state"] == "whole" and before["damages"] == []
    assert {p["partition"]: p["end"] for p in before["partitions"]}["events/0"] == 1000
    frame = frames(data, "events/0")[3]
    name, position = flip(data, frame, 100)
    found = verify(data, status=5)
    (damage,) = found["damages"]
    assert damage["file"] == name
    assert damage["position"] <= position < damage["position"] + damage["bytes"]
    assert damage["lost"] == [
        {"partition": "events/0", "base_offset": frame["base_offset"], "end_offset": frame["end_offset"]}
    ]
    text = memq("log", "verify", "--data", data, status=5).stdout.decode()
    assert f"costs events/0 offsets {frame['base_offset']}..<{frame['end_offset']}" in text

    # The server starts and serves the other topic; the damaged partition says what is wrong with it.
    stopped.start()
    assert len(stopped.values("others")) == 1000
    stopped.cli("produce", "others", stdin=b"more\n")
    refused = stopped.cli("produce", "events", "--delivery-timeout", "3", stdin=b"x\n", check=False)
    assert refused.returncode == 1
    assert b"LOG_CORRUPT" in refused.stderr, refused.stderr
    # Without another replica it is served up to the damage, and not beyond.
    whole = frame["base_offset"]
    below = stopped.cli("consume", "events", "--from", "beginning", "--max", whole).stdout.splitlines()
    assert below == [b"events-%d" % n for n in range(whole)]
    beyond = stopped.cli("consume", "events", "--from", whole, "--max", "1", check=False, patience=60)
    assert beyond.returncode == 1 and b"LOG_CORRUPT" in beyond.stderr, beyond.stderr
    running = memq("log", "verify", "--data", data, status=1)
    assert b"stop the server" in running.stderr
    assert stopped.stop() == 0

    # Nothing is cut without being told to.
    for flags in (["--dry-run"], []):
        told = memq("log", "repair", "--data", data, *flags, status=5).stdout.decode()
        assert f"--accept-loss would cut the {1000 - frame['base_offset']} records" in told
    assert verify(data, status=5)["damages"] == found["damages"]
    done = json.loads(memq("log", "repair", "--data", data, "--accept-loss", "-o", "json", status=4).stdout)
    assert any(f"ends at offset {frame['base_offset']} now" in line for line in done[0]["done"])

    stopped.start()
    wanted = [b"events-%d" % n for n in range(frame["base_offset"])]
    assert stopped.values("events") == wanted
    stopped.cli("produce", "events", stdin=b"after\n")
    assert stopped.values("events") == [*wanted, b"after"]
    assert len(stopped.values("others")) == 1001
    assert stopped.stop() == 0


def test_a_damaged_volume_file_is_made_anew_without_loss(stopped):
    path = stopped.data / "volume-0/volume"
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    assert verify(stopped.data, status=4)["volume_file_ok"] is False
    done = memq("log", "repair", "--data", stopped.data).stdout.decode()
    assert "done: volume file written anew" in done
    assert verify(stopped.data)["state"] == "whole"
    stopped.start()
    assert len(stopped.values("events")) == 1000
    stopped.stop()
