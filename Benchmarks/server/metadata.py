# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Metadata with 100,000 partitions, on SQLite and on a real etcd: what a start, a watcher, a new topic and a change of an ISR cost.

One memq-metadata process; replication nodes are made up: they register, say that they are ready, and are silent (session.timeout is an hour).
Each change has a floor of the same moment: a transaction of as many bytes that the store takes from a client without MemQ, in turns with the
change that is measured. Needs release builds of memq-metadata (and of memq-rebalancer, as a node that takes the image):

    swift build -c release --product memq-metadata
    swift build -c release --product memq-rebalancer
    MEMQ_BIN=$PWD/.build/release .venv/bin/python Benchmarks/server/metadata.py [--store sqlite|etcd|both] [--partitions 100000]
"""

import argparse
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

import grpc

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "Tests/Process"))
from etcd import Etcd  # noqa: E402
from harness import BIN, free_port, wait_until  # noqa: E402

MIB = 1 << 20
NODES = 6
TOPIC_PARTITIONS = 1_000
OPTIONS = [("grpc.max_receive_message_length", -1)]


def messages(folder: Path):
    """Python's classes of memq.v1 and of the part of etcd's API that is needed."""
    out = folder / "proto"
    out.mkdir()
    for root, files in [(ROOT / "proto", ["memq/v1/metadata.proto", "memq/v1/types.proto", "memq/v1/errors.proto"]), (ROOT / "proto/etcd", ["rpc.proto"])]:
        subprocess.run(
            [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", f"--python_out={out}", f"--grpc_python_out={out}", *files],
            check=True,
        )
    sys.path.insert(0, str(out))
    import rpc_pb2
    from memq.v1 import metadata_pb2, metadata_pb2_grpc, types_pb2

    return type("Messages", (), {"etcd": rpc_pb2, "m": metadata_pb2, "grpc": metadata_pb2_grpc, "t": types_pb2})


def status(pid: int, field: str) -> float:
    """MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise AssertionError(field)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Process:
    """A service process; `seconds` is how long it took to be ready."""

    def __init__(self, folder: Path, name: str, *options: str):
        self.port = free_port()
        self.log = open(folder / f"{name}.log", "ab")
        began = time.monotonic()
        self.process = subprocess.Popen(
            [BIN / name, "--listen", f"127.0.0.1:{self.port}", *map(str, options)],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )
        wait_until(f"{name} is ready", self.is_ready, patience=120, pause=0.01)
        self.seconds = time.monotonic() - began
        self.cpu = cpu_seconds(self.pid)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, "it ended: " + Path(self.log.name).read_text()[-2000:]
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port + 1000}/readyz", timeout=5).status == 200
        except OSError:
            return False

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


class SQLiteFloor:
    """One row in a transaction of its own, as durable as metadata's."""

    name = "SQLite"

    def __init__(self, folder: Path):
        self.db = sqlite3.connect(folder / "floor.sqlite", isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute("CREATE TABLE floor (id INTEGER PRIMARY KEY, value BLOB)")
        self.number = 0

    def __call__(self, size: int) -> None:
        self.number += 1
        self.db.execute("INSERT INTO floor VALUES (?, ?)", (self.number, bytes(size)))


class EtcdFloor:
    """A transaction with one comparison and one put."""

    name = "etcd"

    def __init__(self, endpoint: str, types):
        self.types = types.etcd
        self.channel = grpc.insecure_channel(endpoint)
        self.txn = self.channel.unary_unary(
            "/etcdserverpb.KV/Txn", request_serializer=self.types.TxnRequest.SerializeToString,
            response_deserializer=self.types.TxnResponse.FromString,
        )
        self.number = 0

    def __call__(self, size: int) -> None:
        self.number += 1
        request = self.types.TxnRequest()
        compare = request.compare.add()
        compare.key = b"/floor/%d" % self.number
        compare.target = self.types.Compare.MOD
        compare.mod_revision = 0
        put = request.success.add().request_put
        put.key = compare.key
        put.value = bytes(size)
        assert self.txn(request, timeout=10).succeeded


class Load:
    """What nodes and people ask of metadata."""

    def __init__(self, port: int, types):
        self.types, self.m = types, types.m
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
        self.stub = types.grpc.MetadataServiceStub(self.channel)
        self.epochs = {}

    def join(self) -> list[float]:
        """Seconds each registration took."""
        took = []
        for number in range(NODES):
            request = self.m.RegisterNodeRequest(
                node_uuid=uuid.UUID(int=number + 1).bytes, service=self.types.t.SERVICE_KIND_REPLICATION,
                address=f"10.0.0.{number + 1}:7471", rack="abc"[number % 3],
            )
            for volume in range(2):
                row = request.volumes.add()
                row.volume_id = uuid.UUID(int=1000 + 10 * number + volume).bytes
                row.state = self.types.t.VOLUME_STATE_FIT
            began = time.monotonic()
            answer = self.register(request)
            took.append(time.monotonic() - began)
            self.epochs[answer.node_id] = answer.node_epoch
            beat = self.m.HeartbeatRequest(
                node_id=answer.node_id, node_epoch=answer.node_epoch, state=self.types.t.NODE_STATE_READY
            )
            next(iter(self.stub.Heartbeat(iter([beat]), timeout=60)))
        return took

    def register(self, request):
        """An instance on etcd decides once nobody else's lease stands."""
        until = time.monotonic() + 60
        while True:
            try:
                return self.stub.RegisterNode(request, timeout=60)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def create(self, name: str, partitions: int):
        request = self.m.CreateTopicRequest(name=name, partition_count=partitions, replication_factor=3)
        return self.stub.CreateTopic(request, timeout=60).topic

    def image(self) -> tuple[float, int, int]:
        """Seconds, bytes and partitions of a whole image."""
        began = time.monotonic()
        size = count = 0
        pages = self.stub.WatchImage(self.m.WatchImageRequest(), timeout=60)
        for page in pages:
            size += page.ByteSize()
            count += len(page.partitions)
            if not page.more:
                break
        taken = time.monotonic() - began
        pages.cancel()
        return taken, size, count

    def partition(self, topic: str):
        return self.stub.DescribeTopic(self.m.DescribeTopicRequest(name=topic), timeout=60).partitions[0]

    def alter(self, row, isr):
        request = self.m.AlterPartitionRequest(
            topic_partition=row.topic_partition, node_id=row.leader, node_epoch=self.epochs[row.leader],
            leader_epoch=row.leader_epoch, partition_epoch=row.partition_epoch, isr=isr,
            isr_node_epochs=[self.epochs[node] for node in isr],
        )
        return self.stub.AlterPartition(request, timeout=60).partition


def timed(body) -> float:
    began = time.monotonic()
    body()
    return (time.monotonic() - began) * 1000


def line(what: str, found: list, floor: list, goal: str) -> None:
    found, floor = sorted(found), sorted(floor)

    def quantile(values, q):
        return values[min(len(values) - 1, int(len(values) * q))]

    print(
        f"  {what}: p50 {statistics.median(found):.1f} ms, p99 {quantile(found, 0.99):.1f} ms; "
        f"floor p50 {statistics.median(floor):.1f} ms, p99 {quantile(floor, 0.99):.1f} ms; "
        f"ratio {statistics.median(found) / statistics.median(floor):.1f}; goal {goal}", flush=True,
    )


def run(folder: Path, options, types, floor, *store: str) -> None:
    def start() -> Process:
        return Process(folder, "memq-metadata", *store, "--session-timeout", "1h", "--log-level", "warning")

    print(f"{floor.name}, {options.partitions} partitions of three copies on {NODES} nodes")
    metadata = start()
    empty = status(metadata.pid, "VmRSS")
    load = Load(metadata.port, types)
    load.join()
    # The limit of a cluster is 100,000: some are left for what is made later.
    topics = (options.partitions - 13 * options.changes) // TOPIC_PARTITIONS
    began = time.monotonic()
    took = [timed(lambda: load.create(f"topic-{n}", TOPIC_PARTITIONS)) for n in range(topics)]
    print(
        f"  {topics} topics of {TOPIC_PARTITIONS} partitions made in {time.monotonic() - began:.1f} s: "
        f"the first 10 in {statistics.median(took[:10]):.0f} ms each, the last 10 in {statistics.median(took[-10:]):.0f} ms"
    )
    print(f"  memory: {empty:.0f} MiB empty, {status(metadata.pid, 'VmRSS'):.0f} MiB then, peak {status(metadata.pid, 'VmHWM'):.0f}")
    metadata.stop()

    metadata = start()
    print(
        f"  start until ready: {metadata.seconds:.2f} s ({metadata.cpu:.2f} CPU-s); goal 5 s. Memory {status(metadata.pid, 'VmRSS'):.0f} MiB, "
        f"peak {status(metadata.pid, 'VmHWM'):.0f} MiB; goal 512 MiB"
    )
    load = Load(metadata.port, types)
    # The first one waits until the instance decides.
    again = load.join()[1:]
    print(f"  a node with {topics * TOPIC_PARTITIONS * 3 // NODES} replicas that registers anew: {statistics.median(again):.2f} s, at most {max(again):.2f} s")
    seconds, size, count = load.image()
    assert count >= topics * TOPIC_PARTITIONS, count
    print(f"  a whole image: {seconds:.2f} s, {size / MIB:.1f} MiB; memory {status(metadata.pid, 'VmHWM'):.0f} MiB at most")
    if (BIN / "memq-rebalancer").exists():
        node = Process(folder, "memq-rebalancer", "--metadata", f"127.0.0.1:{metadata.port}", "--log-level", "warning")
        print(f"  a node that takes it: ready after {node.seconds:.2f} s ({node.cpu:.2f} CPU-s), memory {status(node.pid, 'VmHWM'):.0f} MiB at most")
        node.stop()

    for partitions in (1, 12):
        found, least = [], []
        for number in range(options.changes):
            found.append(timed(lambda: load.create(f"made-{partitions}-{number}", partitions)))
            least.append(timed(lambda: floor(300 * partitions + 20_000)))
        line(f"a topic of {partitions} partitions", found, least, "50 ms")

    found, least = [], []
    row = load.partition("topic-0")
    members = list(row.isr)
    for number in range(options.changes * 4):
        isr = members if number % 2 else members[:2] if row.leader in members[:2] else [row.leader]

        def change():
            nonlocal row
            row = load.alter(row, isr)

        found.append(timed(change))
        least.append(timed(lambda: floor(200)))
    line("a change of an ISR", found, least, "20 ms")
    print(f"  memory at the end: {status(metadata.pid, 'VmRSS'):.0f} MiB, peak {status(metadata.pid, 'VmHWM'):.0f} MiB")
    metadata.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", choices=["sqlite", "etcd", "both"], default="both")
    parser.add_argument("--partitions", type=int, default=100_000)
    parser.add_argument("--changes", type=int, default=100)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="memq-bench-"))
    try:
        types = messages(folder)
        if options.store != "etcd":
            run(folder, options, types, SQLiteFloor(folder), "--data", folder / "metadata")
        if options.store != "sqlite":
            with Etcd(folder) as etcd:
                run(folder, options, types, EtcdFloor(etcd.endpoints, types), "--etcd-endpoints", etcd.endpoints)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


main()
