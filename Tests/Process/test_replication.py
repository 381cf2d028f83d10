# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Three storage nodes, each its own process: what is acknowledged outlives any of them, and all of them at once."""

import os
import shutil
import signal
import subprocess
import time

from harness import BIN, PATIENCE, AckedProducer, Server, free_port, sha256, wait_until

NODES = ["replication-1", "replication-2", "replication-3"]
# Clients are to go on within so long of a leader's death; what the limit adds is for debug builds.
FAILOVER = 10.0


class Cluster(Server):
    """Metadata, three storage nodes, ingest, uploader and scanner, behind the interface of one server."""

    def __init__(self, folder, nodes=3, volumes=1):
        super().__init__(folder / "unused")
        self.nodes = [f"replication-{n + 1}" for n in range(nodes)]
        self.volumes = volumes
        self.folder = folder
        self.log = folder / "services.log"
        self.processes = {}
        # Of single processes, by name.
        self.environments = {}
        self.names = ["metadata", *self.nodes, "ingest", "uploader", "scanner", "rebalancer"]
        self.ports = {name: free_port() for name in self.names}
        self.ports["ingest"] = self.port

    def start_one(self, name):
        service = name.split("-")[0]
        command = [BIN / f"memq-{service}", "--listen", f"127.0.0.1:{self.ports[name]}"]
        if service != "metadata":
            command += ["--metadata", f"127.0.0.1:{self.ports['metadata']}"]
        if service in ("metadata", "replication"):
            command += ["--data", self.folder / name]
        if service == "replication":
            command += ["--segment-bytes", "16MiB"]
            if self.volumes > 1:
                paths = [str(self.folder / name / f"volume-{n}") for n in range(self.volumes)]
                command += ["--volumes", ",".join(paths)]
        if service in ("ingest", "uploader", "scanner"):
            command += ["--objects", self.folder / "objects"]
        if service == "scanner":
            command += ["--scratch", self.folder / "scratch"]
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self.environments.get(name, {})},
            )
        self.log = self.folder / "ingest.log"
        self.process = self.processes["metadata"]

    def start(self, ready=True):
        for name in self.names:
            self.start_one(name)
        wait_until("the cluster is ready", self.is_ready)
        wait_until("all storage nodes are ready", lambda: len(self.ready_nodes()) == len(self.nodes))
        return self

    def ready_nodes(self):
        nodes = self.json("cluster", "nodes")
        return [n for n in nodes if n["service"] == "replication" and n["state"] == "ready"]

    def is_ready(self):
        for name, process in self.processes.items():
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text(errors="replace")
                raise AssertionError(f"{name} ended with {process.returncode}: {log[-2000:]}")
        return self.cli("cluster", "status", check=False).returncode == 0

    def kill_one(self, *names):
        for name in names:
            self.processes[name].send_signal(signal.SIGKILL)
        for name in names:
            self.processes[name].wait(PATIENCE)

    def close(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait(PATIENCE)

    def partitions(self, topic):
        return self.json("cluster", "partitions", topic)

    def in_sync(self, topic, count=3):
        rows = self.partitions(topic)
        return all(len(row["isr"]) == count and row["leader"] is not None for row in rows)

    def name_of(self, node):
        pids = {n["id"]: n["pid"] for n in self.json("cluster", "nodes")}
        return next(name for name in self.nodes if self.processes[name].pid == pids[node])

    def leader(self, topic, partition=0):
        return self.name_of(self.partitions(topic)[partition]["leader"])

    def create(self, topic, partitions=1, *options, minimum=2):
        self.cli(
            "topic", "create", topic, "--partitions", partitions, "--replication-factor", "3",
            "--set", f"min.insync.replicas={minimum}", *options,
        )
        wait_until("all replicas are in sync", lambda: self.in_sync(topic))


class Consumer:
    """`memq consume` from the beginning, until it is stopped; collects what comes."""

    def __init__(self, cluster, topic, path):
        self.path = path
        self.file = open(path, "wb")
        self.process = cluster.popen(
            "consume", topic, "--from", "beginning", "--format", "%v",
            stdin=subprocess.DEVNULL, stdout=self.file, stderr=subprocess.DEVNULL,
        )

    def values(self):
        return [int(line) for line in self.path.read_bytes().split(b"\n")[:-1]]

    def stop(self):
        self.process.kill()
        self.process.wait(PATIENCE)
        self.file.close()


def test_a_leader_that_is_killed_under_load_is_replaced_and_comes_back(folder):
    with Cluster(folder).start() as cluster:
        cluster.create("events", 3)
        producer = AckedProducer(cluster, "events")
        consumer = Consumer(cluster, "events", folder / "consumed")
        wait_until("some are acknowledged", lambda: len(producer.acked) > 2_000)
        for _ in range(2):
            victim = cluster.leader("events")
            before = len(producer.acked)
            cluster.kill_one(victim)
            began = time.monotonic()
            wait_until("acknowledgements go on", lambda: len(producer.acked) > before + 2_000, FAILOVER)
            consumed = len(consumer.values())
            wait_until("the consumer goes on", lambda: len(consumer.values()) > consumed, FAILOVER)
            assert time.monotonic() - began < 2 * FAILOVER
            wait_until("the dead one left the ISR", lambda: cluster.in_sync("events", 2))
            cluster.start_one(victim)
            wait_until("it is back in sync", lambda: cluster.in_sync("events"))
        assert producer.stop() == 0
        assert sorted(producer.acked) == list(range(producer.sent)), "all of it was acknowledged"
        values = [int(v) for v in cluster.values("events")]
        assert sorted(values) == list(range(producer.sent)), "nothing is lost, nothing is there twice"
        wait_until("the consumer has all", lambda: len(consumer.values()) >= producer.sent)
        consumer.stop()
        assert sorted(consumer.values()) == list(range(producer.sent))


def test_everything_killed_at_once_comes_back_with_all_that_was_acknowledged(folder):
    with Cluster(folder).start() as cluster:
        cluster.create("events", 3)
        producer = AckedProducer(cluster, "events")
        wait_until("some are acknowledged", lambda: len(producer.acked) > 5_000)
        cluster.kill_one("metadata", *NODES)
        producer.abandon()
        for name in ["metadata", *NODES]:
            cluster.start_one(name)
        wait_until("the partitions are led again", lambda: is_led(cluster, "events"))
        wait_until("all are in sync again", lambda: cluster.in_sync("events"))
        values = [int(v) for v in cluster.values("events")]
        assert set(producer.acked) <= set(values)
        assert len(values) == len(set(values)), "an idempotent producer's records are there once"
        cluster.cli("produce", "events", stdin=b"and on\n")


def is_led(cluster, topic):
    shown = cluster.cli("cluster", "partitions", topic, "-o", "json", check=False)
    return shown.returncode == 0 and b'"leader": null' not in shown.stdout


def test_of_nodes_that_were_all_killed_the_one_whose_disk_lied_does_not_lead(folder):
    """One comes back with an earlier state of its volume, whole in itself: its disk had confirmed what it never kept."""
    cluster = Cluster(folder)
    # However long a busy machine takes to start them: no election by those that were quick enough.
    cluster.environments["metadata"] = {"MEMQ_ELECTION_RECOVERY_WAIT": "10m"}
    with cluster.start():
        cluster.create("events", 1, "--set", "object.tier=false")
        first = list(range(2_000))
        cluster.cli("produce", "events", stdin=b"".join(b"%d\n" % n for n in first))
        for name in NODES:
            # Quick enough for nobody to miss it.
            cluster.processes[name].send_signal(signal.SIGSTOP)
            subprocess.run(
                ["cp", "-a", "--sparse=always", folder / name / "volume", folder / f"{name}-earlier"], check=False
            )
            cluster.processes[name].send_signal(signal.SIGCONT)
        wait_until("all are in sync", lambda: cluster.in_sync("events"))
        cluster.cli("produce", "events", stdin=b"".join(b"%d\n" % n for n in range(2_000, 9_000)))
        cluster.kill_one(*NODES)
        wait_until("nobody leads", lambda: cluster.partitions("events")[0]["leader"] is None)
        row = cluster.partitions("events")[0]
        candidates = [node for node in row["replicas"] if node in row["isr"] + row["elr"]]
        assert len(candidates) > 1, row
        # Whoever is there first, and preferred, would lead.
        liar = cluster.name_of(candidates[0])
        shutil.rmtree(folder / liar / "volume")
        os.rename(folder / f"{liar}-earlier", folder / liar / "volume")
        cluster.start_one(liar)
        wait_until("it is ready", lambda: len(cluster.ready_nodes()) == 1)
        assert cluster.partitions("events")[0]["leader"] is None, "the others may hold more"
        for name in NODES:
            if name != liar:
                cluster.start_one(name)
        wait_until("it is led", lambda: is_led(cluster, "events"))
        assert cluster.leader("events") != liar
        wait_until("all are in sync again", lambda: cluster.in_sync("events"))
        assert [int(v) for v in cluster.values("events")] == list(range(9_000)), "nothing acknowledged is lost"
        # Its copy is as whole as theirs.
        cluster.kill_one(*[name for name in NODES if name != liar])
        wait_until("it leads", lambda: cluster.leader("events") == liar)
        cluster.cli("topic", "alter", "events", "--set", "min.insync.replicas=1")
        assert [int(v) for v in cluster.values("events")] == list(range(9_000))


def test_a_node_that_stops_hands_over_and_uploads_and_files_go_on(folder):
    body = os.urandom(300_000)
    (folder / "body").write_bytes(body)
    with Cluster(folder).start() as cluster:
        cluster.create("events", 1, "--set", "local.retention.bytes=0")
        cluster.create("media")
        cluster.cli("produce", "events", stdin=b"".join(b"%d\n" % n for n in range(1_000)))
        cluster.cli("upload", "flush", "events")
        cluster.cli("file", "put", "media", folder / "body", "--name", "one")
        victim = cluster.leader("events")
        process = cluster.processes[victim]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (folder / f"{victim}.log").read_text()[-3000:]
        log = (folder / f"{victim}.log").read_text()
        assert "not handed over" not in log, log[-3000:]
        # Until it has left, all in-sync replicas are waited for, and one that stops follows no more.
        assert 0 < log.find("Left the cluster") < log.find("The port is closed"), log[-3000:]
        cluster.cli("produce", "events", stdin=b"".join(b"%d\n" % n for n in range(1_000, 2_000)))
        cluster.cli("upload", "flush", "events")
        cluster.cli("file", "put", "media", folder / "body", "--name", "two")
        assert sorted(int(v) for v in cluster.values("events")) == list(range(2_000))
        for name in ("one", "two"):
            assert sha256(cluster.cli("file", "get", "media", name, "-o", "-").stdout) == sha256(body)
        cluster.start_one(victim)
        wait_until("it is back in sync", lambda: cluster.in_sync("events") and cluster.in_sync("media"))


def test_a_leader_that_stands_still_is_replaced_and_acknowledges_nothing_when_it_wakes(folder):
    with Cluster(folder).start() as cluster:
        cluster.create("events")
        producer = AckedProducer(cluster, "events")
        wait_until("some are acknowledged", lambda: len(producer.acked) > 1_000)
        victim = cluster.leader("events")
        node = cluster.partitions("events")[0]["leader"]
        cluster.processes[victim].send_signal(signal.SIGSTOP)
        try:
            wait_until(
                "another one leads",
                lambda: cluster.partitions("events")[0]["leader"] not in (node, None),
                FAILOVER,
            )
            before = len(producer.acked)
            wait_until("acknowledgements go on", lambda: len(producer.acked) > before + 1_000, FAILOVER)
        finally:
            cluster.processes[victim].send_signal(signal.SIGCONT)
        wait_until("it is back in sync", lambda: cluster.in_sync("events"))
        assert cluster.leader("events") != victim
        assert producer.stop() == 0
        assert sorted(producer.acked) == list(range(producer.sent))
        assert [int(v) for v in cluster.values("events")] == list(range(producer.sent)), "in order, once each"


def test_a_replica_that_missed_what_was_uploaded_begins_there_and_knows_the_producers(folder):
    with Cluster(folder).start() as cluster:
        cluster.create("events", 1, "--set", "local.retention.bytes=0", minimum=1)
        producer = AckedProducer(cluster, "events")
        wait_until("some are acknowledged", lambda: len(producer.acked) > 1_000)
        row = cluster.partitions("events")[0]
        node = next(node for node in row["replicas"] if node != row["leader"])
        behind = cluster.name_of(node)
        cluster.kill_one(behind)
        missed = len(producer.acked)
        wait_until("it misses something", lambda: len(producer.acked) > missed + 5_000)
        cluster.cli("upload", "flush", "events")
        assert cluster.partitions("events")[0]["uploaded_offset"] > missed + 1_000
        cluster.start_one(behind)
        wait_until("it is back in sync", lambda: cluster.in_sync("events"))
        assert "filled anew" in (folder / f"{behind}.log").read_text()
        # Only this one is left to lead.
        cluster.kill_one(*[name for name in NODES if name != behind])
        wait_until("it leads", lambda: cluster.partitions("events")[0]["leader"] == node, FAILOVER)
        before = len(producer.acked)
        wait_until("it goes on", lambda: len(producer.acked) > before + 1_000, FAILOVER)
        assert producer.stop() == 0
        assert sorted(producer.acked) == list(range(producer.sent))
        assert [int(v) for v in cluster.values("events")] == list(range(producer.sent)), "in order, once each"


def test_a_node_that_lost_its_disk_is_filled_anew_and_never_leads_with_nothing(folder):
    with Cluster(folder).start() as cluster:
        cluster.create("events", 3)
        lines = b"".join(b"%d\n" % n for n in range(30_000))
        cluster.cli("produce", "events", stdin=lines)
        victim, *others = sorted(NODES)
        cluster.kill_one(victim)
        wait_until("it left the ISR", lambda: cluster.in_sync("events", 2))
        shutil.rmtree(folder / victim / "volume")
        cluster.start_one(victim)
        wait_until("it is filled and in sync", lambda: cluster.in_sync("events"))
        assert sorted(map(int, cluster.values("events"))) == list(range(30_000))

        # The last one in sync comes back without its disk: nobody leads until one that may hold all of it does.
        for name in others:
            cluster.kill_one(name)
        cluster.kill_one(victim)
        shutil.rmtree(folder / victim / "volume")
        cluster.start_one(victim)
        wait_until("it is known", lambda: len(cluster.ready_nodes()) == 1)
        assert all(row["leader"] is None for row in cluster.partitions("events"))
        for name in others:
            cluster.start_one(name)
        wait_until("all lead again", lambda: all(r["leader"] for r in cluster.partitions("events")))
        assert sorted(map(int, cluster.values("events"))) == list(range(30_000))


def test_a_damaged_replica_is_filled_anew_and_serves_all_of_it(folder):
    with Cluster(folder).start() as cluster:
        cluster.create("events", minimum=1)
        cluster.create("others", minimum=1)
        values = [b"value-%06d" % n for n in range(5_000)]
        for first in range(0, 5_000, 1_000):
            for topic in ("events", "others"):
                cluster.cli("produce", topic, stdin=b"\n".join(values[first : first + 1_000]) + b"\n")
        victim = next(name for name in NODES if name != cluster.leader("events"))
        cluster.kill_one(victim)
        wait_until("it left the ISR", lambda: cluster.in_sync("events", 2) and cluster.in_sync("others", 2))
        # One bit of one batch, far below what was durable.
        for path in sorted((folder / victim / "volume").glob("segment-*")):
            data = path.read_bytes()
            at = data.find(b"value-002500")
            if at >= 0:
                with open(path, "r+b") as file:
                    file.seek(at)
                    file.write(bytes([data[at] ^ 1]))
                break
        else:
            raise AssertionError("the record stands nowhere")
        cluster.start_one(victim)
        wait_until("it is in sync again", lambda: cluster.in_sync("events") and cluster.in_sync("others"))
        said = (folder / f"{victim}.log").read_text()
        assert said.count("A damaged replica is filled anew from its leader") == 1, said[-3000:]
        for name in NODES:
            if name != victim:
                cluster.kill_one(name)
        for topic in ("events", "others"):
            wait_until("it leads", lambda: cluster.partitions(topic)[0]["leader"] is not None)
            assert cluster.values(topic) == values


def test_replicas_move_between_nodes_and_volumes_under_load(folder):
    with Cluster(folder, nodes=4, volumes=2).start() as cluster:
        cluster.create("events")
        producer = AckedProducer(cluster, "events")
        wait_until("some are acknowledged", lambda: len(producer.acked) > 2_000)
        first = cluster.partitions("events")[0]["replicas"]
        spare = next(node["id"] for node in cluster.ready_nodes() if node["id"] not in first)
        # The leader itself goes; the new one is to lead.
        moved = cluster.json("cluster", "reassign", "events", 0, "--replicas", f"{spare},{first[1]},{first[2]}")
        assert moved["replicas"] == [spare, first[1], first[2]] and moved["target_replicas"] == []
        assert set(moved["isr"]) == set(moved["replicas"]) and moved["leader"] == spare
        before = len(producer.acked)
        wait_until("acknowledgements go on", lambda: len(producer.acked) > before + 1_000)
        # To the other volume of a follower's node.
        node = next(n for n in cluster.ready_nodes() if n["id"] == first[1])
        at = moved["volumes"][moved["replicas"].index(first[1])]
        other = next(volume for volume in node["volumes"] if volume != at)
        moved = cluster.json("cluster", "reassign", "events", 0, "--replicas", f"{spare},{first[1]}:{other},{first[2]}")
        assert moved["volumes"][1] == other and set(moved["isr"]) == set(moved["replicas"])
        # Nobody adds a node that is away; a cancel goes back, and everything goes on.
        away = first[0]
        name = cluster.name_of(away)
        cluster.kill_one(name)
        wait_until("it is fenced", lambda: len(cluster.ready_nodes()) == 3)
        refused = cluster.cli("cluster", "reassign", "events", "0", "--replicas", f"{away},{first[1]},{first[2]}", check=False)
        assert refused.returncode != 0 and b"INVALID_ARGUMENT" in refused.stderr, refused.stderr
        cluster.start_one(name)
        wait_until("it is back", lambda: len(cluster.ready_nodes()) == 4)
        cluster.processes[name].send_signal(signal.SIGSTOP)
        try:
            late = cluster.cli(
                "cluster", "reassign", "events", "0", "--replicas", f"{away},{first[1]},{first[2]}", "--wait", "0", check=False
            )
            assert b"under way" in late.stdout + late.stderr, (late.stdout, late.stderr)
            again = cluster.cli("cluster", "reassign", "events", "0", "--replicas", f"{first[1]},{first[2]},{spare}", check=False)
            assert b"REASSIGNMENT_IN_PROGRESS" in again.stderr, again.stderr
            back = cluster.json("cluster", "reassign", "events", 0, "--cancel")
            assert back["replicas"] == moved["replicas"] and back["target_replicas"] == []
        finally:
            cluster.processes[name].send_signal(signal.SIGCONT)
        before = len(producer.acked)
        wait_until("acknowledgements go on", lambda: len(producer.acked) > before + 1_000)
        assert producer.stop() == 0
        assert sorted(producer.acked) == list(range(producer.sent)), "all of it was acknowledged"
        values = [int(v) for v in cluster.values("events")]
        assert sorted(values) == list(range(producer.sent)), "nothing is lost, nothing is there twice"
        held = cluster.json("cluster", "partitions", "events")[0]
        assert len(held["isr"]) == 3


def test_a_topic_deleted_while_a_node_was_down_leaves_that_node_too(folder):
    with Cluster(folder).start() as cluster:
        cluster.create("events", 2, "--set", "object.tier=false")
        cluster.create("stays")
        cluster.cli("produce", "events", stdin=b"1\n2\n3\n")
        cluster.cli("produce", "stays", stdin=b"1\n")
        victim = cluster.nodes[2]

        def held():
            """Partitions that the victim's volume has, by its frames: opened and not dropped."""
            frames = cluster.json("log", "dump", "--live", "--data", cluster.folder / victim)
            opened = {f["partition"] for f in frames if f["type"] == "partitionOpen"}
            return opened - {f["partition"] for f in frames if f["type"] == "partitionDrop"}

        assert len(held()) == 3
        cluster.kill_one(victim)
        cluster.cli("topic", "delete", "events")
        # Nothing is left of it in metadata when the node is back.
        wait_until(
            "the topic is cleared away", lambda: "A deleted topic is cleared away" in (folder / "metadata.log").read_text()
        )
        cluster.start_one(victim)
        wait_until("its copies are dropped", lambda: len(held()) == 1)
        wait_until("the other topic is whole", lambda: cluster.in_sync("stays"))


def test_what_moved_away_while_a_node_was_down_is_dropped_and_nothing_is_read_from_another_volume(folder):
    with Cluster(folder, nodes=4, volumes=2).start() as cluster:
        cluster.create("events")
        cluster.cli("produce", "events", stdin=b"".join(b"%d\n" % n for n in range(5_000)))
        row = cluster.partitions("events")[0]
        leader = row["leader"]
        victim, other = [node for node in row["replicas"] if node != leader]
        spare = next(node["id"] for node in cluster.ready_nodes() if node["id"] not in row["replicas"])
        # Told of its new volume, it dies before it hears of it: its old one still holds the partition.
        name = cluster.name_of(victim)
        mine = next(n for n in cluster.ready_nodes() if n["id"] == victim)
        second = next(v for v in mine["volumes"] if v != row["volumes"][row["replicas"].index(victim)])
        cluster.processes[name].send_signal(signal.SIGSTOP)
        wish = ",".join(f"{n}:{second}" if n == victim else str(n) for n in row["replicas"])
        cluster.cli("cluster", "reassign", "events", "0", "--replicas", wish, "--wait", "0", check=False)
        cluster.kill_one(name)
        wait_until("it is out", lambda: len(cluster.ready_nodes()) == 3)
        cluster.cli("produce", "events", stdin=b"".join(b"%d\n" % n for n in range(5_000, 6_000)))
        cluster.start_one(name)
        wait_until("it is in sync on its other volume", lambda: cluster.in_sync("events"))
        row = cluster.partitions("events")[0]
        assert row["volumes"][row["replicas"].index(victim)] == second
        log = (folder / f"{name}.log").read_text()
        assert "A copy is dropped that the cluster has elsewhere" in log, log[-3000:]
        # Gone to another node while it was down.
        name = cluster.name_of(other)
        cluster.kill_one(name)
        wait_until("it is out", lambda: len(cluster.ready_nodes()) == 3)
        cluster.json("cluster", "reassign", "events", 0, "--replicas", f"{leader},{victim},{spare}")
        cluster.start_one(name)
        wait_until(
            "it has dropped it", lambda: "A copy is dropped" in (folder / f"{name}.log").read_text()
        )
        assert [int(v) for v in cluster.values("events")] == list(range(6_000))
