# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""An unclean election loses records that were read (KIP-320): readers are told, and go on where both histories agree."""

import grpc
from group_member import GroupMember
from harness import Reader, wait_until
from test_c_client import build, prefix, tool  # noqa: F401: fixtures
from test_python_client import api  # noqa: F401: a fixture
from test_replication import NODES, Cluster


def commit(cluster, group):
    rows = cluster.json("group", "describe", group)["offsets"]
    return (rows[0]["offset"], rows[0]["leader_epoch"]) if rows else (None, None)


def test_readers_are_told_what_an_unclean_election_lost(folder, api, prefix):  # noqa: F811
    cluster = Cluster(folder)
    cluster.environments["metadata"] = {"MEMQ_ELECTION_RECOVERY_WAIT": "1s"}

    def produce(values):
        cluster.cli("produce", "t", stdin=b"".join(value + b"\n" for value in values))

    with cluster.start():
        cluster.create("t", 1, "--set", "unclean.leader.election.enable=true", minimum=1)
        old = [b"old %d" % n for n in range(20)]
        new = [b"new %d" % n for n in range(15)]
        produce(old[:10])
        leader = cluster.leader("t")
        others = [name for name in NODES if name != leader]
        cluster.kill_one(*others)
        wait_until("the leader is alone in sync", lambda: cluster.in_sync("t", 1))
        produce(old[10:])
        # One reads on all the time with the SDK, one in another language; a third has committed and gone.
        reader = Reader(cluster, "t", "--group", "sdk", "--format", "%o %v")
        member = GroupMember(api, cluster.address, "python", "t")
        done = tool(prefix, "memq-c-consume", "--group", "c", cluster.address, "t", 20)
        assert done.returncode == 0 and done.stdout.splitlines() == old, done.stderr
        wait_until("both have read", lambda: len(reader.values) == 20 and len(member.read) == 20)
        wait_until("all have committed", lambda: all(commit(cluster, g)[0] == 20 for g in ("sdk", "python", "c")))
        epochs = {commit(cluster, group)[1] for group in ("sdk", "python", "c")}
        assert len(epochs) == 1 and None not in epochs
        epoch = epochs.pop()

        # Who has them dies, and who lacks them leads. More comes than was lost, so that the old offset exists again.
        cluster.kill_one(leader)
        cluster.start_one(others[0])
        produce(new)
        assert cluster.leader("t") == others[0]
        whole = [b"%d %s" % (10 + n, value) for n, value in enumerate(new)]
        wait_until("the SDK's reader has all that is new", lambda: len(reader.values) >= 35)
        assert reader.values[20:] == whole and "lost records" in reader.said()
        wait_until("the member has all that is new", lambda: len(member.read) >= 35)
        assert [(offset, value) for _, offset, value in member.read[20:]] == list(enumerate(new, 10))
        assert member.truncations == [(0, 10)]
        done = tool(prefix, "memq-c-consume", "--group", "c", cluster.address, "t", 15)
        assert done.returncode == 0 and done.stdout.splitlines() == new, done.stderr
        for group in ("sdk", "python", "c"):
            wait_until("the new place is committed", lambda group=group: commit(cluster, group)[0] == 25)
            assert commit(cluster, group)[1] > epoch
        with grpc.insecure_channel(cluster.address) as channel:
            fetch = api.ingest_pb2_grpc.IngestServiceStub(channel).Fetch
            at = api.ingest_pb2.FetchPosition
            (told,) = fetch(api.ingest_pb2.FetchRequest(topic="t", positions=[at(offset=20, last_epoch=epoch)]))
            assert told.error.code == api.errors_pb2.ERROR_CODE_LOG_TRUNCATED and not told.error.retriable
            assert told.error.limit == told.next_offset == told.truncation.end_offset == 10
            # Where nothing was read before, nothing is compared.
            unchecked = list(fetch(api.ingest_pb2.FetchRequest(topic="t", positions=[at(offset=20)])))
            assert not unchecked[0].HasField("error") and unchecked[-1].next_offset == 25
        reader.stop()
        member.stop()
