# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""The store of metadata is lost and comes back from the object store."""

import shutil
import struct
import urllib.request

from cluster import Cluster
from harness import AckedProducer, Server, wait_until
from test_cluster import check_all_there, grows, make


def manifests(folder):
    """By age."""
    return sorted(folder.glob("meta/*/*/manifest"))


def held(manifest) -> int:
    """The revision that a snapshot holds (docs/formats/metadata-snapshot.md)."""
    try:
        return struct.unpack_from(">q", manifest.read_bytes(), 62)[0]
    except FileNotFoundError:
        # Deleted meanwhile: there are newer ones.
        return 0


def revision(cluster) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.port_of('metadata-1') + 1000}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return int(next(float(line.split()[1]) for line in lines if line.startswith("memq_metadata_image_revision ")))


def test_a_cluster_whose_metadata_is_lost_goes_on_from_its_snapshot(folder):
    environment = {"MEMQ_SNAPSHOT_INTERVAL": "500ms", "MEMQ_SNAPSHOT_KEEP": "3"}
    with Cluster(folder, environment=environment) as cluster:
        objects = cluster.data / "objects"
        make(cluster, "events", "--partitions", "4")
        producer = AckedProducer(cluster, "events", per_second=1_000)
        grows("records are acknowledged", producer.acked)
        cluster.cli("consume", "events", "--group", "g", "--from", "beginning", "--max", "100")
        before = cluster.json("cluster", "status")[-1]["id"]
        # Files and offsets are no part of the image: a topic made after them raises its revision above theirs.
        cluster.cli("topic", "create", "store")
        (folder / "body").write_bytes(b"x" * 2_000_000)
        cluster.cli("file", "put", "store", folder / "body", "--name", "a")
        earlier = revision(cluster)
        cluster.cli("topic", "create", "quiet")
        wait_until("the topic is in the image", lambda: revision(cluster) > earlier)
        goal = revision(cluster)
        wait_until("all of it is in a snapshot", lambda: any(held(found) >= goal for found in manifests(objects)))
        wait_until("older ones are deleted", lambda: len(manifests(objects)) <= 3)
        nodes = {n["address"]: n for n in cluster.json("cluster", "nodes") if n["service"] == "replication"}

        # The nodes live on; all that metadata had is gone.
        cluster.kill_one("metadata-1")
        shutil.rmtree(cluster.data / "metadata-1")
        cluster.environment["MEMQ_RESTORE"] = "newest"
        cluster.up()
        cluster.wait_ready()

        assert cluster.json("cluster", "status")[-1]["id"] == before
        again = {n["address"]: n for n in cluster.json("cluster", "nodes") if n["service"] == "replication"}
        assert {a: n["id"] for a, n in again.items()} == {a: n["id"] for a, n in nodes.items()}
        assert all(again[a]["epoch"] > n["epoch"] for a, n in nodes.items())
        assert {t["name"] for t in cluster.json("topic", "list")} == {"events", "store", "quiet"}
        assert cluster.cli("file", "get", "store", "a", "-o", "-").stdout == b"x" * 2_000_000
        grows("the same producer goes on", producer.acked, patience=120)
        wait_until(
            "all replicas are in sync", lambda: all(len(p["isr"]) == 3 for p in cluster.json("cluster", "partitions", "events"))
        )
        assert producer.stop() == 0, producer.said()
        check_all_there(cluster, "events", producer)
        got = cluster.cli("consume", "events", "--group", "g", "--max", "10", "--format", "%p %o").stdout
        assert len(got.splitlines()) == 10

        # The key may stay: a store that has a cluster is not touched, and its snapshots go on in the new incarnation.
        cluster.cli("topic", "create", "later")
        cluster.kill_one("metadata-1")
        cluster.up()
        cluster.wait_ready()
        assert {t["name"] for t in cluster.json("topic", "list")} == {"events", "store", "quiet", "later"}
        wait_until(
            "the new incarnation writes snapshots",
            lambda: manifests(objects) and manifests(objects)[-1].parent.name.split("-")[0].endswith("2"),
        )


def test_an_empty_object_store_restores_nothing(folder):
    server = Server(folder / "data", "--restore", "newest")
    server.start(ready=False)
    assert server.process.wait(30) == 1
    assert "has no whole snapshot of metadata" in server.log.read_text()


def test_a_node_refuses_metadata_older_than_what_it_has_seen(folder):
    data = folder / "data"
    with Server(data) as server:
        server.cli("topic", "create", "first")
        assert server.stop() == 0
        shutil.copytree(data / "metadata", folder / "older")
        server.start()
        for number in range(20):
            server.cli("topic", "create", f"later-{number}")
        assert server.stop() == 0
        shutil.rmtree(data / "metadata")
        shutil.copytree(folder / "older", data / "metadata")

        # Again and again: registering alone must not make the copy look newer.
        for _ in range(3):
            server.start(ready=False)
            assert server.process.wait(30) == 1
        assert "metadata is older than what this node has seen of it" in server.log.read_text()

        # Somebody who knows that there is nothing newer says so.
        (data / "metadata-seen.json").unlink()
        server.start()
        assert [t["name"] for t in server.json("topic", "list")] == ["first"]
