# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Consumer groups of real processes: members come and go, are killed and stopped, the server is restarted."""

import json
import signal
import subprocess
import threading
import time

from group_member import GroupMember
from harness import AckedProducer, Server, wait_until
from test_python_client import api  # noqa: F401: a fixture

PARTITIONS = 6


class Reader:
    """`memq consume --group`; collects (partition, offset, value) as they are printed."""

    def __init__(self, server: Server, *options: str):
        self.read: list[tuple[int, int, bytes]] = []
        self.process = server.popen(
            "consume", "t", "--group", "g", "--from", "beginning", "--session-timeout", "5s",
            "--format", "%p %o %v", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        self.thread = threading.Thread(target=self._collect, daemon=True)
        self.thread.start()

    def _collect(self) -> None:
        for line in self.process.stdout:
            # A line cut by a kill was not printed.
            if line.endswith(b"\n"):
                partition, offset, value = line.rstrip(b"\n").split(b" ", 2)
                self.read.append((int(partition), int(offset), value))

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        status = self.process.wait(60)
        self.thread.join(60)
        return status


class Watch:
    """Looks at the group all the time: no partition has two members, and no commit goes back."""

    def __init__(self, server: Server):
        self.server, self.problems, self.committed, self.looks = server, [], {}, 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def group(self) -> dict | None:
        done = self.server.cli("group", "describe", "g", "-o", "json", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def _run(self) -> None:
        while not self.stopping.wait(0.2):
            if group := self.group():
                self._look(group)

    def _look(self, group: dict) -> None:
        self.looks += 1
        readers: dict[int, str] = {}
        for member in group["members"]:
            for at in member["assigned"] + member["revoking"]:
                if readers.setdefault(at["partition"], member["id"]) != member["id"]:
                    self.problems.append(("two readers", at, group))
        for at in group["offsets"]:
            before = self.committed.get(at["partition"], -1)
            if at["offset"] is not None and at["offset"] < before:
                self.problems.append(("a commit went back", before, at))
            if at["offset"] is not None:
                self.committed[at["partition"]] = at["offset"]

    def shares(self) -> list[int]:
        """Partitions of each member, when nothing moves."""
        group = self.group()
        if not group or group["state"] != "stable":
            return []
        return sorted(len(member["assigned"]) for member in group["members"])

    def wait(self, *shares: int) -> None:
        wait_until(f"the members have {shares}", lambda: self.shares() == list(shares))

    def caught_up(self) -> bool:
        group = self.group()
        return bool(group) and all((at["offset"] or 0) == at["high_watermark"] for at in group["offsets"])

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(60)
        assert not self.problems and self.looks > 0, self.problems[:3]


def test_members_share_without_reading_anything_twice_and_take_over_what_others_leave(server, api):  # noqa: F811
    server.cli("topic", "create", "t", "--partitions", PARTITIONS)
    producer = AckedProducer(server, "t", per_second=1_500)
    readers = [Reader(server)]
    watch = Watch(server)
    watch.wait(6)
    readers.append(Reader(server))
    watch.wait(3, 3)
    python = GroupMember(api, server.address, "g", "t")
    watch.wait(2, 2, 2)
    # A clean end: its partitions are the others' at once.
    assert readers[0].end(signal.SIGINT) == 0
    watch.wait(3, 3)
    # A topic that grows.
    server.cli("topic", "alter", "t", "--partitions", PARTITIONS + 2)
    watch.wait(4, 4)
    assert producer.stop() == 0
    wait_until("all is read", watch.caught_up)
    python.stop()
    assert readers[1].end(signal.SIGINT) == 0
    watch.stop()
    read = [one for reader in [*readers, python] for one in reader.read]
    assert len({(p, o) for p, o, _ in read}) == len(read), "nothing was read twice"
    assert sorted(int(value) for *_, value in read) == sorted(producer.acked)
    assert python.joins == 1 and python.read, "it was a member all the time, and read"

    # Nobody reads: offsets are set, looked at before, and forgotten.
    ends = json.loads(server.cli("group", "reset", "g", "t", "--ago", "1h", "--dry-run", "-o", "json").stdout)
    assert {row["offset"] for row in ends} == {0} and all(row["before"] > 0 for row in ends[:PARTITIONS])
    assert json.loads(server.cli("group", "describe", "g", "-o", "json").stdout)["lag"] == 0
    server.cli("group", "reset", "g", "t", "--to", "5", "--partition", "0")
    rows = json.loads(server.cli("group", "describe", "g", "-o", "json").stdout)["offsets"]
    assert rows[0]["offset"] == 5 and rows[0]["lag"] == rows[0]["high_watermark"] - 5
    server.cli("group", "delete", "g")
    assert json.loads(server.cli("group", "list", "-o", "json").stdout) == []


def test_a_member_that_ends_at_the_end_may_join_others(server):
    server.cli("topic", "create", "t", "--partitions", PARTITIONS)
    producer = AckedProducer(server, "t", per_second=1_500)
    reader = Reader(server)
    watch = Watch(server)
    watch.wait(6)
    # At first it has no partition.
    last = Reader(server, "--until-end")
    assert last.process.wait(60) == 0, last.process.stderr.read()
    last.thread.join(60)
    assert producer.stop() == 0
    wait_until("all is read", watch.caught_up)
    assert reader.end(signal.SIGINT) == 0
    watch.stop()
    assert sorted(int(value) for *_, value in reader.read + last.read) == sorted(producer.acked)


def test_members_are_killed_and_stopped_and_the_server_restarted_and_nothing_is_left_out(server, api):  # noqa: F811
    server.cli("topic", "create", "t", "--partitions", PARTITIONS)
    producer = AckedProducer(server, "t", per_second=1_500)
    readers = [Reader(server), Reader(server)]
    watch = Watch(server)
    watch.wait(3, 3)
    # Killed, and started again: the kernel closes its connections, and the next one has its place at once.
    readers[0].end(signal.SIGKILL)
    readers.append(Reader(server))
    began = time.monotonic()
    watch.wait(3, 3)
    assert time.monotonic() - began < 60
    python = GroupMember(api, server.address, "g", "t")
    watch.wait(2, 2, 2)
    # Stopped for longer than its session: others have its partitions, and it comes back as a new member.
    readers[1].process.send_signal(signal.SIGSTOP)
    watch.wait(3, 3)
    readers[1].process.send_signal(signal.SIGCONT)
    watch.wait(2, 2, 2)
    # kill -9 of everything that serves: members go on where they were.
    before = {member["id"] for member in watch.group()["members"]}
    server.kill()
    server.start()
    watch.wait(2, 2, 2)
    kept = {member["id"] for member in watch.group()["members"]} & before
    assert len(kept) >= 2, "the readers are still the members they were"
    assert producer.stop() == 0
    wait_until("all is read", watch.caught_up)
    python.stop()
    for reader in readers[1:]:
        assert reader.end(signal.SIGINT) == 0
    watch.stop()
    read = {int(value) for reader in [*readers, python] for *_, value in reader.read}
    assert set(producer.acked) <= read, "what was acknowledged was read"
