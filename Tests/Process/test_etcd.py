# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A cluster with two metadata instances on etcd: either instance, a member of etcd, or all of etcd goes away under load."""

import re
import signal
import subprocess
import threading
import time
import urllib.request

import pytest

from cluster import Cluster
from etcd import Etcd
from harness import BIN, PATIENCE, AckedProducer, Reader, free_port, wait_until
from test_cluster import PACE, check_all_there, grows, make
from test_tls import Authority

INSTANCES = ["metadata-1", "metadata-2"]


@pytest.fixture
def etcd(folder, request):
    with Etcd(folder, getattr(request, "param", 1)) as running:
        yield running


@pytest.fixture
def cluster(folder, etcd):
    with Cluster(folder, "--etcd", etcd.endpoints) as running:
        yield running


def decides(cluster, name) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{cluster.port_of(name) + 1000}/metrics", timeout=5) as page:
            text = page.read().decode()
    except OSError:
        return False
    return re.search(r"^memq_metadata_is_controller 1(\.0)?$", text, re.M) is not None


def controller(cluster, among=INSTANCES) -> str:
    """The instance that decides: exactly one, as soon as there is one."""

    def find():
        found = [name for name in among if decides(cluster, name)]
        return found if len(found) == 1 else None

    return wait_until("one metadata instance decides", find)[0]


def other(name: str) -> str:
    return INSTANCES[1 - INSTANCES.index(name)]


def epochs(cluster) -> dict:
    """Of everybody but metadata: a node that was expired comes back with a higher one."""
    return {
        n["id"]: (n["epoch"], n["state"]) for n in cluster.json("cluster", "nodes") if n["service"] != "metadata"
    }


def create(cluster, topic, patience=30) -> None:
    """Until it is there; each attempt may fail in a way that may be tried again."""

    def attempt():
        done = cluster.cli("topic", "create", topic, "--replication-factor", "3", check=False)
        if done.returncode == 0 or b"TOPIC_EXISTS" in done.stderr:
            return True
        assert b"may be retried" in done.stderr, done.stderr
        return False

    wait_until(f"topic {topic} is made", attempt, patience)


def is_whole(cluster, topic) -> bool:
    return all(len(p["isr"]) == 3 for p in cluster.json("cluster", "partitions", topic))


def test_either_metadata_instance_may_die_or_stand_still(cluster):
    make(cluster, "events", "--partitions", "4")
    producer = AckedProducer(cluster, "events", per_second=PACE)
    reader = Reader(cluster, "events")
    grows("records are acknowledged", producer.acked)
    before = epochs(cluster)

    # Killed: the other one decides, and a replica that dies then is taken out of the ISR by it.
    first = controller(cluster)
    cluster.kill_one(first)
    create(cluster, "after-kill")
    assert controller(cluster, [other(first)]) == other(first)
    grows("producing goes on", producer.acked)
    assert epochs(cluster) == before, "nobody was expired by it"
    victim = cluster.node("replication-c")["id"]
    cluster.kill_one("replication-c")
    wait_until(
        "the dead replica has left every ISR",
        lambda: all(victim not in p["isr"] for p in cluster.json("cluster", "partitions", "events")),
    )
    grows("producing goes on", producer.acked)
    cluster.up()
    wait_until("all replicas are in sync", lambda: is_whole(cluster, "events"))

    # Stopped for longer than its lease: it wakes as nobody's controller, and what it had begun comes to nothing.
    second = controller(cluster)
    before = epochs(cluster)
    cluster.signal(second, signal.SIGSTOP)
    assert controller(cluster, [other(second)]) == other(second)
    create(cluster, "after-stop")
    grows("producing goes on", producer.acked)
    cluster.signal(second, signal.SIGCONT)
    wait_until("it has found that another one decides", lambda: not decides(cluster, second))
    create(cluster, "after-waking")
    assert controller(cluster) == other(second)
    assert epochs(cluster) == before, "nobody was expired by it"

    # One that does not decide may die unnoticed.
    cluster.kill_one(second)
    cluster.cli("topic", "create", "without-the-other", "--replication-factor", "3")
    cluster.up()
    cluster.wait_ready()
    names = {t["name"] for t in cluster.json("topic", "list")}
    assert {"events", "after-kill", "after-stop", "after-waking", "without-the-other"} <= names

    assert producer.stop() == 0, producer.said()
    wait_until("all are consumed", lambda: len(reader.values) >= producer.sent)
    assert reader.stop() == 0, reader.said()
    check_all_there(cluster, "events", producer)


@pytest.mark.parametrize("etcd", [3], indirect=True)
def test_a_member_of_etcd_may_die_the_leader_too(cluster, etcd):
    make(cluster, "events", "--partitions", "4")
    producer = AckedProducer(cluster, "events", per_second=PACE)
    grows("records are acknowledged", producer.acked)
    before = epochs(cluster)
    leader = etcd.leader()
    etcd.kill(leader)
    create(cluster, "without-the-leader")
    grows("producing goes on", producer.acked)
    etcd.run(leader)
    create(cluster, "with-all")
    assert epochs(cluster) == before, "nobody was expired by it"
    assert producer.stop() == 0, producer.said()
    check_all_there(cluster, "events", producer)


def test_while_all_of_etcd_is_away_records_flow_and_changes_wait(cluster, etcd):
    """Row by row, the table of docs/protocols/metadata.md."""
    make(cluster, "events", "--partitions", "4")
    cluster.cli("consume", "events", "--group", "g", "--from", "beginning", "--until-end")
    producer = AckedProducer(cluster, "events", per_second=PACE)
    reader = Reader(cluster, "events")
    grows("records are acknowledged", producer.acked)
    before = epochs(cluster)
    etcd.kill_all()

    # What waits is begun first, and ends when etcd is back, or says that it may be tried again.
    waiting = {
        "a topic": cluster.popen(
            "topic", "create", "later", "--replication-factor", "3", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL),
        "offsets": cluster.popen(
            "consume", "events", "--group", "g", "--max", "10", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL),
        "objects": cluster.popen(
            "upload", "flush", "events", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL),
    }
    said = {}

    def listen(name, process):
        said[name] = process.communicate()[1]

    threads = [threading.Thread(target=listen, args=item, daemon=True) for item in waiting.items()]
    for thread in threads:
        thread.start()

    # Produce and fetch go on, for longer than any lease or session lasts.
    end = time.monotonic() + 12
    while time.monotonic() < end:
        seen = len(reader.values)
        grows("producing goes on", producer.acked, patience=10)
        wait_until("consuming goes on", lambda: len(reader.values) > seen, 10)
        got = cluster.cli("consume", "events", "--from", "beginning", "--max", "10").stdout
        assert len(got.splitlines()) == 10
    for name in ("a topic",):
        assert waiting[name].poll() != 0, f"{name} cannot have been done"

    # A replica that dies now stays in the ISR until etcd is back: its partitions wait, and lose nothing.
    cluster.kill_one("replication-c")
    etcd.run_all()
    grows("producing goes on", producer.acked, patience=PATIENCE * 2)
    cluster.up()
    cluster.wait_ready()
    for thread in threads:
        thread.join(PATIENCE * 2)
    for name, process in waiting.items():
        assert process.poll() is not None, f"{name} still waits"
        assert process.returncode == 0 or b"may be retried" in said[name], (name, said[name])
    create(cluster, "later")
    cluster.cli("produce", "later", stdin=b"one\n")
    wait_until("all replicas are in sync", lambda: is_whole(cluster, "events"))
    victim = cluster.node("replication-c")["id"]
    after = epochs(cluster)
    assert {k: v for k, v in after.items() if k != victim} == {k: v for k, v in before.items() if k != victim}, (
        "nobody was expired by it")
    assert producer.stop() == 0, producer.said()
    wait_until("all are consumed", lambda: len(reader.values) >= producer.sent)
    assert reader.stop() == 0, reader.said()
    check_all_there(cluster, "events", producer)


def test_etcd_that_wants_certificates_gets_them_and_a_stranger_is_not_trusted(folder):
    authority = Authority(folder / "ca")
    certificate, key = authority.make("etcd")
    options = ("--cert-file", certificate, "--key-file", key, "--client-cert-auth", "--trusted-ca-file", authority.root)
    own, own_key = authority.make("client")
    with Etcd(folder, client_options=options) as etcd:

        def start(*more):
            port = free_port()
            command = [
                BIN / "memq-metadata", "--listen", f"127.0.0.1:{port}", "--etcd-endpoints", etcd.endpoints,
                "--etcd-tls-enabled", "--etcd-tls-trust", authority.root, *more,
            ]
            return port, subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

        def is_ready(port):
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port + 1000}/readyz", timeout=5).status == 200
            except OSError:
                return False

        port, process = start("--etcd-tls-certificate", own, "--etcd-tls-key", own_key)
        try:
            wait_until("metadata is ready", lambda: is_ready(port))
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)
        _, stranger = start("--start-timeout", "2s")
        _, said = stranger.communicate(timeout=PATIENCE)
        assert stranger.returncode != 0 and "etcd" in said, said
