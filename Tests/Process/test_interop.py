# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""MemQ's RPC module against grpcio, nginx, haproxy and h2load: gRPC's interoperability cases, health, load."""

import json
import re
import shutil
import signal
import subprocess
import threading

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from harness import PATIENCE, Server
from interop import (
    CASES,
    DEADLINE,
    PROXY_LOSES,
    PYTHON_SERVER_LACKS,
    Cases,
    InteropServer,
    Proxy,
    PythonServer,
    Stub,
    load_messages,
    run_client,
    status_of,
)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture(scope="module")
def m(tmp_path_factory):
    """The message classes of grpc.testing."""
    return load_messages(tmp_path_factory.mktemp("testing"))


@pytest.fixture(scope="module")
def ours():
    with InteropServer() as server:
        yield server


@pytest.fixture(scope="module")
def theirs(m):
    with PythonServer(m) as server:
        yield server


@pytest.fixture(scope="module", params=["directly", "nginx", "haproxy"])
def way(request, ours, tmp_path_factory):
    """What stands before our server, and the address that leads there."""
    if request.param == "directly":
        yield request.param, ours.address
    else:
        with Proxy(request.param, ours.address, tmp_path_factory.mktemp(request.param)) as proxy:
            yield request.param, proxy.address


@pytest.fixture(scope="module")
def stub(way, m):
    with grpc.insecure_channel(way[1]) as channel:
        yield Stub(channel, m)


@pytest.mark.parametrize("case", CASES)
def test_a_python_client_gets_what_the_case_wants(way, stub, m, case):
    if (way[0], case) in PROXY_LOSES:
        getattr(Cases, case)(stub, m, loses_early_answers=True)
    else:
        getattr(Cases, case)(stub, m)


def test_our_client_passes_every_case_against_a_python_server(theirs):
    done = run_client(theirs.address, "-o", "json")
    failed = {result["name"]: result["failure"] for result in json.loads(done.stdout) if "failure" in result}
    assert failed.keys() == PYTHON_SERVER_LACKS, done.stdout + done.stderr
    # The probe says so, and nothing else.
    assert set(failed.values()) == {"ended with OK, not INVALID_ARGUMENT"}


@pytest.mark.parametrize("kind", ["directly", "nginx", "haproxy"])
def test_our_client_passes_every_case_against_our_server(ours, kind, folder):
    if kind == "directly":
        done = run_client(ours.address, "-o", "json")
    else:
        with Proxy(kind, ours.address, folder) as proxy:
            done = run_client(proxy.address, "-o", "json")
    failed = {result["name"] for result in json.loads(done.stdout) if "failure" in result}
    assert failed <= {case for proxy, case in PROXY_LOSES if proxy == kind}, done.stdout + done.stderr
    assert done.returncode == (1 if failed else 0)


def test_a_case_that_fails_is_named_and_the_client_exits_with_1(m):
    with PythonServer(m, methods=["EmptyCall", "UnaryCall"]) as server:
        done = run_client(server.address, "--case", "empty_unary,ping_pong")
    assert done.returncode == 1
    assert re.search(r"^pass empty_unary ", done.stdout, re.M)
    assert re.search(r"^FAIL ping_pong: UNIMPLEMENTED", done.stdout, re.M)


def test_a_case_or_server_that_is_none_is_named(ours):
    for options, word in ((["--case", "no_such_case"], "no_such_case"), (["--server", "nowhere"], "nowhere")):
        done = run_client(ours.address, *options)
        assert done.returncode not in (0, 1) and word in done.stderr


def test_health_is_asked_and_watched_per_service():
    with InteropServer() as server, grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def check(service):
            return health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE).status

        assert check("") == SERVING
        assert check("grpc.testing.TestService") == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check("no.such.Service")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND

        watches = {
            service: health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
            for service in ("", "grpc.testing.TestService", "no.such.Service")
        }
        assert {service: next(watch).status for service, watch in watches.items()} == {
            "": SERVING, "grpc.testing.TestService": SERVING, "no.such.Service": SERVICE_UNKNOWN,
        }
        # Told to stop, it says so to those who watch before it goes.
        server.process.send_signal(signal.SIGTERM)
        assert next(watches[""]).status == NOT_SERVING
        assert next(watches["grpc.testing.TestService"]).status == NOT_SERVING
        for watch in watches.values():
            watch.cancel()
        assert server.process.wait(PATIENCE) == 0


def test_health_of_memq_itself(shared_server):
    with grpc.insecure_channel(shared_server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status == SERVING


def test_a_client_without_stubs_reflects_and_calls(ours):
    with grpc.insecure_channel(ours.address) as channel:
        described = ProtoReflectionDescriptorDatabase(channel)
        assert set(described.get_services()) == {
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "grpc.testing.TestService",
            "memq.testing.MemoryService",
        }
        pool = DescriptorPool(described)
        method = pool.FindServiceByName("grpc.testing.TestService").FindMethodByName("UnaryCall")
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        call = channel.unary_unary(
            "/grpc.testing.TestService/UnaryCall", request.SerializeToString, response.FromString
        )
        assert call(request(response_size=1234), timeout=PATIENCE).payload.body == bytes(1234)


def test_memq_reflects_its_public_services_and_no_others(shared_server):
    with grpc.insecure_channel(shared_server.address) as channel:
        described = ProtoReflectionDescriptorDatabase(channel)
        services = set(described.get_services())
        assert {"memq.v1.IngestService", "memq.v1.FileService", "grpc.health.v1.Health"} <= services
        # The inner services have no port here.
        assert "memq.v1.ReplicationService" not in services
        pool = DescriptorPool(described)
        for name in services:
            assert pool.FindServiceByName(name).full_name == name
        file = pool.FindFileByName("memq/v1/ingest.proto")
        assert {d.name for d in file.dependencies} >= {"memq/v1/types.proto", "memq/v1/errors.proto"}
        with pytest.raises(KeyError):
            pool.FindMessageTypeByName("memq.v1.NoSuchMessage")
        # Without stubs: a call with messages made from what the server says of itself.
        method = pool.FindServiceByName("memq.v1.IngestService").FindMethodByName("ListGroups")
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        path = f"/{method.containing_service.full_name}/{method.name}"
        call = channel.unary_unary(path, request.SerializeToString, response.FromString)
        assert call(request(), timeout=PATIENCE) == response()


def test_reflection_can_be_switched_off(folder):
    with Server(folder / "data", "--reflection=false") as server:
        with grpc.insecure_channel(server.address) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                ProtoReflectionDescriptorDatabase(channel).get_services()
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_load_from_h2load_succeeds_and_leaves_no_memory_behind(folder):
    """60,000 unary calls over 20 connections, three times; what the process holds afterwards does not grow."""
    # An empty message, framed.
    (folder / "body").write_bytes(bytes(5))
    program = shutil.which("h2load")
    assert program, "h2load is missing: run scripts/setup"
    rounds, calls, growth_max = 3, 20_000, 8 << 20

    with InteropServer() as server:
        def load():
            done = subprocess.run(
                [
                    program, "-n", str(calls), "-c", "20", "-m", "50", "-d", folder / "body",
                    "-H", "content-type: application/grpc", "-H", "te: trailers",
                    f"http://{server.address}/grpc.testing.TestService/EmptyCall",
                ],
                capture_output=True, text=True, timeout=120,
            )
            assert re.search(rf"requests: .*\b{calls} succeeded, 0 failed, 0 errored, 0 timeout", done.stdout), done.stdout
            # A response of a call that failed has no message: all of them have one, of five bytes.
            assert re.search(rf"traffic: .*\({calls * 5}\) data", done.stdout), done.stdout
            print(re.search(r"finished in .*", done.stdout)[0])
            return server.memory()

        after = [load() for _ in range(rounds)]
        print("RSS after each round, KiB:", [rss >> 10 for rss in after])
        assert after[-1] - after[0] < growth_max


def test_many_python_threads_share_a_connection(ours, m):
    with grpc.insecure_channel(ours.address) as channel:
        stub = Stub(channel, m)
        failures = []

        def run(case):
            try:
                for _ in range(5):
                    getattr(Cases, case)(stub, m)
            except Exception as error:  # noqa: BLE001: reported below
                failures.append((case, error))

        threads = [threading.Thread(target=run, args=(case,)) for case in CASES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
