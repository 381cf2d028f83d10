# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""The six services, each its own process, with nothing but their configuration files."""

import json
import os
import signal
import subprocess
import urllib.request
from pathlib import Path

from harness import BIN, EICAR, PATIENCE, Server, free_port, wait_until

SERVICES = ["metadata", "replication", "ingest", "uploader", "scanner", "rebalancer"]


class Processes(Server):
    """Six processes behind the interface of one server."""

    def __init__(self, folder):
        super().__init__(folder / "unused")
        self.folder = folder
        self.log = folder / "services.log"
        self.processes = {}
        self.ports = {name: free_port() for name in SERVICES}
        self.ports["ingest"] = self.port

    def start_one(self, name):
        metadata = f"127.0.0.1:{self.ports['metadata']}"
        command = [BIN / f"memq-{name}", "--listen", f"127.0.0.1:{self.ports[name]}"]
        if name != "metadata":
            command += ["--metadata", metadata]
        if name in ("metadata", "replication"):
            command += ["--data", self.folder / name]
        if name in ("ingest", "uploader", "scanner"):
            command += ["--objects", self.folder / "objects"]
        if name == "scanner":
            command += ["--scratch", self.folder / "scratch"]
        with open(self.log, "ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.process = self.processes[name]

    def start(self, ready=True):
        for name in SERVICES:
            self.start_one(name)
        wait_until("the six are ready", self.is_ready)
        return self

    def close(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait(PATIENCE)


def test_six_processes_do_what_one_does_and_end_gracefully(folder):
    with Processes(folder).start() as cluster:
        nodes = cluster.json("cluster", "nodes")
        pids = {n["service"]: n["pid"] for n in nodes}
        assert pids == {name: p.pid for name, p in cluster.processes.items()}
        for name, pid in pids.items():
            # Started once more for the allocator's sake, under its own name.
            proc = Path("/proc") / str(pid)
            assert b"glibc.malloc.tcache_count=" in (proc / "environ").read_bytes(), name
            assert (proc / "comm").read_text().strip() == f"memq-{name}"[:15]

        cluster.cli("topic", "create", "events", "--partitions", "3", "--set", "local.retention.bytes=0")
        values = [b"%d" % n for n in range(10_000)]
        cluster.cli("produce", "events", stdin=b"\n".join(values) + b"\n")
        cluster.cli("upload", "flush", "events")
        assert sorted(cluster.values("events")) == sorted(values)

        cluster.cli("topic", "create", "media", "--scan", "gate")
        body = os.urandom(3 << 20)
        (folder / "body").write_bytes(body)
        (folder / "eicar.com").write_bytes(EICAR)
        cluster.cli("file", "put", "media", folder / "body")
        assert cluster.cli("file", "put", "media", folder / "eicar.com", check=False).returncode == 3
        assert cluster.cli("file", "get", "media", "body", "-o", "-").stdout == body
        assert [e["name"] for e in cluster.json("quarantine", "list", "media")] == ["eicar.com"]
        assert cluster.cli("rebalance", "plan").returncode == 0

        for name in SERVICES:
            for page in ("metrics", "healthz", "readyz"):
                url = f"http://127.0.0.1:{cluster.ports[name] + 1000}/{page}"
                with urllib.request.urlopen(url) as answer:
                    assert answer.status == 200, (name, page)
        for name in reversed(SERVICES):
            process = cluster.processes[name]
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0, f"{name}: {cluster.log.read_text()[-3000:]}"


def test_services_end_in_time_while_metadata_hangs(folder):
    with Processes(folder).start() as cluster:
        cluster.cli("topic", "create", "events")
        cluster.cli("produce", "events", stdin=b"one\n")
        cluster.cli("upload", "flush", "events")
        metadata = cluster.processes["metadata"]
        metadata.send_signal(signal.SIGSTOP)
        try:
            others = [name for name in SERVICES if name != "metadata"]
            for name in others:
                cluster.processes[name].send_signal(signal.SIGTERM)
            for name in others:
                assert cluster.processes[name].wait(10) == 0, f"{name}: {cluster.log.read_text()[-3000:]}"
        finally:
            metadata.send_signal(signal.SIGCONT)


def test_every_executable_explains_itself():
    for name in SERVICES:
        done = subprocess.run([BIN / f"memq-{name}", "--help"], capture_output=True, timeout=60)
        assert done.returncode == 0 and b"--listen" in done.stdout, name
        done = subprocess.run([BIN / f"memq-{name}", "--nonsense"], capture_output=True, timeout=60)
        assert done.returncode == 2 and b"nonsense" in done.stderr, name
