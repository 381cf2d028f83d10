# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""The checker accepts a right history and refuses each kind of wrong one, with the place."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from chaos.checker import check  # noqa: E402
from chaos.columns import Column  # noqa: E402
from chaos.history import Runs, Writer, name_of, read, value_of  # noqa: E402

P = "events/0"
S = 10**9


class History:
    """Two producers, a consumer and a final read, all right; tests bend one thing."""

    def __init__(self, folder: Path, acks="all", idempotent=True):
        self.folder = folder
        self.files = {
            "control": [{"e": "begin", "t": 0, "kind": "control"}, {"e": "leader", "t": 1, "p": P, "epoch": 1, "leader": 1}],
            "producer-1": [
                {"e": "begin", "t": 0, "kind": "producer", "producer": 1, "idempotent": idempotent, "acks": acks},
                {"e": "send", "t": 1 * S, "p": P, "n": 0, "c": 2},
                {"e": "ack", "t": 2 * S, "p": P, "n": 0, "o": 0},
                {"e": "send", "t": 3 * S, "p": P, "n": 2, "c": 2},
                {"e": "ack", "t": 6 * S, "p": P, "n": 2, "o": 3},
            ],
            "producer-2": [
                {"e": "begin", "t": 0, "kind": "producer", "producer": 2, "idempotent": True, "acks": "all"},
                {"e": "send", "t": 3 * S, "p": P, "n": 0, "c": 1},
                {"e": "ack", "t": 5 * S, "p": P, "n": 0, "o": 2},
            ],
            "consumer-1": [
                {"e": "begin", "t": 0, "kind": "consumer"},
                {"e": "start", "t": 0, "p": P, "o": 0},
                {"e": "read", "t": 4 * S, "p": P, "o": 0, "h": 2, "r": [[1, 0, 2, 1]]},
                {"e": "read", "t": 7 * S, "p": P, "o": 2, "h": 5, "r": [[2, 0, 1, 1], [1, 2, 2, 1]]},
            ],
            "final": [
                {"e": "begin", "t": 90 * S, "kind": "final"},
                {"e": "read", "t": 99 * S, "p": P, "o": 0, "h": 5, "r": [[1, 0, 2, 1], [2, 0, 1, 1], [1, 2, 2, 1]]},
                {"e": "end", "t": 99 * S, "p": P, "o": 5, "epoch": 1},
            ],
        }

    def check(self):
        for name, events in self.files.items():
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
        return check(self.folder)

    def log(self, *rows, epoch=1):
        """Another final log; the consumer read nothing."""
        self.files["final"][1] |= {"r": [list(row) for row in rows], "h": 9}
        self.files["final"][2] |= {"o": sum(row[2] for row in rows), "epoch": epoch}
        del self.files["consumer-1"][2:]


@pytest.fixture
def history(tmp_path):
    return History(tmp_path)


def refused(history, kind, *places):
    """It is wrong in this way, and in no other; the places are named."""
    report = history.check()
    assert set(report.violations) == {kind}, report.shown
    for place in places:
        assert place in report.shown[0], report.shown
    return report.shown[0]


def test_a_right_history_is_accepted(history):
    report = history.check()
    assert report.ok, report.shown
    assert report.counts["acknowledged"] == 5 and report.counts["read by consumers"] == 5


def test_a_lost_record_is_refused(history):
    history.log([1, 0, 2, 1], [2, 0, 1, 1], [1, 2, 1, 1])
    text = refused(history, "lost", "producer-1.jsonl:4", "producer-1.jsonl:5")
    assert "record 3 of producer 1" in text and "nowhere" in text


def test_a_record_at_another_offset_than_acknowledged_is_refused(history):
    history.files["producer-2"][2]["o"] = 4
    assert "is at 2 instead" in refused(history, "lost", "producer-2.jsonl:3")


def test_a_lost_record_is_found_when_its_offset_was_not_told(history):
    history.files["producer-2"][2]["o"] = -1
    assert history.check().ok
    history.log([1, 0, 2, 1], [1, 2, 2, 1])
    history.files["producer-1"][4]["o"] = 2
    refused(history, "lost", "producer-2.jsonl:3")


def test_a_gap_in_the_log_is_refused(history):
    history.files["final"][1]["r"].pop()
    history.files["final"].insert(2, {"e": "read", "t": 99 * S, "p": P, "o": 4, "h": 6, "r": [[1, 2, 2, 1]]})
    history.files["final"][3]["o"] = 6
    history.files["producer-1"][4]["o"] = 4
    history.files["consumer-1"].pop()
    refused(history, "gap", "final.jsonl:3")


def test_a_gap_in_what_a_consumer_saw_is_refused(history):
    history.files["consumer-1"][3] |= {"o": 3, "r": [[1, 2, 2, 1]]}
    refused(history, "gap", "consumer-1.jsonl:4")


def test_a_duplicate_of_an_idempotent_producer_is_refused(history):
    history.files["producer-1"].insert(4, {"e": "again", "t": 4 * S, "p": P, "n": 2})
    history.log([1, 0, 2, 1], [2, 0, 1, 1], [1, 2, 2, 1], [1, 2, 2, 1])
    assert "offsets 3 and 5" in refused(history, "duplicate", "producer-1.jsonl:4")


def test_a_duplicate_is_allowed_as_often_as_it_was_sent_without_idempotence(tmp_path):
    history = History(tmp_path, idempotent=False)
    history.log([1, 0, 2, 1], [2, 0, 1, 1], [1, 2, 2, 1], [1, 2, 2, 1])
    refused(history, "duplicate")
    history.files["producer-1"].insert(4, {"e": "again", "t": 4 * S, "p": P, "n": 2})
    assert history.check().ok


def test_another_order_than_sent_is_refused(history):
    history.files["producer-1"][4]["o"] = 0
    history.files["producer-1"][2] |= {"o": 3, "t": 6 * S}
    history.log([1, 2, 2, 1], [2, 0, 1, 1], [1, 0, 2, 1])
    refused(history, "order")


def test_a_leader_epoch_that_falls_is_refused(history):
    history.log([1, 0, 2, 2], [2, 0, 1, 1], [1, 2, 2, 2], epoch=2)
    refused(history, "order")


def test_a_record_nobody_sent_is_refused(history):
    history.log([1, 0, 2, 1], [2, 0, 1, 1], [1, 2, 2, 1], [7, 0, 1, 1])
    refused(history, "phantom")


def test_a_refused_record_that_is_there_is_refused(history):
    history.files["producer-2"][2] = {"e": "refused", "t": 5 * S, "p": P, "n": 0, "why": "NOT_ENOUGH_REPLICAS"}
    refused(history, "phantom", "producer-2.jsonl:3")


def test_a_read_of_what_was_not_committed_is_refused(history):
    # A stale leader served record 2 of producer 1 where record 0 of producer 2 is in the end.
    history.files["consumer-1"][3] |= {"h": 4, "r": [[1, 2, 2, 1]]}
    assert "offset 2 was read as record 2 of producer 1" in refused(history, "uncommitted", "consumer-1.jsonl:4")


def test_a_read_above_the_watermark_is_refused(history):
    history.files["consumer-1"][3]["h"] = 4
    refused(history, "uncommitted", "consumer-1.jsonl:4")


def test_a_consumer_that_is_led_back_is_refused(history):
    history.files["consumer-1"][3] |= {"o": 1, "r": [[1, 1, 1, 1], [2, 0, 1, 1], [1, 2, 2, 1]]}
    refused(history, "monotonic", "consumer-1.jsonl:4")


def test_a_new_session_may_begin_anywhere(history):
    history.files["consumer-1"].insert(3, {"e": "start", "t": 5 * S, "p": P, "o": 1})
    history.files["consumer-1"][4] |= {"o": 1, "r": [[1, 1, 1, 1], [2, 0, 1, 1], [1, 2, 2, 1]]}
    assert history.check().ok


def test_a_watermark_that_falls_without_a_new_leader_is_refused(history):
    history.files["consumer-1"].append({"e": "read", "t": 8 * S, "p": P, "o": 5, "h": 4, "r": []})
    refused(history, "monotonic", "consumer-1.jsonl:5")
    history.files["control"].append({"e": "leader", "t": 8 * S, "p": P, "epoch": 2, "leader": 2})
    assert history.check().ok


def test_a_stale_out_of_range_is_refused(history):
    history.files["consumer-1"].append({"e": "range", "t": 8 * S, "p": P, "o": 5, "limit": 3})
    refused(history, "monotonic", "consumer-1.jsonl:5")


def group(history, *members):
    for number, events in enumerate(members, 1):
        history.files[f"member-{number}"] = [{"e": "begin", "t": 0, "kind": "member", "group": "g", "partitions": [P]}, *events]


def given(offset, *rows):
    return {"e": "read", "t": 8 * S, "p": P, "o": offset, "r": [list(row) for row in rows]}


def test_members_of_a_group_may_read_again_and_take_turns(history):
    group(history, [given(0, [1, 0, 2, -1]), given(1, [1, 1, 1, -1], [2, 0, 1, -1])], [given(3, [1, 2, 2, -1])])
    report = history.check()
    assert report.ok and report.counts["read by groups"] == 6, report.shown


def test_a_record_no_member_of_a_group_was_given_is_refused(history):
    group(history, [given(0, [1, 0, 2, -1])], [given(3, [1, 2, 2, -1])])
    assert "events/0 offsets 2 to 3" in refused(history, "gap")
    group(history, [given(0, [1, 0, 2, -1], [2, 0, 1, -1])], [given(3, [1, 2, 1, -1])])
    assert "events/0 offsets 4 to 5" in refused(history, "gap")
    group(history, [], [])
    assert "events/0 offsets 0 to 5" in refused(history, "gap")


def test_a_member_that_read_something_else_is_refused(history):
    group(history, [given(0, [1, 0, 2, -1], [2, 0, 1, -1], [1, 2, 1, -1], [1, 2, 1, -1])])
    refused(history, "uncommitted", "member-1.jsonl:2")


def test_a_commit_that_goes_back_is_refused(history):
    commits = [{"e": "committed", "t": 8 * S, "p": P, "o": o} for o in (3, 5)]
    group(history, [given(0, [1, 0, 2, -1], [2, 0, 1, -1], [1, 2, 2, -1]), *commits])
    assert history.check().ok
    group(history, [given(0, [1, 0, 2, -1], [2, 0, 1, -1], [1, 2, 2, -1]), *reversed(commits)])
    refused(history, "group", "member-1.jsonl:4")


def test_an_append_before_one_that_had_ended_is_refused(history):
    history.files["producer-1"][3]["t"] = 5 * S + 1
    history.log([1, 0, 2, 1], [1, 2, 2, 1], [2, 0, 1, 1])
    history.files["producer-1"][4]["o"] = 2
    history.files["producer-2"][2]["o"] = 4
    refused(history, "linear", "producer-1.jsonl:4", "producer-2.jsonl:3")


def test_an_append_whose_end_nobody_knows_may_stand_anywhere_behind_its_beginning(history):
    # It was sent at 3 s and never answered: it may be last, but not first.
    history.files["producer-2"][2:] = []
    history.log([1, 0, 2, 1], [1, 2, 2, 1], [2, 0, 1, 1])
    history.files["producer-1"][4]["o"] = 2
    assert history.check().ok
    history.log([2, 0, 1, 1], [1, 0, 2, 1], [1, 2, 2, 1])
    history.files["producer-1"][2]["o"] = 1
    history.files["producer-1"][4]["o"] = 3
    refused(history, "linear", "producer-2.jsonl:2", "producer-1.jsonl:3")


def test_only_a_new_leader_may_lose_what_one_replica_acknowledged(tmp_path):
    history = History(tmp_path, acks="1")
    history.log([1, 0, 2, 1], [2, 0, 1, 1])
    refused(history, "lost", "producer-1.jsonl:5")
    history.files["control"].append({"e": "leader", "t": 7 * S, "p": P, "epoch": 2, "leader": 2})
    history.log([1, 0, 2, 1], [2, 0, 1, 1], epoch=2)
    report = history.check()
    assert report.ok and report.counts["acks=1 lost to a new leader"] == 2, report.shown
    # What somebody has read stays, whatever its acknowledgement said.
    history.files["consumer-1"].append({"e": "read", "t": 7 * S, "p": P, "o": 0, "h": 5,
                                        "r": [[1, 0, 2, 1], [2, 0, 1, 1], [1, 2, 2, 1]]})
    refused(history, "uncommitted", "consumer-1.jsonl:3")


def test_a_leader_that_misses_earlier_records_is_refused_with_acks_all_only(tmp_path, history):
    history.files["producer-1"].insert(4, {"e": "sequence", "t": 4 * S, "p": P, "n": 2})
    refused(history, "sequence", "producer-1.jsonl:5")
    history.files["producer-1"][0]["acks"] = "1"
    assert history.check().ok


def test_a_partition_without_a_final_read_is_refused(history):
    history.files["final"].pop()
    refused(history, "incomplete")


def test_values_name_their_record_and_a_damaged_one_names_none():
    assert all(name_of(value_of(3, n)) == (3, n) for n in range(1000))
    assert name_of(value_of(3, 5)[:-1]) is None and name_of(b"3:x:") is None


def test_runs_put_consecutive_records_together():
    runs = Runs()
    for producer, n, epoch in [(1, 0, 1), (1, 1, 1), (2, 0, 1), (1, 2, 1), (1, 3, 2)]:
        runs.add(producer, n, epoch)
    assert runs.rows == [[1, 0, 2, 1], [2, 0, 1, 1], [1, 2, 1, 1], [1, 3, 1, 2]]


def test_a_file_that_a_kill_cut_short_is_read_up_to_there(tmp_path):
    path = tmp_path / "producer-1.jsonl"
    writer = Writer(path, kind="producer", producer=1)
    writer.put(e="send", p=P, n=0, c=1)
    writer.close()
    path.write_bytes(path.read_bytes() + b'{"e":"ack","p"')
    assert [event["e"] for _, event in read(path)] == ["begin", "send"]


def test_columns_grow_and_keep_what_they_hold(tmp_path):
    column = Column(str(tmp_path))
    for n in range(10_000):
        column.append(n)
    assert len(column) == 10_000 and column[0] == 0 and column[9_999] == 9_999
    column.extend_to(100_000)
    assert column[99_999] == 0 and column[5_000] == 5_000
    with pytest.raises(IndexError):
        column[100_000]
    assert list(tmp_path.iterdir()) == [], "nothing stays behind"
