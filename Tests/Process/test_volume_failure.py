# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Disks of a cluster that fail as a whole or in places: other replicas take over, and what was lost is filled anew."""

import json
import shutil

from faults import Faults
from harness import AckedProducer, Server, wait_until
from test_log_repair import memq
from test_replication import NODES, Cluster


def states(cluster, name):
    """A node's volumes by folder, as the cluster knows them."""
    pid = cluster.processes[name].pid
    (node,) = [n for n in cluster.json("cluster", "nodes") if n["pid"] == pid]
    return node["id"], {v["id"]: v["state"] for v in node["volume_states"]}


def check_all_there(cluster, topic, producer):
    values = [int(v) for v in cluster.values(topic)]
    missing = set(producer.acked) - set(values)
    assert not missing, f"{len(missing)} of {len(producer.acked)} acknowledged records are gone"
    assert len(values) == len(set(values))


def test_a_failed_volume_costs_its_replicas_alone_and_an_empty_one_takes_its_place(folder):
    faults = Faults(folder)
    cluster = Cluster(folder, volumes=2)
    victim = NODES[0]
    cluster.environments[victim] = faults.environment
    with cluster.start():
        cluster.create("events", 6)
        producer = AckedProducer(cluster, "events", per_second=2_000)
        wait_until("records are acknowledged", lambda: len(producer.acked) > 1_000)
        node, _ = states(cluster, victim)
        fault = faults.set("sync", "/volume-0/segment-", times=1)
        wait_until("the fault was had", lambda: faults.had(fault) == 1)
        wait_until("the cluster knows", lambda: "failed" in states(cluster, victim)[1].values(), 10)
        (failed,) = [v for v, state in states(cluster, victim)[1].items() if state == "failed"]

        # Half of the node's replicas are out, and none of them leads; the others go on.
        def is_fenced():
            rows = cluster.partitions("events")
            out = [row for row in rows if node not in row["isr"]]
            return len(out) == 3 and all(row["leader"] not in (None, node) for row in out) and rows

        wait_until("its replicas are fenced, and no others", is_fenced, 10)
        seen = len(producer.acked)
        wait_until("producing goes on", lambda: len(producer.acked) > seen + 1_000)
        assert producer.stop() == 0, producer.said()
        assert sorted(producer.acked) == list(range(producer.sent))
        assert is_fenced(), "a failed volume stays out"
        text = cluster.cli("cluster", "nodes")
        assert b"1 of 2 fit" in text.stdout and failed.encode() in text.stderr and b"VOLUME_FAILED" in text.stderr
        cluster.cli("topic", "create", "later", "--partitions", "6", "--replication-factor", "3")
        assert all(len(row["isr"]) == 3 for row in cluster.partitions("later"))

        # Another disk in its place.
        cluster.processes[victim].terminate()
        assert cluster.processes[victim].wait(30) == 0
        shutil.rmtree(folder / victim / "volume-0")
        cluster.environments = {}
        cluster.start_one(victim)
        wait_until("all replicas are in sync", lambda: cluster.in_sync("events"))
        assert failed not in states(cluster, victim)[1]
        check_all_there(cluster, "events", producer)


def test_a_volume_without_one_of_its_segment_files_is_fenced_and_filled_anew_from_the_others(folder):
    cluster = Cluster(folder, volumes=2)
    victim = NODES[0]
    with cluster.start():
        # Nothing leaves the disks, so that every segment is needed; six partitions of each node stand on two volumes.
        cluster.create("events", 6, "--set", "object.tier=false")
        value = b"v" * 10_000

        def produce(first, count):
            cluster.cli("produce", "events", stdin=b"".join(b"%d-%s\n" % (n, value) for n in range(first, first + count)))

        def hot_segments():
            """By their sequence; all but the last are sealed."""
            headers = {}
            for path in (folder / victim / "volume-0").glob("segment-*"):
                with open(path, "rb") as file:
                    headers[path] = file.read(56)
            return {int.from_bytes(h[48:56], "big"): path for path, h in headers.items() if h[:4] == b"MQSG" and h[5] == 0}

        made = 0
        while len(hot_segments()) < 3:
            assert made < 60_000, "segments of 16 MiB are full after less"
            produce(made, 2_000)
            made += 2_000
        node, volumes = states(cluster, victim)
        cluster.processes[victim].terminate()
        assert cluster.processes[victim].wait(60) == 0
        hot = hot_segments()
        hot[min(hot)].unlink()
        text = memq("log", "verify", "--data", folder / victim / "volume-0", status=5).stdout.decode()
        assert f"REFUSED segment {min(hot)} position 0" in text and "a segment is missing" in text, text

        cluster.start_one(victim)
        pid = cluster.processes[victim].pid
        wait_until("the node is back", lambda: any(n["pid"] == pid for n in cluster.json("cluster", "nodes")))
        wait_until("the cluster knows", lambda: "failed" in states(cluster, victim)[1].values(), 30)
        log = (folder / f"{victim}.log").read_text()
        assert f"segment {min(hot)} position 0" in log and "a segment is missing" in log

        def is_fenced():
            rows = cluster.partitions("events")
            out = [row for row in rows if node not in row["isr"]]
            return len(out) == 3 and all(row["leader"] not in (None, node) for row in out)

        wait_until("its replicas are fenced, those on the other volume are not", is_fenced, 60)
        produce(made, 1_000)
        made += 1_000

        # As docs/operations/damaged-disks.md has it: the others are whole, so the volume begins anew.
        cluster.processes[victim].terminate()
        assert cluster.processes[victim].wait(60) == 0
        (folder / victim / "volume-0").rename(folder / "damaged")
        cluster.start_one(victim)
        wait_until("all replicas are in sync", lambda: cluster.in_sync("events"))
        assert set(states(cluster, victim)[1]) != set(volumes)
        # It holds all there is: it serves without one of the others, which must be led from it or from the third.
        other = next(name for name in NODES if name != victim)
        cluster.kill_one(other)
        produce(made, 1_000)
        made += 1_000
        wait_until("all are led", lambda: all(row["leader"] is not None for row in cluster.partitions("events")))
        assert any(row["leader"] == node for row in cluster.partitions("events"))
        assert sorted(int(v.split(b"-")[0]) for v in cluster.values("events")) == list(range(made))


def flip(data, topic, number):
    """Changes a byte in the number-th batch of the topic's partition 0 in the data folder of a node that runs."""
    out = memq("log", "dump", "--live", "--data", data, "--partition", f"{topic}/0", "-o", "json").stdout
    frame = [f for f in json.loads(out) if f["type"] == "batch"][number]
    for path in sorted(data.glob("volume*/segment-*")):
        with open(path, "r+b") as file:
            if int.from_bytes(file.read(56)[48:56], "big") != frame["segment"]:
                continue
            file.seek(frame["position"] + 100)
            byte = file.read(1)[0]
            file.seek(frame["position"] + 100)
            file.write(bytes([byte ^ 0x20]))
            return frame["base_offset"]
    raise AssertionError(f"no file holds segment {frame['segment']}")


def test_damage_under_a_leader_and_a_follower_is_never_served_and_both_are_filled_anew(folder):
    with Cluster(folder).start() as cluster:
        cluster.create("events", 1, "--set", "object.tier=false")
        for part in range(20):
            lines = b"".join(b"%d\n" % (part * 50 + n) for n in range(50))
            cluster.cli("produce", "events", stdin=lines)
        # From now on nothing is in memory.
        cluster.kill_one(*NODES)
        for name in NODES:
            cluster.start_one(name)
        wait_until("all replicas are in sync", lambda: cluster.in_sync("events"))
        (before,) = cluster.partitions("events")
        # Who leads, and who will when that one can not.
        first = before["leader"]
        second = next(n for n in before["replicas"] if n != first)
        topic = cluster.json("topic", "describe", "events")["id"]
        flip(folder / cluster.name_of(first), topic, 3)
        flip(folder / cluster.name_of(second), topic, 9)
        producer = AckedProducer(cluster, "events", 1_000, per_second=1_000)
        wait_until("records are acknowledged", lambda: len(producer.acked) > 100)

        values = [int(v) for v in cluster.values("events")]
        assert values[:1_000] == list(range(1_000)), "what is read is what was written"
        (now,) = cluster.partitions("events")
        assert now["leader"] not in (None, first, second)
        wait_until(
            "both are filled anew and in sync",
            lambda: cluster.in_sync("events") and not cluster.partitions("events")[0]["damaged"],
        )
        seen = len(producer.acked)
        wait_until("producing goes on", lambda: len(producer.acked) > seen + 100)
        assert producer.stop() == 0, producer.said()
        assert sorted(producer.acked) == list(range(1_000, producer.sent))

        # What they hold now is whole: without the third, all is there.
        cluster.kill_one(cluster.name_of(now["leader"]))
        wait_until("another leads", lambda: cluster.partitions("events")[0]["leader"] in (first, second))
        assert [int(v) for v in cluster.values("events")] == list(range(producer.sent))


def test_the_last_in_sync_replica_gives_way_when_it_is_found_damaged_at_its_start(folder):
    with Cluster(folder).start() as cluster:
        cluster.create("events", 1, "--set", "object.tier=false")
        for part in range(20):
            cluster.cli("produce", "events", stdin=b"".join(b"%d\n" % (part * 50 + n) for n in range(50)))
        topic = cluster.json("topic", "describe", "events")["id"]
        names = {node["id"]: cluster.name_of(node["id"]) for node in cluster.ready_nodes()}
        cluster.kill_one(*NODES)
        wait_until("all are gone", lambda: cluster.partitions("events")[0]["leader"] is None)
        (row,) = cluster.partitions("events")
        victim, held = row["isr"][0], sorted(row["isr"] + row["elr"])
        whole = flip(folder / names[victim], topic, 5)

        # Alone it is the last in sync, and gives what is whole of it.
        cluster.start_one(names[victim])
        wait_until("it leads alone", lambda: cluster.partitions("events")[0]["leader"] == victim)
        (row,) = cluster.partitions("events")
        # Until they are back the others stay who may be elected.
        assert victim in row["isr"] and sorted(row["isr"] + row["elr"]) == held and len(held) > 1
        wait_until("the damage is known", lambda: cluster.partitions("events")[0]["damaged"])
        below = cluster.cli("consume", "events", "--from", "beginning", "--max", whole).stdout.split()
        assert [int(v) for v in below] == list(range(whole))
        # The two others hold all that was committed: they left when nothing could be committed without them.
        for name in NODES:
            if name != names[victim]:
                cluster.start_one(name)
        wait_until(
            "it is filled anew and in sync",
            lambda: cluster.in_sync("events") and not cluster.partitions("events")[0]["damaged"],
        )
        assert cluster.partitions("events")[0]["leader"] != victim
        assert [int(v) for v in cluster.values("events")] == list(range(1_000))
        assert "A damaged replica is filled anew" in (folder / f"{names[victim]}.log").read_text()


def test_damage_of_what_the_object_tier_has_is_read_from_there(folder):
    with Server(folder / "data", "--segment-bytes", "16MiB") as server:
        server.cli("topic", "create", "events")
        for part in range(10):
            server.cli("produce", "events", stdin=b"".join(b"%d\n" % (part * 50 + n) for n in range(50)))
        server.cli("upload", "flush", "events")
        server.cli("produce", "events", stdin=b"500\n")
        # From now on nothing is in memory.
        server.kill()
        server.start()
        flip(server.data, server.json("topic", "describe", "events")["id"], 3)
        values = [int(v) for v in server.values("events")]
        assert values == list(range(501)), "what is read is what was written"
        server.cli("produce", "events", stdin=b"501\n")
        (row,) = server.json("cluster", "partitions", "events")
        assert row["damaged"] == [] and row["leader"] is not None
        assert [int(v) for v in server.values("events")] == list(range(502))
        assert b"are in the object tier and are read from there" in server.log.read_bytes()
        assert server.stop() == 0


def test_what_topics_may_keep_on_the_ssd_is_admitted_against_its_capacity(folder):
    with Server(folder / "data", "--segment-bytes", "16MiB", "--volume-capacity-bytes", "512MiB") as server:
        def capacity():
            (volume,) = [v for n in server.json("cluster", "nodes") for v in n["volume_states"]]
            return volume["state"] == "fit" and volume["capacity_bytes"]

        room = wait_until("the volume's capacity is known", capacity)
        # Without its reserve.
        assert 400 << 20 < room < 480 << 20
        keep = ("--set", "object.tier=false", "--set", f"retention.bytes={100 << 20}")
        refused = server.cli("topic", "create", "a", "--partitions", "5", *keep, check=False)
        assert refused.returncode == 1 and b"LIMIT_REACHED" in refused.stderr, refused.stderr
        assert f"limit {room - (400 << 20)}, actual {100 << 20}".encode() in refused.stderr
        server.cli("topic", "create", "a", "--partitions", "3", *keep)
        refused = server.cli("topic", "alter", "a", "--set", f"retention.bytes={200 << 20}", check=False)
        assert refused.returncode == 1 and f"limit {room}, actual {600 << 20}".encode() in refused.stderr, refused.stderr
        server.cli("topic", "create", "b", *keep)
        server.cli("topic", "create", "c", "--partitions", "9")
        assert server.stop() == 0
