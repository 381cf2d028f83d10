# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Judges histories against what MemQ promises (docs/operations/delivery-guarantees.md).

The final read of a partition, made after everything healed, is its log: it gives the one order that appends and reads are judged by.
  lost         an acknowledged record is not at the offset it was acknowledged with (acks=1: unless a new leader began there since)
  gap          a read left offsets out, or a consumer group did: no member of it was given them
  duplicate    an idempotent producer's record is there twice, or another's more often than it was sent
  order        a producer's records stand in another order than it sent them in
  phantom      a record nobody sent, or one whose refusal said that it was not appended
  uncommitted  a consumer saw something else at an offset than what is there in the end, or something above the watermark
  monotonic    a consumer was led back: an offset again, a refusal where it had read, a lower watermark without a new leader
  linear       an append that ended before another began stands behind it
  sequence     acks=all, and yet the leader missed an idempotent producer's earlier records
  group        what a consumer group committed went back
  incomplete   the histories do not say enough to judge

Files are read a line at a time, everything that grows with them is kept in columns on disk.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .columns import Column
from .history import Place, read

OPEN, ACKED, REFUSED = 0, 1, 2
NOWHERE = -1
# A new leader may tell a watermark from before its election until it has caught up; the election is noticed within so long.
NOTICED_NS = 10 * 10**9
# How long a leader that stands still or is cut off may go on answering acks=1 without knowing that another one leads.
DEPOSED_NS = 60 * 10**9
SHOWN_PER_KIND = 10


@dataclass
class Report:
    """What was checked, and what is wrong."""

    violations: Counter = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)

    def wrong(self, kind: str, text: str, *places: Place | str) -> None:
        self.violations[kind] += 1
        if self.violations[kind] <= SHOWN_PER_KIND:
            where = ", ".join(map(str, places))
            self.shown.append(f"{kind}: {text}" + (f" [{where}]" if where else ""))

    @property
    def ok(self) -> bool:
        return not self.violations


class Sent:
    """What one producer sent to one partition: operations of consecutive records, in the order of n."""

    def __init__(self, scratch: str | None):
        names = ("first", "count", "sent", "done", "offset", "attempts", "outcome", "sent_line", "done_line")
        for name in names:
            setattr(self, name, Column(scratch))
        # By n: how often it is in the log, and where first.
        self.copies = Column(scratch, "B")
        self.place = Column(scratch)
        self.last_looked_up = 0

    def index(self, n: int) -> int | None:
        """The operation that holds record n."""
        at = self.last_looked_up
        if not (at < len(self.first) and self.first[at] <= n < self.first[at] + self.count[at]):
            at = bisect.bisect_right(self.first, n) - 1
            if at < 0 or n >= self.first[at] + self.count[at]:
                return None
            self.last_looked_up = at
        return at


class Log:
    """One partition as the final read found it."""

    def __init__(self, scratch: str | None):
        self.producer, self.n, self.epoch = Column(scratch), Column(scratch), Column(scratch)
        self.end_epoch: int | None = None

    def __len__(self) -> int:
        return len(self.n)

    def holds(self, offset: int, producer: int, n: int) -> bool:
        return 0 <= offset < len(self.n) and self.n[offset] == n and self.producer[offset] == producer


class Checker:
    """Checks one folder of histories."""

    def __init__(self, folder: Path, scratch: Path | None = None):
        self.folder = Path(folder)
        self.scratch = str(scratch) if scratch else None
        self.report = Report()
        self.producers: dict[int, dict] = {}
        self.sent: dict[tuple[int, str], Sent] = {}
        self.logs: dict[str, Log] = {}
        # Per partition: when an epoch was first seen by anybody.
        self.seen_epochs: dict[str, dict[int, int]] = {}

    def check(self) -> Report:
        consumers, members = [], []
        for path in sorted(self.folder.glob("*.jsonl")):
            header = next((event for _, event in read(path)), None)
            kind = header.get("kind") if header else None
            if kind == "producer":
                self._read_producer(path, header)
            elif kind == "final":
                self._read_final(path)
            elif kind == "consumer":
                consumers.append(path)
            elif kind == "member":
                members.append((header, path))
            elif kind == "control":
                self._read_control(path)
        for partition in sorted({partition for _, partition in self.sent}):
            if partition not in self.logs or self.logs[partition].end_epoch is None:
                self.report.wrong("incomplete", f"{partition} was not read to its end when all was over")
                # Without an end nothing can be judged by it.
                self.logs.pop(partition, None)
        for path in consumers:
            self._check_consumer(path)
        self._check_groups(members)
        for partition, log in sorted(self.logs.items()):
            self._check_log(partition, log)
        for (producer, partition), sent in sorted(self.sent.items()):
            self._check_acknowledged(producer, partition, sent)
        for partition, log in sorted(self.logs.items()):
            self._check_linear(partition, log)
        return self.report

    # ---- Reading -----------------------------------------------------------------------------------------------------

    def _read_producer(self, path: Path, header: dict) -> None:
        producer = header["producer"]
        if producer in self.producers:
            self.report.wrong("incomplete", f"two histories are of producer {producer}", Place(path.name, 1))
            return
        self.producers[producer] = {**header, "file": path.name}
        for line, event in read(path):
            what = event["e"]
            if what not in ("send", "again", "ack", "refused", "sequence"):
                continue
            partition, n = event["p"], event["n"]
            key = (producer, partition)
            if what == "send":
                sent = self.sent.get(key)
                if sent is None:
                    sent = self.sent[key] = Sent(self.scratch)
                last = len(sent.first) - 1
                if last >= 0 and n != sent.first[last] + sent.count[last]:
                    self.report.wrong("incomplete", f"sends of {partition} do not go on from each other",
                                      Place(path.name, line))
                for column, value in (
                    (sent.first, n), (sent.count, event["c"]), (sent.sent, event["t"]), (sent.done, 0),
                    (sent.offset, NOWHERE), (sent.attempts, 1), (sent.outcome, OPEN), (sent.sent_line, line),
                    (sent.done_line, 0),
                ):
                    column.append(value)
                sent.copies.extend_to(n + event["c"])
                sent.place.extend_to(n + event["c"])
                self.report.counts["sent"] += event["c"]
                continue
            sent = self.sent.get(key)
            at = sent.index(n) if sent else None
            if at is None or sent.first[at] != n:
                self.report.wrong("incomplete", f"{what} of {partition} n {n}, which was never sent", Place(path.name, line))
                continue
            if what == "again":
                sent.attempts[at] += 1
                sent.outcome[at] = OPEN
            elif what == "sequence":
                if header["acks"] == "all":
                    self.report.wrong(
                        "sequence", f"producer {producer} was told that records of {partition} before n {n} are missing",
                        Place(path.name, line),
                    )
            else:
                sent.done[at] = event["t"]
                sent.done_line[at] = line
                if what == "ack":
                    sent.outcome[at] = ACKED
                    sent.offset[at] = event["o"]
                    self.report.counts["acknowledged"] += sent.count[at]
                else:
                    sent.outcome[at] = REFUSED

    def _saw_epoch(self, partition: str, epoch: int, at: int) -> None:
        # -1: the reader was not told.
        if epoch < 0:
            return
        seen = self.seen_epochs.setdefault(partition, {})
        if epoch not in seen or at < seen[epoch]:
            seen[epoch] = at

    def _has_new_leader(self, partition: str, epoch: int, at: int) -> bool:
        return any(
            known > epoch and seen < at + NOTICED_NS for known, seen in self.seen_epochs.get(partition, {}).items()
        )

    def _read_control(self, path: Path) -> None:
        for _, event in read(path):
            if event["e"] == "leader":
                self._saw_epoch(event["p"], event["epoch"], event["t"])
            elif event["e"] == "fault":
                self.report.counts["faults"] += 1

    def _read_final(self, path: Path) -> None:
        for line, event in read(path):
            if event["e"] not in ("read", "end"):
                continue
            log = self.logs.get(event["p"])
            if log is None:
                log = self.logs[event["p"]] = Log(self.scratch)
            if event["o"] != len(log):
                self.report.wrong(
                    "gap", f"the final read of {event['p']} goes on at offset {event['o']} instead of {len(log)}",
                    Place(path.name, line),
                )
                # The places of what follows would be wrong.
                for _ in range(len(log), event["o"]):
                    log.producer.append(-1), log.n.append(-1), log.epoch.append(0)
            if event["e"] == "end":
                log.end_epoch = event["epoch"]
                continue
            for producer, n, count, epoch in event["r"]:
                for k in range(count):
                    log.producer.append(producer)
                    log.n.append(n + k)
                    log.epoch.append(epoch)
                self._saw_epoch(event["p"], epoch, event["t"])
            self.report.counts["in the log"] = sum(map(len, self.logs.values()))

    # ---- Judging -----------------------------------------------------------------------------------------------------

    def _place(self, producer: int, line: int) -> Place:
        return Place(self.producers[producer]["file"], line)

    def _check_log(self, partition: str, log: Log) -> None:
        """What is there: sent by somebody, as often and in the order that the producer's kind allows."""
        highest: dict[int, int] = {}
        last_epoch = 0
        for offset in range(len(log)):
            producer, n = log.producer[offset], log.n[offset]
            if producer < 0:
                continue
            if log.epoch[offset] < last_epoch:
                self.report.wrong("order", f"{partition} offset {offset}: leader epoch {log.epoch[offset]} behind {last_epoch}")
            last_epoch = log.epoch[offset]
            sent = self.sent.get((producer, partition))
            at = sent.index(n) if sent else None
            if at is None:
                self.report.wrong("phantom", f"{partition} offset {offset}: nobody sent record {n} of producer {producer}")
                continue
            place = self._place(producer, sent.sent_line[at])
            if sent.outcome[at] == REFUSED:
                self.report.wrong("phantom", f"{partition} offset {offset} holds record {n} of producer {producer}, whose "
                                  "refusal said that it was not appended", self._place(producer, sent.done_line[at]))
            copies = min(sent.copies[n] + 1, 255)
            sent.copies[n] = copies
            idempotent = self.producers[producer]["idempotent"]
            if copies == 1:
                sent.place[n] = offset
                if n < highest.get(producer, -1):
                    self.report.wrong("order", f"{partition} offset {offset}: record {n} of producer {producer} stands behind "
                                      f"{highest[producer]}", place)
                highest[producer] = max(n, highest.get(producer, -1))
            elif copies > (1 if idempotent else sent.attempts[at]):
                allowed = "idempotent" if idempotent else f"sent {sent.attempts[at]} times"
                self.report.wrong("duplicate", f"{partition} offsets {sent.place[n]} and {offset}: record {n} of producer "
                                  f"{producer} ({allowed}) is there {copies} times", place)
            if copies > 1:
                self.report.counts["copies allowed"] += 1

    def _check_acknowledged(self, producer: int, partition: str, sent: Sent) -> None:
        log = self.logs.get(partition)
        if log is None:
            return
        acks = self.producers[producer]["acks"]
        for at in range(len(sent.first)):
            if sent.outcome[at] != ACKED:
                continue
            for k in range(sent.count[at]):
                n = sent.first[at] + k
                offset = sent.offset[at] + k if sent.offset[at] != NOWHERE else NOWHERE
                if log.holds(offset, producer, n) if offset != NOWHERE else sent.copies[n]:
                    continue
                if acks == "1" and self._is_excused(partition, log, offset, sent.sent[at]):
                    self.report.counts["acks=1 lost to a new leader"] += 1
                    continue
                there = f"is at {sent.place[n]} instead" if sent.copies[n] else "is nowhere"
                self.report.wrong(
                    "lost", f"record {n} of producer {producer} (acks={acks}) was acknowledged at {partition} offset "
                    f"{offset if offset != NOWHERE else '(not told)'} and {there}",
                    self._place(producer, sent.sent_line[at]), self._place(producer, sent.done_line[at]),
                )

    def _is_excused(self, partition: str, log: Log, offset: int, sent_at: int) -> bool:
        """A record with acks=1 may go when a leader that did not have it took over, and only then."""
        if offset == NOWHERE:
            return len(self.seen_epochs.get(partition, {})) > 1
        epoch = log.epoch[offset] if offset < len(log) else log.end_epoch
        if epoch is None:
            return False
        seen = [at for known, at in self.seen_epochs.get(partition, {}).items() if known >= epoch]
        return not seen or min(seen) >= sent_at - DEPOSED_NS and epoch > min(self.seen_epochs[partition], default=epoch)

    def _check_linear(self, partition: str, log: Log) -> None:
        """Appends take effect one by one, each between its first send and its acknowledgement."""
        # From the end: the earliest acknowledgement of all that stands behind.
        earliest, whose = None, None
        for offset in range(len(log) - 1, -1, -1):
            producer, n = log.producer[offset], log.n[offset]
            sent = self.sent.get((producer, partition))
            at = sent.index(n) if sent else None
            if at is None:
                continue
            if earliest is not None and earliest < sent.sent[at]:
                other, other_at, other_n, other_offset = whose
                self.report.wrong(
                    "linear", f"{partition} offset {offset} holds record {n} of producer {producer}, first sent after record "
                    f"{other_n} of producer {other} at offset {other_offset} had been acknowledged",
                    self._place(producer, sent.sent_line[at]),
                    self._place(other, self.sent[other, partition].done_line[other_at]),
                )
                # One report per place is enough.
                earliest, whose = None, None
            if sent.outcome[at] == ACKED and (earliest is None or sent.done[at] < earliest):
                told = sent.offset[at]
                # Of several copies only the one that was acknowledged says when it happened.
                if told == offset - (n - sent.first[at]) or told == NOWHERE and sent.copies[n] == 1:
                    earliest, whose = sent.done[at], (producer, at, n, offset)

    def _check_consumer(self, path: Path) -> None:
        """Each session (from `start` on) goes up without gaps, over what is in the final log."""
        next_offset: dict[str, int] = {}
        watermark: dict[str, int] = {}
        last_epoch: dict[str, int] = {}
        for line, event in read(path):
            what = event["e"]
            if what == "start":
                next_offset[event["p"]] = event["o"]
                watermark.pop(event["p"], None)
                continue
            if what not in ("read", "range"):
                continue
            partition, offset = event["p"], event["o"]
            place = Place(path.name, line)
            wanted = next_offset.get(partition)
            if wanted is None:
                self.report.wrong("incomplete", f"a read of {partition} before its start", place)
                continue
            if what == "range":
                self.report.wrong("monotonic", f"{partition} offset {wanted}, up to which it had read, was refused: "
                                  f"{event.get('why', 'OFFSET_OUT_OF_RANGE')} (limit {event.get('limit')})", place)
                continue
            if offset > wanted:
                self.report.wrong("gap", f"{partition} offsets {wanted} to {offset} were left out", place)
            elif offset < wanted:
                self.report.wrong("monotonic", f"{partition} offset {offset} came again, {wanted} was next", place)
            if event["r"]:
                last_epoch[partition] = event["r"][-1][3]
            self.report.counts["read by consumers"] += sum(row[2] for row in event["r"])
            offset = self._check_read(event, place)
            next_offset[partition] = offset
            high = event.get("h")
            if high is None:
                continue
            if event["r"] and offset > high:
                self.report.wrong("uncommitted", f"{partition} was read up to {offset}, above the watermark {high}", place)
            elif high < watermark.get(partition, 0) and not self._has_new_leader(
                partition, last_epoch.get(partition, -1), event["t"]
            ):
                self.report.wrong("monotonic", f"the watermark of {partition} fell from {watermark[partition]} to {high}", place)
            watermark[partition] = max(high, watermark.get(partition, 0))


    def _check_read(self, event: dict, place: Place) -> int:
        """What was read is what is there in the end; gives the offset behind it."""
        partition, offset = event["p"], event["o"]
        log = self.logs.get(partition)
        for producer, n, count, epoch in event["r"]:
            end = offset + count
            self._saw_epoch(partition, epoch, event["t"])
            if log is None or end <= len(log) and log.n.view[offset:end].tolist() == list(range(n, n + count)) \
                    and set(log.producer.view[offset:end].tolist()) == {producer}:
                offset = end
                continue
            bad = next(k for k in range(count) if not log.holds(offset + k, producer, n + k))
            there = (f"record {log.n[offset + bad]} of producer {log.producer[offset + bad]}"
                     if offset + bad < len(log) else "nothing")
            self.report.wrong("uncommitted", f"{partition} offset {offset + bad} was read as record {n + bad} of producer "
                              f"{producer}; in the end {there} is there", place)
            offset = end
        return offset

    def _check_groups(self, members: list[tuple[dict, Path]]) -> None:
        """Members take turns and begin where the group committed: together they were given everything, and no commit went back."""
        given: dict[tuple[str, str], Column] = {}
        for header, path in members:
            group, committed = header["group"], {}
            for partition in header["partitions"]:
                if (group, partition) not in given:
                    given[group, partition] = Column(self.scratch, "B")
            for line, event in read(path):
                partition, place = event.get("p"), Place(path.name, line)
                if event["e"] == "committed":
                    if event["o"] < committed.get(partition, 0):
                        self.report.wrong("group", f"the offset that {group} committed of {partition} went back from "
                                          f"{committed[partition]} to {event['o']}", place)
                    committed[partition] = event["o"]
                    self.report.counts["commits of groups seen"] += 1
                elif event["e"] == "read":
                    end = self._check_read(event, place)
                    self.report.counts["read by groups"] += end - event["o"]
                    column = given[group, partition]
                    column.extend_to(end)
                    for offset in range(event["o"], end):
                        column[offset] = 1
        for (group, partition), column in sorted(given.items()):
            log, missing = self.logs.get(partition), None
            for offset in range(len(log) if log is not None else 0):
                is_given = offset < len(column) and column[offset]
                if not is_given and missing is None:
                    missing = offset
                if missing is not None and (is_given or offset == len(log) - 1):
                    self.report.wrong("gap", f"no member of {group} was given {partition} offsets {missing} to "
                                      f"{offset if is_given else offset + 1}")
                    missing = None


def check(folder: Path, scratch: Path | None = None) -> Report:
    return Checker(folder, scratch).check()
