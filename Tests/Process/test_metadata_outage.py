# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""While metadata is away: what waits, row by row of the table in docs/protocols/metadata.md, is done when it is back. What goes on meanwhile
is in test_cluster.py and test_etcd.py."""

import subprocess
import threading
import time
import urllib.request

from cluster import Cluster
from harness import BIN, PATIENCE, AckedProducer, free_port, wait_until
from test_cluster import grows, make

# Longer than a session lasts: nothing of what waits is done by itself.
AWAY_SECONDS = 4.0


class Waiting:
    """A command that was begun while metadata was away."""

    def __init__(self, cluster, *arguments, stdin: bytes = b""):
        self.process = cluster.popen(
            *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.out = self.said = b""
        self.thread = threading.Thread(target=self._listen, args=(stdin,), daemon=True)
        self.thread.start()

    def _listen(self, stdin: bytes) -> None:
        self.out, self.said = self.process.communicate(stdin)

    def end(self) -> bool:
        """Whether it was done; otherwise it said that it may be tried again."""
        self.thread.join(PATIENCE * 2)
        assert not self.thread.is_alive(), "it still waits"
        if self.process.returncode != 0:
            assert b"may be retried" in self.said, self.said
        return self.process.returncode == 0


class Newcomer:
    """A service that has never been a member."""

    def __init__(self, cluster, folder):
        self.port = free_port()
        command = [
            BIN / "memq-rebalancer", "--listen", f"127.0.0.1:{self.port}",
            "--metadata", f"127.0.0.1:{cluster.port_of('metadata-1')}",
        ]
        with open(folder / "newcomer.log", "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, "it ended"
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port + 1000}/readyz", timeout=5).status == 200
        except OSError:
            return False

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)


def test_what_needs_metadata_waits_while_it_is_away_and_is_done_when_it_is_back(folder):
    with Cluster(folder) as cluster:
        make(cluster, "events", "--partitions", "4")
        make(cluster, "solo", "--partitions", "1")
        cluster.cli("produce", "solo", stdin=b"0\n")
        cluster.cli("consume", "events", "--group", "old", "--from", "beginning", "--until-end")
        make(cluster, "cold", "--partitions", "1", "--set", "local.retention.bytes=0")
        cold = [b"%d" % n for n in range(1_000)]
        cluster.cli("produce", "cold", stdin=b"\n".join(cold) + b"\n")
        cluster.cli("upload", "flush", "cold")
        wait_until("only the object tier has the records", lambda: all(
            row["local_start_offset"] == row["uploaded_offset"] == len(cold)
            for row in cluster.json("upload", "status", "cold")["partitions"]
        ))
        assert cluster.values("cold") == cold
        producer = AckedProducer(cluster, "events", per_second=1_000)
        grows("records are acknowledged", producer.acked)
        (row,) = cluster.json("cluster", "partitions", "solo")
        names = {cluster.node(f"replication-{rack}")["id"]: f"replication-{rack}" for rack in "abc"}
        victim = names[row["leader"]]
        cluster.kill_one("metadata-1")

        # What only the object tier has is read on; producers that have their numbers go on; what needs metadata is begun and does not end.
        assert cluster.values("cold") == cold
        grows("producing goes on", producer.acked)
        (folder / "body").write_bytes(b"y" * 2_000_000)
        waiting = {
            "a new producer id": Waiting(cluster, "produce", "events", stdin=b"new\n" * 5),
            "a new group": Waiting(cluster, "consume", "events", "--group", "new", "--from", "beginning", "--max", "10"),
            "offsets": Waiting(cluster, "consume", "events", "--group", "old", "--max", "10"),
            "a topic": Waiting(cluster, "topic", "create", "later"),
            "a file": Waiting(cluster, "file", "put", "solo", folder / "body", "--name", "late"),
        }
        newcomer = Newcomer(cluster, folder)
        # A leader that dies now has no successor yet, and as a follower it stays in every ISR: what is acknowledged by all waits.
        cluster.kill_one(victim)
        waiting["the dead leader's partition"] = Waiting(cluster, "produce", "solo", stdin=b"1\n")
        end = time.monotonic() + AWAY_SECONDS
        while time.monotonic() < end:
            for what, command in waiting.items():
                assert command.process.poll() != 0, f"{what} can't have been done"
            assert not newcomer.is_ready(), "nobody can have registered it"
            time.sleep(0.1)

        cluster.up()
        cluster.wait_ready()
        wait_until("the newcomer is registered", newcomer.is_ready)
        newcomer.close()
        done = {what: command.end() for what, command in waiting.items()}
        if not done["a topic"]:
            again = cluster.cli("topic", "create", "later", check=False)
            assert again.returncode == 0 or b"TOPIC_EXISTS" in again.stderr
        if not done["a file"]:
            cluster.cli("file", "put", "solo", folder / "body", "--name", "late")
        for group in ("new", "old"):
            cluster.cli("consume", "events", "--group", group, "--from", "beginning", "--max", "10")
        assert cluster.cli("file", "get", "solo", "late", "-o", "-").stdout == b"y" * 2_000_000
        grows("the same producer goes on", producer.acked, patience=PATIENCE * 2)
        wait_until(
            "the node that died is in sync again",
            lambda: all(len(p["isr"]) == 3 for t in ("events", "solo") for p in cluster.json("cluster", "partitions", t)),
        )
        assert producer.stop() == 0, producer.said()
        # The other producer's records are in between, once each where they were taken.
        values = [value for value in cluster.values("events") if value != b"new"]
        assert sorted(map(int, values)) == list(range(producer.sent))
        assert sorted(producer.acked) == list(range(producer.sent))
        if done["a new producer id"]:
            assert cluster.values("events").count(b"new") == 5
        if done["the dead leader's partition"]:
            assert b"1" in cluster.values("solo")
