# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""The simulator from outside: one seed is one run, whatever process it runs in."""

import subprocess

from harness import BIN


def replay(seed: int) -> bytes:
    done = subprocess.run(
        [BIN / "memq-sim", "replay", str(seed), "--trace", "--fault-seconds", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_the_same_seed_in_two_processes_gives_the_same_bytes():
    first, second = replay(11), replay(11)
    assert first == second
    assert first.count(b"\n") > 200
    assert first != replay(12)
