# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""The simulator from outside: one seed is one run, whatever process it runs in; a broken rule is told and can be run again."""

import json
import re
import shlex
import subprocess

from harness import BIN


def simulate(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [BIN / "memq-sim", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=120,
    )


def replay(seed: int) -> bytes:
    done = simulate("replay", str(seed), "--trace", "--fault-seconds", "3")
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_the_same_seed_in_two_processes_gives_the_same_bytes():
    first, second = replay(11), replay(11)
    assert first == second
    assert first.count(b"\n") > 200
    assert first != replay(12)


def test_seeds_side_by_side_give_what_one_after_the_other_gives():
    alone = simulate("run", "--seeds", "6", "--jobs", "1", "--fault-seconds", "3")
    together = simulate("run", "--seeds", "6", "--jobs", "3", "--fault-seconds", "3")
    assert alone.returncode == together.returncode == 0
    assert alone.stdout == together.stdout
    assert b"violations: 0" in alone.stdout


def test_a_broken_rule_is_told_and_shrinks_to_a_run_that_breaks_it_again():
    weak = ["--mutation", "leader-alone-commits", "--fault-seconds", "8"]
    done = simulate("run", "--seeds", "50", *weak)
    assert done.returncode == 1
    told = re.search(rb"^seed (\d+): (.+?): ", done.stdout, re.M)
    assert told, done.stdout
    shrunk = simulate("shrink", told[1].decode(), *weak)
    assert shrunk.returncode == 0, shrunk.stderr
    command = shlex.split(shrunk.stdout.decode().splitlines()[-1])
    again = simulate(*command[1:])
    assert again.returncode == 1
    assert again.stdout.splitlines()[-1].startswith(b"seed %s: %s" % (told[1], told[2]))


def test_mutations_are_one_array_of_rows():
    done = simulate("mutations", "-o", "json", "answer-before-commit", "ignore-min-isr")
    assert done.returncode == 0, done.stdout
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == ["answer-before-commit", "ignore-min-isr"]
    for row in rows:
        assert row["caught"] is True and 1 <= row["seeds_needed"] <= 2_000 and row["rule"]
