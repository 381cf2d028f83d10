# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""clients/c: built, installed and used as its users do, against real servers, and against one that speaks TLS."""

import hashlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from harness import ROOT, Server, free_port, sha256, wait_until

SOURCE = ROOT / "clients/c"
VALGRIND = [
    "valgrind", "-q", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect,possible"
]


def make(folder, *arguments, sanitize=""):
    done = subprocess.run(
        ["make", "-C", SOURCE, "-j2", f"BUILD={folder}", f"SANITIZE={sanitize}", "WERROR=1", *arguments],
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return make(tmp_path_factory.mktemp("c") / "build", "programs")


@pytest.fixture(scope="module")
def prefix(build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix")
    make(build, f"PREFIX={folder}", "install")
    return folder


@pytest.fixture(scope="module")
def live(build):
    """Runs a case of test/live.c; its standard output."""

    def run(*arguments, under=(), folder=build, environment=None):
        done = subprocess.run(
            [*under, folder / "test/live", *map(str, arguments)], capture_output=True, text=True, timeout=120,
            env={**os.environ, **(environment or {})},
        )
        assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stderr[-6000:]}"
        return done.stdout

    return run


@pytest.fixture
def topic(shared_server):
    """Makes a topic of a new name."""

    def create(*options):
        name = f"c-{next(NUMBERS)}"
        shared_server.cli("topic", "create", name, *options)
        return name

    return create


NUMBERS = itertools.count()


def tool(prefix, name, *arguments, stdin=b"", environment=None):
    return subprocess.run(
        [prefix / "bin" / name, *map(str, arguments)], input=stdin, capture_output=True, timeout=60,
        env={**os.environ, **(environment or {})},
    )


# --- what is installed


def test_the_unit_tests_pass(build):
    done = subprocess.run([build / "test/unit"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_library_is_versioned_linked_and_exports_only_its_own_names(prefix):
    library = prefix / "lib/libmemq.so"
    assert (prefix / "include/memq.h").exists()
    headers = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "[libmemq.so.0]" in headers
    needed = set(re.findall(r"NEEDED.*\[(lib[a-z0-9-]+)\.so", headers))
    assert needed == {"libnghttp2", "libssl", "libcrypto", "libprotobuf-c", "libc"}
    names = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    exported = {line.split()[-1].split("@")[0] for line in names.stdout.splitlines()} - {"MEMQ_0"}
    documented = set(re.findall(r"MEMQ_API[^;]*?\b(memq_\w+)\(", (prefix / "include/memq.h").read_text()))
    assert exported == documented


@pytest.mark.parametrize("name", ["PREFIX", "DESTDIR"])
def test_folders_with_spaces_are_refused(build, name, tmp_path):
    done = subprocess.run(
        ["make", "-C", SOURCE, f"BUILD={build}", f"{name}={tmp_path}/a b", "install"], capture_output=True, text=True
    )
    assert done.returncode != 0 and "must not have spaces" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_library_s_codes_are_the_protocol_s(prefix):
    wanted = dict(re.findall(r"ERROR_CODE_(\w+) = (\d+);", (ROOT / "proto/memq/v1/errors.proto").read_text()))
    del wanted["UNSPECIFIED"]
    have = dict(re.findall(r"MEMQ_ERROR_(\w+) = (\d+)", (prefix / "include/memq.h").read_text()))
    assert {name: have.get(name) for name in wanted} == wanted
    assert all(int(number) >= 10_000 for name, number in have.items() if name not in wanted)


def test_the_readme_s_example_compiles_and_runs(prefix, shared_server, tmp_path):
    (example,) = re.findall(r"```c\n(.*?)```", (SOURCE / "README.md").read_text(), re.S)
    (tmp_path / "example.c").write_text(example)
    environment = {
        **os.environ,
        "PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig"),
        "LD_LIBRARY_PATH": str(prefix / "lib"),
    }
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libmemq"], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    strict = ["-Wall", "-Wextra", "-Werror", "-Wpedantic"]
    for language, standard in (("c", "c99"), ("c++", "c++17")):
        subprocess.run(
            ["cc", f"-std={standard}", *strict, "-x", language, tmp_path / "example.c", "-x", "none",
             "-o", tmp_path / standard, *flags],
            check=True,
        )
    shared_server.cli("topic", "create", "events")
    done = subprocess.run(
        [tmp_path / "c99", shared_server.address], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "0 0 event 0\n0 1 event 1\n0 2 event 2\n", done.stderr


def test_the_tools_produce_and_consume_lines(prefix, shared_server, topic):
    name = topic("--partitions", 3)
    lines = [b"line %d" % n for n in range(20_000)] + [b"", b"\xff\x00 odd", b"x" * 300_000]
    done = tool(prefix, "memq-c-produce", shared_server.address, name, stdin=b"\n".join(lines))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert sorted(shared_server.values(name)) == sorted(lines)
    done = tool(prefix, "memq-c-consume", shared_server.address, name, len(lines))
    assert done.returncode == 0 and sorted(done.stdout.split(b"\n")[:-1]) == sorted(lines)
    # Fewer than asked for: what there was, and 1.
    done = tool(prefix, "memq-c-consume", "--timeout", 5, shared_server.address, name, len(lines) + 1)
    assert done.returncode == 1 and done.stdout.count(b"\n") == len(lines) and b"DEADLINE_EXCEEDED" in done.stderr
    # A group goes on where it stood, to the record.
    first = tool(prefix, "memq-c-consume", "--group", "g", shared_server.address, name, 777)
    second = tool(prefix, "memq-c-consume", "--group", "g", shared_server.address, name, len(lines) - 777)
    assert first.returncode == second.returncode == 0
    assert sorted((first.stdout + second.stdout).split(b"\n")[:-1]) == sorted(lines)


def test_the_tools_say_what_is_wrong(prefix, shared_server):
    dead = f"127.0.0.1:{free_port((0,))}"
    for name, rest in (("memq-c-produce", []), ("memq-c-consume", [1])):
        done = tool(prefix, name, shared_server.address, "nowhere", *rest)
        assert done.returncode == 1 and done.stderr == b"TOPIC_NOT_FOUND: nowhere: no such topic\n"
        for arguments in ([], ["one"], ["--what", "a", "b"], ["--timeout", "soon", "a", "b", *rest]):
            assert tool(prefix, name, *arguments).returncode == 2
        assert b"--tls-ca" in tool(prefix, name, "--help").stdout
        assert tool(prefix, name, "--version").stdout.count(b".") == 2
        done = tool(prefix, name, "no-port", "topic", *rest)
        assert done.returncode == 1 and done.stderr.startswith(b"INVALID_ARGUMENT: no-port: ")
    assert tool(prefix, "memq-c-consume", dead, "topic", "many").returncode == 2
    done = tool(prefix, "memq-c-produce", "--timeout", 0.2, dead, "topic")
    assert done.returncode == 1 and done.stderr.startswith(b"UNAVAILABLE: " + dead.encode())


# --- against a server


def test_records_of_all_kinds_come_out_as_they_went_in(live, shared_server, topic):
    name = topic("--partitions", 4, "--set", "max.message.bytes=4194304")
    live("round-trip", shared_server.address, name, 5_000, 1 << 20, 4)


def test_it_reads_what_a_topic_compresses_and_writes_what_the_cli_reads(live, shared_server, topic):
    name = topic("--partitions", 4, "--set", "max.message.bytes=4194304", "--set", "compression.type=zstd")
    live("round-trip", shared_server.address, name, 1_000, 1 << 20, 4)


def test_errors_are_typed_and_one_refused_record_holds_up_no_other(live, shared_server, topic):
    live("errors", shared_server.address, topic())


def test_members_of_a_group_share_and_one_goes_on_where_another_left(live, shared_server, topic):
    live("group", shared_server.address, topic("--partitions", 4), "members")


def test_handles_are_shared_by_threads(live, shared_server, topic):
    live("threads", shared_server.address, topic("--partitions", 4), 20_000)


def test_a_flush_waits_for_its_records_while_others_are_sent(live, shared_server, topic):
    live("flushes", shared_server.address, topic("--partitions", "2"))


def test_files_of_all_sizes(live, shared_server, topic):
    live("files", shared_server.address, topic(), 5_000_001)


def test_dead_servers_are_passed_over(prefix, shared_server, topic):
    name = topic()
    # One that refuses, and one that takes connections and never says a word.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        servers = f"127.0.0.1:{free_port((0,))},127.0.0.1:{silent.getsockname()[1]},{shared_server.address}"
        done = tool(prefix, "memq-c-produce", servers, name, stdin=b"one\ntwo\n")
        assert (done.returncode, done.stderr) == (0, b"")
        done = tool(prefix, "memq-c-consume", servers, name, 2)
        assert (done.returncode, done.stdout) == (0, b"one\ntwo\n")


def is_stopped(number):
    """Every thread of it, which a signal does not reach at once."""
    states = [path.read_text().rsplit(")", 1)[1].split()[0] for path in Path(f"/proc/{number}/task").glob("*/stat")]
    return bool(states) and set(states) <= {"T"}


def test_deadlines_hold_against_a_server_that_never_answers(live, build, topic, shared_server, folder):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert live("deadlines", address).startswith(address)
    # And against one that stops in the middle of everything.
    with Server(folder / "data") as server:
        server.cli("topic", "create", "stopped")
        with subprocess.Popen(
            [build / "test/live", "stopped", server.address, "stopped"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout.readline() == b"stop\n"
            server.process.send_signal(signal.SIGSTOP)
            wait_until("the server stops", lambda: is_stopped(server.process.pid))
            _, said = process.communicate(b"\n", timeout=60)
            assert process.returncode == 0, said.decode()


def test_nothing_is_lost_or_doubled_when_the_server_is_killed(build, prefix, folder):
    with Server(folder / "data") as server:
        server.cli("topic", "create", "numbers", "--partitions", "3")
        # Reads all the while.
        reading = subprocess.Popen(
            [prefix / "bin/memq-c-consume", "--timeout", "60", server.address, "numbers", "9000"],
            stdout=subprocess.PIPE,
        )
        acked: list[int] = []
        stopping = threading.Event()
        process = subprocess.Popen(
            [build / "test/live", "numbers", server.address, "numbers"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        sent = 0

        def write():
            nonlocal sent
            while not stopping.is_set():
                process.stdin.write(b"".join(b"%d\n" % n for n in range(sent, sent + 50)))
                process.stdin.flush()
                sent += 50
                stopping.wait(0.001)
            process.stdin.close()

        def read():
            for line in process.stdout:
                acked.append(int(line))

        writer, reader = threading.Thread(target=write), threading.Thread(target=read)
        writer.start()
        reader.start()
        try:
            for _ in range(2):
                goal = len(acked) + 3_000
                wait_until("records are acknowledged", lambda: len(acked) >= goal, pause=0.002)
                server.kill()
                server.start(ready=False)
            goal = len(acked) + 3_000
            wait_until("records are acknowledged again", lambda: len(acked) >= goal)
        finally:
            stopping.set()
            writer.join()
        assert process.wait(60) == 0, process.stderr.read().decode()
        reader.join()
        assert sorted(acked) == list(range(sent))
        out = server.cli("consume", "numbers", "--from", "beginning", "--until-end", "--format", "%p %v").stdout
        found = [tuple(map(int, line.split())) for line in out.splitlines()]
        assert sorted(value for _, value in found) == list(range(sent))
        out, _ = reading.communicate(timeout=60)
        consumed = list(map(int, out.split()))
        assert reading.returncode == 0 and len(set(consumed)) == len(consumed) == 9_000
        place_of = {value: place for place, value in found}
        for partition in range(3):
            seen = [value for value in consumed if place_of[value] == partition]
            assert seen == sorted(seen)
            values = [value for place, value in found if place == partition]
            assert values == sorted(values)


class Transfer:
    """`live put` or `live get`, telling how far it is."""

    def __init__(self, build, *arguments):
        self.progress: list[int] = []
        self.process = subprocess.Popen(
            [build / "test/live", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.progress.append(int(line))

    def until(self, size):
        wait_until(f"{size} bytes are through", lambda: self.progress and self.progress[-1] >= size, pause=0.001)

    def end(self) -> bytes:
        said = self.process.stderr.read()
        status = self.process.wait(60)
        self.reader.join()
        assert status == 0, said.decode()
        return said

    def resumed_at(self) -> int:
        """The first place told after it went back; 0: it never did."""
        return next((b for a, b in itertools.pairwise(self.progress) if b <= a), 0)


def test_files_survive_kills_of_the_server_and_of_the_client(build, folder):
    data = os.urandom(1 << 20) * 200
    digest = sha256(data)
    (folder / "file").write_bytes(data)
    with Server(folder / "data") as server:
        server.cli("topic", "create", "files")
        put = Transfer(build, "put", server.address, "files", "big", folder / "file")
        put.until(90 << 20)
        server.kill()
        server.start(ready=False)
        assert put.end().split()[:2] == [digest.encode(), b"%d" % len(data)]
        # It went back to what was durable, not to the beginning.
        assert put.resumed_at() > 16 << 20

        # Another process goes on with the same upload id, where the first one gave up.
        upload = os.urandom(16).hex()
        Transfer(build, "put", server.address, "files", "other", folder / "file", upload, 100 << 20).end()
        again = Transfer(build, "put", server.address, "files", "other", folder / "file", upload)
        assert again.end().split()[0] == digest.encode()
        assert again.progress[0] > 16 << 20

        for name in ("big", "other"):
            get = Transfer(build, "get", server.address, "files", name, folder / "got")
            if name == "big":
                get.until(60 << 20)
                server.kill()
                server.start(ready=False)
            get.end()
            assert sha256((folder / "got").read_bytes()) == digest
            assert not list(folder.glob(".memq-*"))
        # Small ones and big ones are the same to the command line.
        assert server.json("file", "stat", "files", "big")["sha256"] == digest


class Door:
    """A port that passes bytes on to a server, until it is shut: then its connections break and nobody listens."""

    def __init__(self, target: str):
        host, port = target.split(":")
        self.target = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.sockets: list[socket.socket] = []
        self.passed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        try:
            while True:
                inside, _ = self.listener.accept()
                outside = socket.create_connection(self.target)
                self.sockets += [inside, outside]
                for source, sink in ((inside, outside), (outside, inside)):
                    threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()
        except OSError:
            pass

    def _pass(self, source, sink):
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
                self.passed += len(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def shut(self):
        # Wakes who accepts.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for end in self.sockets:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def test_another_ingest_takes_over_when_one_goes_away_in_the_middle(build, shared_server, topic, folder):
    name = topic("--partitions", 3)
    doors = [Door(shared_server.address) for _ in range(3)]
    process = subprocess.Popen(
        [build / "test/live", "numbers", ",".join(door.address for door in doors), name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    acked = 0
    for door in doors:
        process.stdin.write(b"".join(b"%d\n" % n for n in range(acked, acked + 5_000)))
        process.stdin.flush()
        assert int(process.stdout.readline()) >= 0
        # Cut with records on their way, but for the last.
        if door is not doors[-1]:
            door.shut()
        for _ in range(4_999):
            assert process.stdout.readline()
        acked += 5_000
    process.stdin.close()
    assert process.wait(60) == 0, process.stderr.read().decode()
    assert sorted(map(int, shared_server.values(name))) == list(range(acked))
    assert doors[-1].passed > 0

    # A put and a get, cut as well.
    data = os.urandom(1 << 20) * 60
    (folder / "file").write_bytes(data)
    for case, path in (("put", "file"), ("get", "got")):
        doors = [Door(shared_server.address) for _ in range(2)]
        transfer = Transfer(build, case, ",".join(door.address for door in doors), name, "cut", folder / path)
        transfer.until(40 << 20)
        doors[0].shut()
        transfer.end()
        assert doors[1].passed > 1 << 20
    assert (folder / "got").read_bytes() == data


# --- sanitizers and valgrind


@pytest.mark.parametrize("kind", ["valgrind", "address,undefined", "thread"])
def test_nothing_is_leaked_overrun_or_raced_for(live, build, shared_server, topic, tmp_path_factory, kind):
    folder, under = build, []
    if kind == "valgrind":
        under = VALGRIND
    else:
        folder = make(tmp_path_factory.mktemp("sanitized") / "build", "programs", "CFLAGS=-O0 -g", sanitize=kind)
    if kind == "thread" and subprocess.run(["setarch", "-R", "true"], stderr=subprocess.DEVNULL).returncode == 0:
        # Its shadow memory has no room beside addresses that are drawn from 32 bits.
        under = ["setarch", "-R"]
    server = shared_server.address
    subprocess.run([*under, folder / "test/unit"], check=True, timeout=120, stdout=subprocess.DEVNULL)
    few = kind == "valgrind"
    roomy = ("--set", "max.message.bytes=4194304")
    how = {"under": under, "folder": folder}
    live("round-trip", server, topic("--partitions", 4, *roomy), 600 if few else 3_000, 1 << 20, 4, **how)
    live("threads", server, topic("--partitions", 4), 2_000 if few else 10_000, **how)
    live("files", server, topic(), 900_001, **how)
    live("errors", server, topic(), **how)
    live("group", server, topic("--partitions", 4), "members", **how)


# --- TLS: against grpcio


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """The generated modules, by name."""
    out = tmp_path_factory.mktemp("stubs")
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--python_out={out}",
         *sorted((ROOT / "proto/memq/v1").glob("*.proto"))],
        check=True,
    )
    sys.path.insert(0, str(out))
    import importlib

    yield lambda name: importlib.import_module(f"memq.v1.{name}")
    sys.path.remove(str(out))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Made by openssl: an authority, a server's, one of another name, an expired one, a client's."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for authority in ("ca", "stranger"):
        openssl("req", "-x509", *key, "-keyout", f"{authority}.key", "-out", f"{authority}.pem",
                "-subj", f"/CN={authority}", "-days", 2)

    def issue(name, alternatives, days=2):
        (folder / f"{name}.ext").write_text(f"subjectAltName={alternatives}\n")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", days, "-extfile", f"{name}.ext", "-out", f"{name}.pem")

    issue("server", "IP:127.0.0.1,DNS:localhost")
    issue("other", "DNS:other.example")
    issue("expired", "IP:127.0.0.1", days=-1)
    issue("client", "DNS:client")
    return folder


@pytest.fixture
def tls_server(stubs, certificates):
    """A topic in memory, of one partition, behind TLS."""
    ingest, metadata = stubs("ingest_pb2"), stubs("metadata_pb2")
    log = []

    def describe(request, context):
        if request.name != "tls":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such topic; 100 % sure")
        topic = stubs("types_pb2").Topic(topic_id=b"t" * 16, name="tls", partition_count=1)
        return metadata.DescribeTopicResponse(topic=topic)

    def produce(requests, context):
        for request in requests:
            base = len(log)
            log.extend(request.records)
            yield ingest.ProduceResponse(
                request_id=request.request_id, base_offset=base, record_count=len(request.records)
            )

    def fetch(request, context):
        offset = request.positions[0].offset
        answer = ingest.FetchResponse(high_watermark=len(log), next_offset=len(log))
        for number, record in enumerate(log[offset:], offset):
            record.offset = number
            answer.records.append(record)
        yield answer

    def offsets(request, context):
        one = stubs("replication_pb2").PartitionOffset(
            topic_partition=stubs("types_pb2").TopicPartition(topic_id=b"t" * 16), offset=0
        )
        return stubs("replication_pb2").ListOffsetsResponse(offsets=[one])

    def unary(body, kind):
        return grpc.unary_unary_rpc_method_handler(body, kind.FromString, lambda answer: answer.SerializeToString())

    handlers = [
        grpc.method_handlers_generic_handler(
            "memq.v1.MetadataService", {"DescribeTopic": unary(describe, metadata.DescribeTopicRequest)}
        ),
        grpc.method_handlers_generic_handler(
            "memq.v1.IngestService",
            {
                "InitProducer": unary(
                    lambda request, context: metadata.InitProducerResponse(producer_id=1), metadata.InitProducerRequest
                ),
                "Offsets": unary(offsets, ingest.OffsetsRequest),
                "Produce": grpc.stream_stream_rpc_method_handler(
                    produce, ingest.ProduceRequest.FromString, lambda answer: answer.SerializeToString()
                ),
                "Fetch": grpc.unary_stream_rpc_method_handler(
                    fetch, ingest.FetchRequest.FromString, lambda answer: answer.SerializeToString()
                ),
            },
        ),
    ]
    servers = []

    def start(certificate="server", client_authority=None):
        read = lambda name: (certificates / name).read_bytes()
        credentials = grpc.ssl_server_credentials(
            [(read(f"{certificate}.key"), read(f"{certificate}.pem"))],
            read(f"{client_authority}.pem") if client_authority else None,
            require_client_auth=client_authority is not None,
        )
        server = grpc.server(futures.ThreadPoolExecutor(8))
        server.add_generic_rpc_handlers(handlers)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        servers.append(server)
        return port

    yield start
    for server in servers:
        server.stop(None)


def test_tls_and_mutual_tls(prefix, certificates, tls_server):
    values = [b"value %d" % n for n in range(3_000)] + [b"y" * 200_000]
    ca = ["--tls-ca", certificates / "ca.pem"]
    client = ["--tls-cert", certificates / "client.pem", "--tls-key", certificates / "client.key"]
    produced = 0
    for port, options in ((tls_server(), ca), (tls_server(client_authority="ca"), ca + client)):
        # By IP address, by name, and by a name that is told.
        for server, more in (
            (f"127.0.0.1:{port}", []), (f"localhost:{port}", []), (f"127.0.0.1:{port}", ["--tls-name", "localhost"])
        ):
            done = tool(prefix, "memq-c-produce", *options, *more, server, "tls", stdin=b"\n".join(values))
            assert (done.returncode, done.stderr) == (0, b"")
            produced += len(values)
        done = tool(prefix, "memq-c-consume", *options, server, "tls", produced)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split(b"\n")[-len(values) - 1 : -1] == values
    done = tool(prefix, "memq-c-produce", *options, server, "nowhere")
    assert done.returncode == 1 and b"no such topic; 100 % sure" in done.stderr


@pytest.mark.parametrize(
    "certificate, options, reason",
    [
        ("expired", {}, b"certificate has expired"),
        ("other", {}, b"IP address mismatch"),
        ("other", {"tls-name": "localhost"}, b"hostname mismatch"),
        ("server", {"tls-ca": "stranger.pem"}, b"unable to get local issuer certificate"),
        # The system's authorities know nothing of ours.
        ("server", {"tls-ca": None}, b"unable to get local issuer certificate"),
    ],
    ids=["expired", "wrong-address", "wrong-name", "unknown-authority", "system-authorities"],
)
def test_certificates_that_are_not_right_are_refused(prefix, certificates, tls_server, certificate, options, reason):
    server = f"127.0.0.1:{tls_server(certificate)}"
    options = {"tls-ca": "ca.pem", **options}
    flags = ["--tls"]
    for name, value in options.items():
        if value:
            flags += [f"--{name}", certificates / value if value.endswith(".pem") else value]
    done = tool(prefix, "memq-c-produce", *flags, server, "tls", stdin=b"x\n")
    assert done.returncode == 1
    assert done.stderr.startswith(b"TLS: " + server.encode() + b": the server's certificate is refused: "), done.stderr
    assert reason in done.stderr


def test_a_client_without_its_certificate_is_told_so(prefix, certificates, tls_server):
    server = f"127.0.0.1:{tls_server(client_authority='ca')}"
    done = tool(prefix, "memq-c-produce", "--tls-ca", certificates / "ca.pem", server, "tls", stdin=b"x\n")
    assert done.returncode == 1 and done.stderr.startswith(b"TLS: " + server.encode()), done.stderr
    assert b"wants a client's certificate" in done.stderr or b"certificate required" in done.stderr
    done = tool(prefix, "memq-c-produce", "--tls-cert", certificates / "client.pem", server, "tls")
    assert done.returncode == 1 and done.stderr.startswith(b"INVALID_ARGUMENT: tls_key_file: ")
    done = tool(
        prefix, "memq-c-produce", "--tls-ca", certificates / "ca.pem", "--tls-cert", certificates / "client.pem",
        "--tls-key", certificates / "server.key", server, "tls",
    )
    assert done.returncode == 1 and b"key" in done.stderr


def test_tls_against_a_server_that_speaks_none(prefix, certificates, shared_server):
    done = tool(prefix, "memq-c-produce", "--tls-ca", certificates / "ca.pem", shared_server.address, "tls")
    assert done.returncode == 1 and done.stderr.split(b":")[0] in (b"TLS", b"UNAVAILABLE"), done.stderr
