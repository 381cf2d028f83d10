# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""The data folder stands on an ext4 or xfs whose power is cut under load: what was acknowledged is there.

kill -9 proves nothing about fsync, as the page cache survives it. Here the file system is shut down without a flush
(FS_IOC_SHUTDOWN), so that only what was synced remains. Ten seeds each in CI; more by command:
  MEMQ_POWER_CUT_SEEDS=50 .venv/bin/python -m pytest -q Tests/Process/test_power_cut.py

That the test can fail is shown by taking syncs away (Tests/Process/without_sync.c, preloaded):
  MEMQ_WITHOUT_SYNC=volume .venv/bin/python -m pytest Tests/Process/test_power_cut.py    # the log's fdatasync
  MEMQ_WITHOUT_SYNC=meta.sqlite-wal ...                                                  # as SQLite's synchronous NORMAL
"""

import os
import random
import subprocess
import threading
import time

import pytest

from harness import ROOT, AckedProducer, Disk, Server, sha256


def without_sync(folder) -> dict:
    """Environment that makes fsync and fdatasync of some files do nothing, when asked for."""
    wanted = os.environ.get("MEMQ_WITHOUT_SYNC")
    if not wanted:
        return {}
    library = folder / "without_sync.so"
    source = ROOT / "Tests/Process/without_sync.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "WITHOUT_SYNC": wanted}


class FilePutter(threading.Thread):
    """Puts files one after another, small and large ones; remembers those whose put succeeded."""

    def __init__(self, server, folder, seed):
        super().__init__(daemon=True)
        self.server, self.folder, self.random = server, folder, random.Random(seed)
        self.published: dict[str, str] = {}
        self.stopping = False

    def run(self):
        number = 0
        while not self.stopping:
            size = self.random.choice([0, 100, 5_000, 200_000, 600_000])
            data = self.random.randbytes(size)
            name = f"file-{number}"
            path = self.folder / name
            path.write_bytes(data)
            put = self.server.popen(
                "file", "put", "media", path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while put.poll() is None and not self.stopping:
                time.sleep(0.005)
            if put.poll() is None:
                put.kill()
            if put.wait() == 0:
                self.published[name] = sha256(data)
            number += 1


SEEDS = int(os.environ.get("MEMQ_POWER_CUT_SEEDS", "10"))


@pytest.mark.parametrize("file_system", ["ext4", "xfs"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_was_acknowledged_survives_a_power_cut(folder, seed, file_system):
    choose = random.Random(seed)
    disk = Disk(folder, file_system=file_system)
    writes = ["cached", "direct"][seed % 2]
    server = Server(
        disk.mount_point / "mq", "--volume-writes", writes, environment=without_sync(folder)
    )
    server.log = folder / "server.log"
    try:
        server.start()
        server.cli("topic", "create", "events", "--partitions", "4")
        server.cli("topic", "create", "media", "--scan", "gate")
        producer = AckedProducer(server, "events")
        putter = FilePutter(server, folder, seed)
        putter.start()
        load = choose.uniform(0.8, 3.0)
        begun = time.monotonic()
        while time.monotonic() - begun < load or not producer.acked or not putter.published:
            assert time.monotonic() - begun < 60, "no load was acknowledged"
            time.sleep(0.01)
        # What a client has before the cut counts. The server outlives its disk for a moment here, which no real power
        # cut allows: a sync that is under way then may still return.
        acked, published = list(producer.acked), dict(putter.published)
        disk.cut_power()
        putter.stopping = True
        server.kill()
        producer.abandon()
        putter.join(30)
        disk.unmount()
        disk.mount()

        server.environment = {}
        server.start()
        values = [int(v) for v in server.values("events")]
        missing = set(acked) - set(values)
        assert not missing, f"{len(missing)} of {len(acked)} acknowledged records are gone"
        assert len(values) == len(set(values))
        listed = {f["name"]: f["sha256"] for f in server.json("file", "list", "media")}
        for name, digest in published.items():
            assert listed.get(name) == digest, f"published file {name} is gone"
            got = server.cli("file", "get", "media", name, "-o", "-").stdout
            assert sha256(got) == digest
        print(f"{file_system} seed {seed}, {writes} writes: {len(acked)} records, {len(published)} files")
    finally:
        server.close()
        disk.close()
