# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A process that writes a volume as fast as it can, ended by kill -9 at any moment, and by power cuts of its disk.

A share of the seeds in CI; all by command:
  MEMQ_KILL_SEEDS=50 .venv/bin/python -m pytest -q Tests/Process/test_volume_kill.py
"""

import os
import random
import re
import subprocess
import time

import pytest

from harness import BIN, PATIENCE, Disk, wait_until

STRESS = BIN / "memq-volume-stress"
SEEDS = int(os.environ.get("MEMQ_KILL_SEEDS", "8"))


class Writer:
    """`memq-volume-stress write` in a folder; what it has acknowledged is in a file elsewhere."""

    def __init__(self, volume, acknowledged, *options):
        self.volume, self.acknowledged = volume, acknowledged
        self.begun = self.size()
        self.process = subprocess.Popen(
            [STRESS, "write", volume, acknowledged, "--segment-kib", "1024", *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )

    def size(self):
        return self.acknowledged.stat().st_size if self.acknowledged.exists() else 0

    def wait_for_more(self, lines):
        before = self.size()

        def is_more():
            assert self.process.poll() is None, self.process.stdout.read().decode()
            return self.size() > before + 4 * lines

        wait_until("it acknowledges", is_more, pause=0.01)

    def wait_for_cold(self):
        """Until the volume has a cold segment for good."""

        def is_cold():
            assert self.process.poll() is None, self.process.stdout.read().decode()
            lines = self.acknowledged.read_bytes()[self.begun :].split(b"\n")[:-1]
            noted = [line for line in lines if line.startswith(b"cold ")]
            return noted and noted[-1] != b"cold 0"

        wait_until("there is a cold segment", is_cold, pause=0.01)

    def kill(self):
        self.process.kill()
        self.process.wait(PATIENCE)


def verify(volume, acknowledged, *options):
    """Everything acknowledged is there. Returns how many cold segments the volume had as it was found."""
    done = subprocess.run([STRESS, "verify", volume, acknowledged, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all there" in done.stdout
    return int(re.search(r"(\d+) cold segments", done.stdout)[1])


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_was_acknowledged_survives_kills_in_a_row(folder, seed):
    choose = random.Random(seed)
    volume, acknowledged = folder / "volume", folder / "acknowledged"
    # Every other one with a cleaner at work.
    kept = ["--clean"] if seed % 4 in (1, 2) else ["--keep"] if choose.random() < 0.6 else []
    options = kept + (["--direct"] if seed % 2 else [])
    colds = []
    for _ in range(3):
        partitions = choose.choice([8, 40] if "--clean" in kept else [1, 8, 40])
        writer = Writer(volume, acknowledged, "--partitions", str(partitions), *options)
        writer.wait_for_more(20)
        if "--clean" in kept:
            writer.wait_for_cold()
        # Anywhere: in a group, between groups, while a segment is sealed, while one is made cold.
        time.sleep(choose.uniform(0, 0.4))
        writer.kill()
        colds.append(verify(volume, acknowledged, *kept))
    assert all(colds) if "--clean" in kept else not any(colds), colds


@pytest.mark.parametrize("options", [[], ["--direct"]], ids=["cached", "direct"])
@pytest.mark.parametrize("file_system", ["ext4", "xfs"])
def test_a_volume_survives_power_cuts_in_a_row(folder, file_system, options):
    choose = random.Random(file_system)
    disk = Disk(folder, "1G", file_system)
    volume, acknowledged = disk.mount_point / "volume", folder / "acknowledged"
    colds = []
    try:
        for _ in range(4):
            writer = Writer(volume, acknowledged, "--clean", *options)
            writer.wait_for_more(50)
            writer.wait_for_cold()
            time.sleep(choose.uniform(0, 0.5))
            # What was acknowledged before the cut counts: the process outlives its disk for a moment.
            before = acknowledged.read_bytes()
            disk.cut_power()
            writer.kill()
            acknowledged.write_bytes(before[: before.rfind(b"\n") + 1])
            disk.unmount()
            disk.mount()
            colds.append(verify(volume, acknowledged, "--clean"))
        assert all(colds), colds
    finally:
        disk.close()
