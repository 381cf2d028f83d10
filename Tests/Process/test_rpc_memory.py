# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""What stalled readers and writers, many connections and long streams cost in resident memory. Times are printed, never judged."""

import resource
import time

import grpc
import pytest

from harness import PATIENCE
from interop import InteropServer, Stub, load_messages, output_request, payload, wait_until
from raw_http2 import RawConnection

MIB = 1 << 20
# A process of two loops with nothing to do has about 15 MiB.
IDLE_MAX = 64 * MIB
# One stalled call: a send queue with one response in it, or a window of 8 MiB of requests, the socket's buffers apart; and what the allocator
# keeps of the way there.
STALLED_CALL_MAX = 48 * MIB
# Kernel memory is not counted: a connection with a call that has taken one request, its session and its buffers.
ACTIVE_CONNECTION_MAX = 192 << 10
# Allocator and loops apart, an idle connection is a session and a buffer of 2 KiB.
IDLE_CONNECTION_MAX = 64 << 10
CONNECTIONS = 1000
TEN_GIB_RESPONSES = 10 * 1024


@pytest.fixture(scope="module")
def m(tmp_path_factory):
    return load_messages(tmp_path_factory.mktemp("testing"))


@pytest.fixture
def ours():
    with InteropServer() as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def file_limit():
    """A thousand connections need as many files, here and in the server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def settled(server) -> int:
    """Resident memory once it has stopped to grow."""
    last = [0]

    def is_stable():
        now = server.memory()
        stable = now - last[0] < MIB
        last[0] = now
        return stable

    wait_until("memory is stable", is_stable, pause=0.3)
    return server.memory()


def p99(call, count=300) -> float:
    """Milliseconds."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[int(count * 0.99)] * 1000


def test_a_stalled_reader_of_10_gib_costs_a_queue_and_no_more(ours, m):
    """The client takes the first of 10,240 responses of 1 MiB; a call beside it on the same connection goes on."""
    with grpc.insecure_channel(ours.address) as channel:
        stub = Stub(channel, m)
        alone = p99(lambda: stub.empty(m.Empty(), timeout=PATIENCE))
        before = ours.memory()
        assert before < IDLE_MAX
        stream = stub.output(output_request(m, [MIB] * TEN_GIB_RESPONSES), timeout=PATIENCE * 5)
        assert len(next(stream).payload.body) == MIB
        held = settled(ours) - before
        beside = p99(lambda: stub.empty(m.Empty(), timeout=PATIENCE))
        peak = ours.memory("VmHWM") - before
        print(f"stalled reader: {held / MIB:.1f} MiB held, {peak / MIB:.1f} at most; "
              f"a call beside it: p99 {beside:.2f} ms, alone {alone:.2f} ms (2x is {2 * alone:.2f})")
        assert peak < STALLED_CALL_MAX
        # Read on, it is as quick as ever: 2 GiB, and no more memory than before.
        start = time.perf_counter()
        for _ in range(2048):
            next(stream)
        print(f"2 GiB after that in {time.perf_counter() - start:.1f} s")
        assert ours.memory("VmHWM") - before < STALLED_CALL_MAX
        stream.cancel()
        stub.empty(m.Empty(), timeout=PATIENCE)


def test_a_handler_that_takes_nothing_holds_a_window(ours, m):
    """The client offers as much as it can of 1 GiB; a call beside it goes on; released, all of it arrives."""
    size, count = 256 << 10, 4096
    with grpc.insecure_channel(ours.address) as channel:
        stub = Stub(channel, m)
        alone = p99(lambda: stub.empty(m.Empty(), timeout=PATIENCE))
        before = ours.memory()
        offered = [0]

        def requests():
            for _ in range(count):
                offered[0] += 1
                yield bytes(size)

        hold = channel.stream_unary("/memq.testing.MemoryService/Hold").future(requests(), timeout=PATIENCE * 5)
        progress = [-1]

        def is_stalled():
            stopped = offered[0] == progress[0] and offered[0] > 0
            progress[0] = offered[0]
            return stopped

        wait_until("the client is stalled", is_stalled, pause=0.5)
        assert offered[0] < count
        beside = p99(lambda: stub.empty(m.Empty(), timeout=PATIENCE))
        peak = ours.memory("VmHWM") - before
        print(f"stalled writer: {offered[0] * size / MIB:.0f} MiB offered, {peak / MIB:.1f} MiB held at most; "
              f"a call beside it: p99 {beside:.2f} ms, alone {alone:.2f} ms (2x is {2 * alone:.2f})")
        assert peak < STALLED_CALL_MAX
        channel.unary_unary("/memq.testing.MemoryService/Release")(b"", timeout=PATIENCE)
        assert int(hold.result()) == size * count
        assert ours.memory("VmHWM") - before < STALLED_CALL_MAX


def test_a_thousand_connections_that_append_are_bounded(ours, m):
    """Each sends 64 requests of 4 KiB on a stream of its own and stays; then all of them are idle."""
    before = ours.memory()
    request = m.StreamingInputCallRequest(payload=payload(m, 4096)).SerializeToString()
    connections = []
    try:
        for _ in range(CONNECTIONS):
            connections.append(RawConnection(ours.port))
        for connection in connections:
            connection.ping()
        idle = (settled(ours) - before) / CONNECTIONS
        for connection in connections:
            connection.request(1, "/grpc.testing.TestService/StreamingInputCall")
        for _ in range(64):
            for connection in connections:
                connection.message(1, request)
        # A PING behind the requests is answered when they are through.
        for connection in connections:
            connection.ping()
        active = (ours.memory("VmHWM") - before) / CONNECTIONS
        print(f"idle: {idle / 1024:.1f} KiB a connection; appending: {active / 1024:.1f} KiB at most")
        assert idle < IDLE_CONNECTION_MAX
        assert active < ACTIVE_CONNECTION_MAX
    finally:
        for connection in connections:
            connection.close()
    with grpc.insecure_channel(ours.address) as channel:
        Stub(channel, m).empty(m.Empty(), timeout=PATIENCE)
