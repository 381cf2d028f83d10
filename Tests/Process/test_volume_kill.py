# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A process that writes a volume as fast as it can, ended by kill -9 at any moment, and by power cuts of its disk.

A share of the seeds in CI; all by command:
  MEMQ_KILL_SEEDS=50 .venv/bin/python -m pytest -q Tests/Process/test_volume_kill.py
"""

import os
import random
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

    def kill(self):
        self.process.kill()
        self.process.wait(PATIENCE)


def verify(volume, acknowledged):
    done = subprocess.run([STRESS, "verify", volume, acknowledged], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all there" in done.stdout


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_was_acknowledged_survives_kills_in_a_row(folder, seed):
    choose = random.Random(seed)
    volume, acknowledged = folder / "volume", folder / "acknowledged"
    options = ["--keep"] if choose.random() < 0.3 else []
    if seed % 2:
        options.append("--direct")
    for _ in range(3):
        writer = Writer(volume, acknowledged, "--partitions", str(choose.choice([1, 8, 40])), *options)
        writer.wait_for_more(20)
        # Anywhere: in a group, between groups, while a segment is sealed.
        time.sleep(choose.uniform(0, 0.4))
        writer.kill()
        verify(volume, acknowledged)


@pytest.mark.parametrize("options", [[], ["--direct"]], ids=["cached", "direct"])
@pytest.mark.parametrize("file_system", ["ext4", "xfs"])
def test_a_volume_survives_power_cuts_in_a_row(folder, file_system, options):
    choose = random.Random(file_system)
    disk = Disk(folder, "1G", file_system)
    volume, acknowledged = disk.mount_point / "volume", folder / "acknowledged"
    try:
        for _ in range(4):
            writer = Writer(volume, acknowledged, *options)
            writer.wait_for_more(50)
            time.sleep(choose.uniform(0, 0.5))
            # What was acknowledged before the cut counts: the process outlives its disk for a moment.
            before = acknowledged.read_bytes()
            disk.cut_power()
            writer.kill()
            acknowledged.write_bytes(before[: before.rfind(b"\n") + 1])
            disk.unmount()
            disk.mount()
            verify(volume, acknowledged)
    finally:
        disk.close()
