# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Deploy/local/up and down: a cluster on one machine."""

import os
import shutil
import signal
import socket
import subprocess

from cluster import LOCAL, NAMES, Cluster
from harness import BIN, PATIENCE, wait_until


def test_up_starts_keeps_and_mends_and_down_stops_and_keeps_the_data(folder):
    with Cluster(folder) as cluster:
        first = cluster.pids()
        assert all(first.values())
        assert cluster.cli("cluster", "status").returncode == 0

        nodes = cluster.json("cluster", "nodes")
        assert sorted(n["pid"] for n in nodes) == sorted(first.values())
        assert len({n["id"] for n in nodes}) == len(NAMES)
        assert all(isinstance(n["id"], int) and n["state"] == "ready" for n in nodes)
        racks = {n["rack"] for n in nodes if n["service"] == "replication"}
        assert racks == {"a", "b", "c"}

        again = cluster.script("up")
        assert again.returncode == 0, again.stderr
        for name, pid in first.items():
            (line,) = [line for line in again.stdout.splitlines() if line.startswith(name)]
            assert str(pid) in line and f"127.0.0.1:{cluster.port_of(name)}" in line
        assert cluster.pids() == first, "what runs is kept"

        cluster.cli("topic", "create", "events", "--replication-factor", "3")
        cluster.cli("produce", "events", stdin=b"".join(b"%d\n" % n for n in range(1_000)))

        cluster.kill_one("scanner-1")
        assert "scanner-1" in cluster.up().stdout
        second = cluster.pids()
        assert second.pop("scanner-1") not in (None, first.pop("scanner-1"))
        assert second == first, "just the one that was gone is started"

        cluster.kill_one("uploader-2")
        cluster.down()
        assert not any(cluster.pids().values())
        cluster.down()
        cluster.up()
        assert [int(v) for v in cluster.values("events")] == list(range(1_000))


def test_a_process_that_does_not_end_is_killed_and_a_foreign_one_is_left_alone(folder):
    with Cluster(folder) as cluster:
        stopped = cluster.pid("rebalancer-1")
        cluster.signal("rebalancer-1", signal.SIGSTOP)
        cluster.kill_one("uploader-1")
        # A number that another program has got meanwhile.
        sleeper = subprocess.Popen(["sleep", "600"])
        try:
            record = cluster.data / "run/uploader-1.pid"
            record.write_text(record.read_text().replace(record.read_text().split()[0], str(sleeper.pid), 1))
            done = cluster.down()
            assert sleeper.poll() is None, "not ours"
            assert f"rebalancer-1 (pid {stopped})" in done.stdout
            assert not any(cluster.pids().values())
        finally:
            sleeper.kill()
            sleeper.wait()


def test_up_on_a_taken_port_says_so_and_leaves_nothing_behind(folder):
    cluster = Cluster(folder)
    for name in ("ingest-2", "metadata-1"):
        with socket.create_server(("127.0.0.1", cluster.port_of(name))):
            done = cluster.up(check=False)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert str(cluster.port_of(name)) in last and name in last
        assert not any(cluster.pids().values())
    # Taken without listening: seen by the service itself only.
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", cluster.port_of("scanner-1")))
        done = cluster.up(check=False)
    assert done.returncode == 1 and "scanner-1 ended at its start" in done.stderr.splitlines()[-1]
    assert not any(cluster.pids().values())
    cluster.close()


def test_a_cluster_that_does_not_come_up_is_stopped_with_the_reason(folder):
    cluster = Cluster(folder, environment={"MEMQ_HEARTBEAT_INTERVAL": "nonsense"})
    done = cluster.up(check=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "metadata-1 ended at its start" in last and "heartbeat" in last
    assert not any(cluster.pids().values())
    # The store is there, but nobody answers: what was started is stopped, the reason comes last.
    cluster = Cluster(
        folder, environment={"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = cluster.up("--s3", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "5", check=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("up: not ready after 5 s"), last
    assert not any(cluster.pids().values())


def test_two_at_once_start_one_cluster(folder):
    cluster = Cluster(folder)
    environment = {**os.environ, "MEMQ_BIN": str(BIN), "MEMQ_DATA": str(cluster.data)}
    command = [LOCAL / "up", "--port", str(cluster.base), "--timeout", "60"]
    try:
        both = [
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for _ in range(2)
        ]
        for process in both:
            _, errors = process.communicate(timeout=150)
            assert process.returncode == 0, errors.decode()
        assert len(cluster.json("cluster", "nodes")) == len(NAMES)
        assert all(cluster.pids().values())
    finally:
        cluster.close()


def test_a_process_that_ends_while_up_is_at_work_is_started(folder):
    with Cluster(folder) as cluster:
        # Kept, but not ready: up waits for it.
        kept = cluster.pid("ingest-2")
        cluster.signal("ingest-2", signal.SIGSTOP)
        cluster.kill_one("scanner-1")
        command = [LOCAL / "up", "--timeout", "60"]
        environment = {**os.environ, "MEMQ_BIN": str(BIN), "MEMQ_DATA": str(cluster.data)}
        up = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        wait_until("it has looked at what runs", lambda: cluster.pid("scanner-1"))
        cluster.signal("ingest-2", signal.SIGKILL)
        assert up.wait(PATIENCE) == 0
        assert cluster.pid("ingest-2") not in (None, kept)


def test_options_are_explained_and_checked(folder):
    def run(*arguments):
        return subprocess.run(
            [LOCAL / "up", *arguments], capture_output=True, text=True, timeout=60,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("AWS_")},
                "MEMQ_DATA": str(folder / "x"),
                "MEMQ_BIN": str(BIN),
            },
        )

    assert run("--help").returncode == 0 and "--s3 ENDPOINT" in run("--help").stdout
    assert "--etcd HOST:PORT" in run("--help").stdout
    for wrong in (["--nonsense"], ["--etcd"], ["--etcd", "http://127.0.0.1:2379"], ["--port", "x"], ["--port"], ["--s3", "bucket"]):
        assert run(*wrong).returncode == 2, wrong
    assert run("--s3", "http://127.0.0.1:1").returncode == 1
    nowhere = run("--bin", str(folder))
    assert nowhere.returncode == 1 and "memq-metadata is missing" in nowhere.stderr
    done = subprocess.run([LOCAL / "down", "--data", folder / "x"], capture_output=True, timeout=60)
    assert done.returncode == 0


def test_a_process_that_becomes_the_service_is_never_taken_for_gone(folder):
    # In the middle of exec a process has no command line for a moment.
    shutil.copy("/bin/sleep", folder / "memq-scanner")
    script = """
    . "$0/cluster.sh"
    RUN=$1
    for _ in {1..150}; do
      rm -f "$RUN/scanner-1.pid"
      setsid bash -c '. "$0/cluster.sh" && record "$1" "$$" && shift && exec "$@"' \
        "$0" "$RUN/scanner-1.pid" "$RUN/memq-scanner" 0.3 &
      until [[ -e $RUN/scanner-1.pid ]]; do :; done
      for _ in {1..10}; do pid_of scanner-1 >/dev/null || exit 1; done
    done
    wait
    """
    assert subprocess.run(["bash", "-c", script, LOCAL, folder], timeout=120).returncode == 0
