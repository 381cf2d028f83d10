# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""gRPC's interoperability cases in grpcio, its TestService in grpcio, and the proxies that go in between."""

from __future__ import annotations

import queue
import shutil
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from harness import BIN, PATIENCE, ROOT, free_port, wait_until

INTEROP = BIN / "memq-interop"
TEST_SERVICE = "grpc.testing.TestService"
INITIAL, TRAILING = "x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"
LARGE_REQUEST, LARGE_RESPONSE = 271828, 314159
REQUESTS, RESPONSES = [27182, 8, 1828, 45904], [31415, 9, 2653, 58979]
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
# For each call: bounds a hang only.
DEADLINE = 30


def load_messages(scratch: Path):
    """The message classes of grpc.testing. Their package lies inside grpcio's own, so they cannot be modules."""
    proto = ROOT / "Sources/Testing/proto"
    files = sorted(str(path.relative_to(proto)) for path in proto.rglob("*.proto"))
    described = scratch / "testing.descriptors"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto}", f"--descriptor_set_out={described}", *files],
        check=True,
    )
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(described.read_bytes()).file:
        pool.Add(file)
    classes = message_factory.GetMessageClassesForFiles(files, pool)
    return type("Messages", (), {name.rsplit(".", 1)[1]: cls for name, cls in classes.items()})


class Stub:
    """TestService over a channel."""

    def __init__(self, channel: grpc.Channel, m):
        def call(kind, name, request, response, service=TEST_SERVICE):
            return getattr(channel, kind)(
                f"/{service}/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )

        self.empty = call("unary_unary", "EmptyCall", m.Empty, m.Empty)
        self.unary = call("unary_unary", "UnaryCall", m.SimpleRequest, m.SimpleResponse)
        self.output = call(
            "unary_stream", "StreamingOutputCall", m.StreamingOutputCallRequest, m.StreamingOutputCallResponse
        )
        self.input = call(
            "stream_unary", "StreamingInputCall", m.StreamingInputCallRequest, m.StreamingInputCallResponse
        )
        self.duplex = call(
            "stream_stream", "FullDuplexCall", m.StreamingOutputCallRequest, m.StreamingOutputCallResponse
        )
        self.half_duplex = call(
            "stream_stream", "HalfDuplexCall", m.StreamingOutputCallRequest, m.StreamingOutputCallResponse
        )
        self.unimplemented = call("unary_unary", "UnimplementedCall", m.Empty, m.Empty)
        self.unimplemented_service = call(
            "unary_unary", "UnimplementedCall", m.Empty, m.Empty, "grpc.testing.UnimplementedService"
        )


def status_of(call) -> tuple[grpc.StatusCode, str]:
    """How a call ends that should not end well."""
    try:
        call()
        return grpc.StatusCode.OK, ""
    except grpc.RpcError as error:
        return error.code(), error.details()


def code_of(call) -> grpc.StatusCode:
    return status_of(call)[0]


def payload(m, size):
    return m.Payload(body=bytes(size))


def large_request(m, **fields):
    return m.SimpleRequest(response_size=LARGE_RESPONSE, payload=payload(m, LARGE_REQUEST), **fields)


def output_request(m, sizes=(), **fields):
    return m.StreamingOutputCallRequest(
        response_parameters=[m.ResponseParameters(size=size) for size in sizes], **fields
    )


class Requests:
    """An iterator of requests that is fed while the call runs."""

    def __init__(self):
        self.queue = queue.Queue()

    def send(self, request):
        self.queue.put(request)

    def end(self):
        self.queue.put(None)

    def __iter__(self):
        return iter(self.queue.get, None)


class Cases:
    """Every method is a case; it raises when something is not as gRPC's description says."""

    @staticmethod
    def empty_unary(stub, m):
        assert stub.empty(m.Empty(), timeout=DEADLINE) == m.Empty()

    @staticmethod
    def large_unary(stub, m):
        assert stub.unary(large_request(m), timeout=DEADLINE).payload.body == bytes(LARGE_RESPONSE)

    @staticmethod
    def client_streaming(stub, m):
        requests = (m.StreamingInputCallRequest(payload=payload(m, size)) for size in REQUESTS)
        assert stub.input(requests, timeout=DEADLINE).aggregated_payload_size == sum(REQUESTS)

    @staticmethod
    def server_streaming(stub, m):
        responses = list(stub.output(output_request(m, RESPONSES), timeout=DEADLINE))
        assert [response.payload.body for response in responses] == [bytes(size) for size in RESPONSES]

    @staticmethod
    def ping_pong(stub, m):
        requests = Requests()
        call = stub.duplex(iter(requests), timeout=DEADLINE)
        for request, response in zip(REQUESTS, RESPONSES):
            requests.send(output_request(m, [response], payload=payload(m, request)))
            assert next(call).payload.body == bytes(response)
        requests.end()
        assert list(call) == []

    @staticmethod
    def half_duplex(stub, m):
        requests = [output_request(m, [size]) for size in RESPONSES]
        responses = list(stub.half_duplex(iter(requests), timeout=DEADLINE))
        assert [len(response.payload.body) for response in responses] == RESPONSES

    @staticmethod
    def empty_stream(stub, m):
        assert list(stub.duplex(iter([]), timeout=DEADLINE)) == []

    @staticmethod
    def cancel_after_begin(stub, m):
        requests = Requests()
        call = stub.input.future(iter(requests), timeout=DEADLINE)
        call.cancel()
        assert call.cancelled() and call.code() == grpc.StatusCode.CANCELLED
        requests.end()

    @staticmethod
    def cancel_after_first_response(stub, m):
        requests = Requests()
        call = stub.duplex(iter(requests), timeout=DEADLINE)
        requests.send(output_request(m, RESPONSES[:1], payload=payload(m, REQUESTS[0])))
        assert next(call).payload.body == bytes(RESPONSES[0])
        call.cancel()
        assert code_of(lambda: next(call)) == grpc.StatusCode.CANCELLED
        requests.end()

    @staticmethod
    def timeout_on_sleeping_server(stub, m):
        requests = Requests()
        requests.send(output_request(m, payload=payload(m, REQUESTS[0])))
        call = stub.duplex(iter(requests), timeout=0.001)
        assert code_of(lambda: next(call)) == grpc.StatusCode.DEADLINE_EXCEEDED
        requests.end()

    @staticmethod
    def custom_metadata(stub, m):
        metadata = [(INITIAL, "test_initial_metadata_value"), (TRAILING, b"\xab\xab\xab")]

        def check(call):
            assert dict(call.initial_metadata())[INITIAL] == "test_initial_metadata_value"
            assert dict(call.trailing_metadata())[TRAILING] == b"\xab\xab\xab"

        response, call = stub.unary.with_call(large_request(m), timeout=DEADLINE, metadata=metadata)
        assert len(response.payload.body) == LARGE_RESPONSE
        check(call)
        request = output_request(m, [LARGE_RESPONSE], payload=payload(m, LARGE_REQUEST))
        call = stub.duplex(iter([request]), timeout=DEADLINE, metadata=metadata)
        (response,) = list(call)
        assert len(response.payload.body) == LARGE_RESPONSE
        check(call)

    @staticmethod
    def status_code_and_message(stub, m, loses_early_answers=False):
        status = m.EchoStatus(code=2, message="test status message")
        call = lambda: stub.unary(m.SimpleRequest(response_status=status), timeout=DEADLINE)  # noqa: E731
        assert status_of(call) == (grpc.StatusCode.UNKNOWN, status.message)
        request = m.StreamingOutputCallRequest(response_status=status)
        end = status_of(lambda: list(stub.duplex(iter([request]), timeout=DEADLINE)))
        is_lost = loses_early_answers and end[0] == grpc.StatusCode.CANCELLED
        assert is_lost or end == (grpc.StatusCode.UNKNOWN, status.message)

    @staticmethod
    def special_status_message(stub, m):
        request = m.SimpleRequest(response_status=m.EchoStatus(code=2, message=SPECIAL))
        call = lambda: stub.unary(request, timeout=DEADLINE)  # noqa: E731
        assert status_of(call) == (grpc.StatusCode.UNKNOWN, SPECIAL)

    @staticmethod
    def unimplemented_method(stub, m):
        call = lambda: stub.unimplemented(m.Empty(), timeout=DEADLINE)  # noqa: E731
        assert code_of(call) == grpc.StatusCode.UNIMPLEMENTED

    @staticmethod
    def unimplemented_service(stub, m):
        call = lambda: stub.unimplemented_service(m.Empty(), timeout=DEADLINE)  # noqa: E731
        assert code_of(call) == grpc.StatusCode.UNIMPLEMENTED

    @staticmethod
    def client_compressed_unary(stub, m):
        expected = m.BoolValue(value=True)
        call = lambda: stub.unary(large_request(m, expect_compressed=expected), timeout=DEADLINE)  # noqa: E731
        assert code_of(call) == grpc.StatusCode.INVALID_ARGUMENT
        for compression, value in ((grpc.Compression.Gzip, True), (grpc.Compression.NoCompression, False)):
            request = large_request(m, expect_compressed=m.BoolValue(value=value))
            response = stub.unary(request, timeout=DEADLINE, compression=compression)
            assert len(response.payload.body) == LARGE_RESPONSE

    @staticmethod
    def client_compressed_streaming(stub, m, loses_early_answers=False):
        def request(size, value):
            return m.StreamingInputCallRequest(payload=payload(m, size), expect_compressed=m.BoolValue(value=value))

        code = code_of(lambda: stub.input(iter([request(27182, True)]), timeout=DEADLINE))
        is_lost = loses_early_answers and code == grpc.StatusCode.CANCELLED
        assert is_lost or code == grpc.StatusCode.INVALID_ARGUMENT
        for compression, value in ((grpc.Compression.Gzip, True), (grpc.Compression.NoCompression, False)):
            requests = iter([request(27182, value), request(45904, value)])
            response = stub.input(requests, timeout=DEADLINE, compression=compression)
            assert response.aggregated_payload_size == 73086

    # That a response was compressed, grpcio does not tell: that it can be read, it does. Our own client looks at the flag.
    @staticmethod
    def server_compressed_unary(stub, m):
        for value in (True, False):
            response = stub.unary(large_request(m, response_compressed=m.BoolValue(value=value)), timeout=DEADLINE)
            assert response.payload.body == bytes(LARGE_RESPONSE)

    @staticmethod
    def server_compressed_streaming(stub, m):
        request = m.StreamingOutputCallRequest(
            response_parameters=[
                m.ResponseParameters(size=31415, compressed=m.BoolValue(value=True)),
                m.ResponseParameters(size=92653, compressed=m.BoolValue(value=False)),
            ]
        )
        sizes = [len(response.payload.body) for response in stub.output(request, timeout=DEADLINE)]
        assert sizes == [31415, 92653]


# Cases in which a server answers before the request stream has ended, as it may. It ends the stream with RST_STREAM(NO_ERROR) then, and
# HAProxy 2.6 loses the answer now and then and resets its client's stream with CANCEL (github.com/haproxy/haproxy/issues/1219): seen with
# grpcio's own server behind it, too. Such a case must end with the answer or with that, and with nothing else.
PROXY_LOSES = {("haproxy", "status_code_and_message"), ("haproxy", "client_compressed_streaming")}
# grpcio's server does not tell its handlers whether a request was compressed, so it cannot refuse one that was not.
PYTHON_SERVER_LACKS = {"client_compressed_unary", "client_compressed_streaming"}
CASES = [name for name in vars(Cases) if not name.startswith("_")]


class PythonService:
    """TestService in grpcio, for clients of ours."""

    def __init__(self, m):
        self.m = m

    def echo(self, context):
        for name, value in context.invocation_metadata():
            if name == INITIAL:
                context.send_initial_metadata([(name, value)])
            elif name == TRAILING:
                context.set_trailing_metadata([(name, value)])

    def end(self, request, context):
        if request.response_status.code:
            code = next(c for c in grpc.StatusCode if c.value[0] == request.response_status.code)
            context.abort(code, request.response_status.message)

    def empty(self, request, context):
        return self.m.Empty()

    def unary(self, request, context):
        if request.response_compressed.value:
            context.set_compression(grpc.Compression.Gzip)
        self.echo(context)
        self.end(request, context)
        return self.m.SimpleResponse(payload=payload(self.m, request.response_size))

    def responses(self, request, context):
        if any(wanted.compressed.value for wanted in request.response_parameters):
            context.set_compression(grpc.Compression.Gzip)
        for wanted in request.response_parameters:
            if not wanted.compressed.value:
                context.disable_next_message_compression()
            time.sleep(wanted.interval_us / 1e6)
            yield self.m.StreamingOutputCallResponse(payload=payload(self.m, wanted.size))
        self.end(request, context)

    def input(self, requests, context):
        size = sum(len(request.payload.body) for request in requests)
        return self.m.StreamingInputCallResponse(aggregated_payload_size=size)

    def duplex(self, requests, context):
        self.echo(context)
        for request in requests:
            yield from self.responses(request, context)

    def handler(self, methods=None):
        m = self.m

        def made(kind, body, request, response):
            return getattr(grpc, f"{kind}_rpc_method_handler")(
                body, request_deserializer=request.FromString, response_serializer=response.SerializeToString
            )

        all_methods = {
            "EmptyCall": made("unary_unary", self.empty, m.Empty, m.Empty),
            "UnaryCall": made("unary_unary", self.unary, m.SimpleRequest, m.SimpleResponse),
            "StreamingOutputCall": made(
                "unary_stream", self.responses, m.StreamingOutputCallRequest, m.StreamingOutputCallResponse
            ),
            "StreamingInputCall": made(
                "stream_unary", self.input, m.StreamingInputCallRequest, m.StreamingInputCallResponse
            ),
            "FullDuplexCall": made(
                "stream_stream", self.duplex, m.StreamingOutputCallRequest, m.StreamingOutputCallResponse
            ),
        }
        chosen = {name: all_methods[name] for name in methods or all_methods}
        return grpc.method_handlers_generic_handler(TEST_SERVICE, chosen)


class PythonServer:
    """A grpcio server of the test service, or of some of its methods."""

    def __init__(self, m, methods=None):
        self.server = grpc.server(futures.ThreadPoolExecutor(8))
        self.server.add_generic_rpc_handlers([PythonService(m).handler(methods)])
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *_):
        self.server.stop(None).wait(PATIENCE)


class InteropServer:
    """`memq-interop server` on a free port."""

    def __init__(self, *options: str):
        self.process = subprocess.Popen(
            [INTEROP, "server", "--listen", "127.0.0.1:0", *options], stdout=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), f"memq-interop server said {line!r}"
        self.address = line.split()[-1]
        self.port = int(self.address.rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self.process.stdout.close()

    def memory(self, field: str = "VmRSS") -> int:
        """Bytes: VmRSS now, VmHWM at most so far."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) << 10
        raise AssertionError(f"{field} is not in /proc")

    def restart_peak(self) -> None:
        """VmHWM counts from here."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


def run_client(address: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [INTEROP, "client", "--server", address, *options], capture_output=True, text=True, timeout=120
    )


NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  server {{
    listen 127.0.0.1:{port} http2;
    location / {{ grpc_pass grpc://{address}; grpc_read_timeout 60s; grpc_send_timeout 60s; }}
  }}
}}
"""

HAPROXY = """
global
  maxconn 256
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend front
  bind 127.0.0.1:{port} proto h2
  default_backend back
backend back
  server one {address} proto h2
"""


class Proxy:
    """nginx or haproxy in front of a gRPC server: HTTP/2 on both sides, all in a folder of its own."""

    def __init__(self, kind: str, address: str, folder: Path):
        self.port = free_port((0,))
        self.address = f"127.0.0.1:{self.port}"
        config = folder / f"{kind}.conf"
        template = {"nginx": NGINX, "haproxy": HAPROXY}[kind]
        config.write_text(template.format(folder=folder, port=self.port, address=address))
        program = shutil.which(kind, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        assert program, f"{kind} is missing: run scripts/setup"
        command = {
            "nginx": [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)],
            "haproxy": [program, "-db", "-f", str(config)],
        }[kind]
        self.log = folder / f"{kind}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        with grpc.insecure_channel(self.address) as channel:
            try:
                grpc.channel_ready_future(channel).result(20)
            except grpc.FutureTimeoutError:
                self.close()
                raise AssertionError(f"{kind} does not answer: {self.log.read_text()[-2000:]}") from None

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def in_threads(count: int, body) -> list:
    """Runs `body(n)` in so many threads at once; their results, or the first error."""
    with futures.ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(body, n) for n in range(count)]]


