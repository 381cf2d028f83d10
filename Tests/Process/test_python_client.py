# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Another language's client: stubs that grpcio-tools makes from proto/, nothing of ours in between."""

import hashlib
import os
import subprocess
import sys
import uuid

import grpc
import pytest

from harness import EICAR, ROOT

STATUS_PROTO = """
syntax = "proto3";
package memq.test;
message Any { string type_url = 1; bytes value = 2; }
message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
"""


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The generated modules."""
    out = tmp_path_factory.mktemp("stubs")
    (out / "status.proto").write_text(STATUS_PROTO)
    sources = sorted((ROOT / "proto/memq/v1").glob("*.proto"))
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"-I{out}",
            f"--python_out={out}", f"--grpc_python_out={out}", *sources, out / "status.proto",
        ],
        check=True,
    )
    sys.path.insert(0, str(out))
    import importlib

    class Api:
        def __getattr__(self, name):
            return importlib.import_module(f"memq.v1.{name}")

    yield Api()
    sys.path.remove(str(out))


@pytest.fixture(scope="module")
def channel(shared_server):
    with grpc.insecure_channel(shared_server.address) as opened:
        yield opened


def detail(api, error):
    """The ErrorDetail of a failed call."""
    import status_pb2

    for name, value in error.trailing_metadata():
        if name == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            assert status.details[0].type_url.endswith("memq.v1.ErrorDetail")
            return api.errors_pb2.ErrorDetail.FromString(status.details[0].value)
    raise AssertionError(f"no details in {error}")


def test_records_go_in_and_come_out(api, channel, shared_server):
    shared_server.cli("topic", "create", "python", "--partitions", "2")
    ingest = api.ingest_pb2_grpc.IngestServiceStub(channel)
    producer = ingest.InitProducer(api.metadata_pb2.InitProducerRequest())

    def request(number, sequence):
        return api.ingest_pb2.ProduceRequest(
            request_id=number,
            topic="python",
            partition=1,
            producer_id=producer.producer_id,
            producer_epoch=producer.producer_epoch,
            base_sequence=sequence,
            records=[
                api.types_pb2.Record(
                    key=b"k%d" % (sequence + n),
                    value=b"v%d" % (sequence + n),
                    headers=[api.types_pb2.Header(name="h", value=b"1")],
                )
                for n in range(10)
            ],
        )

    answers = list(ingest.Produce(request(n, n * 10) for n in range(5)))
    assert sorted((a.request_id, a.base_offset) for a in answers) == [(n, n * 10) for n in range(5)]
    assert not any(a.HasField("error") or a.duplicate for a in answers)
    # The same sequence again, as after a lost answer: recognised, not appended.
    (again,) = ingest.Produce(iter([request(9, 40)]))
    assert again.duplicate and again.base_offset == 40

    records = []
    position = 0
    while position < 50:
        for part in ingest.Fetch(
            api.ingest_pb2.FetchRequest(
                topic="python",
                positions=[api.ingest_pb2.FetchPosition(partition=1, offset=position)],
                wait_max_ms=1000,
                format=api.ingest_pb2.FETCH_FORMAT_RECORDS,
            )
        ):
            records += part.records
            position = part.next_offset
    assert [r.offset for r in records] == list(range(50))
    assert [r.value for r in records] == [b"v%d" % n for n in range(50)]
    assert records[7].key == b"k7" and records[7].headers[0].name == "h"


def test_errors_are_typed(api, channel, shared_server):
    metadata = api.metadata_pb2_grpc.MetadataServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        metadata.DescribeTopic(api.metadata_pb2.DescribeTopicRequest(name="nowhere"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    reason = detail(api, caught.value)
    assert reason.code == api.errors_pb2.ERROR_CODE_TOPIC_NOT_FOUND
    assert reason.subject == "nowhere" and not reason.retriable

    ingest = api.ingest_pb2_grpc.IngestServiceStub(channel)
    shared_server.cli("topic", "create", "crc")
    # A batch of garbage and one whose checksum is wrong: refused one by one, the stream goes on.
    requests = [
        api.ingest_pb2.ProduceRequest(request_id=1, topic="crc", batch=os.urandom(500)),
        api.ingest_pb2.ProduceRequest(request_id=2, topic="crc", batch=b"\0" * 61),
        api.ingest_pb2.ProduceRequest(
            request_id=3, topic="crc", records=[api.types_pb2.Record(value=b"fine")]
        ),
        api.ingest_pb2.ProduceRequest(
            request_id=4, topic="crc", partition=7, records=[api.types_pb2.Record(value=b"x")]
        ),
    ]
    answers = {a.request_id: a for a in ingest.Produce(iter(requests))}
    invalid = {
        api.errors_pb2.ERROR_CODE_RECORD_BATCH_INVALID,
        api.errors_pb2.ERROR_CODE_RECORD_BATCH_CHECKSUM_MISMATCH,
    }
    assert answers[1].error.code in invalid and answers[2].error.code in invalid
    assert answers[3].base_offset == 0 and not answers[3].HasField("error")
    assert answers[4].error.code == api.errors_pb2.ERROR_CODE_PARTITION_NOT_FOUND
    assert shared_server.values("crc") == [b"fine"]


def test_a_flipped_byte_in_a_batch_is_refused(api, channel, shared_server):
    shared_server.cli("topic", "create", "flip")
    ingest = api.ingest_pb2_grpc.IngestServiceStub(channel)
    record = api.types_pb2.Record(value=b"some value")
    request = api.ingest_pb2.ProduceRequest(request_id=1, topic="flip", records=[record])
    list(ingest.Produce(iter([request])))
    (part,) = ingest.Fetch(
        api.ingest_pb2.FetchRequest(
            topic="flip",
            positions=[api.ingest_pb2.FetchPosition(partition=0, offset=0)],
            format=api.ingest_pb2.FETCH_FORMAT_BATCHES,
        )
    )
    batch = bytearray(part.batches)
    batch[-1] ^= 1
    (answer,) = ingest.Produce(
        iter([api.ingest_pb2.ProduceRequest(request_id=2, topic="flip", batch=bytes(batch))])
    )
    assert answer.error.code == api.errors_pb2.ERROR_CODE_RECORD_BATCH_CHECKSUM_MISMATCH
    (answer,) = ingest.Produce(
        iter([api.ingest_pb2.ProduceRequest(request_id=3, topic="flip", batch=part.batches)])
    )
    assert answer.base_offset == 1


def put_requests(api, name, data, upload, begin=0, finish=True, digest=None, size=None, topic="pyfiles"):
    yield api.file_pb2.PutRequest(
        start=api.file_pb2.PutStart(
            topic=topic, name=name, upload_id=upload, size=len(data) if size is None else size
        )
    )
    for at in range(begin, len(data), 1 << 18):
        chunk = data[at : at + (1 << 18)]
        yield api.file_pb2.PutRequest(
            chunk_header=api.file_pb2.PutChunk(offset=at, crc32c=crc32c(chunk)), chunk=chunk
        )
    if finish:
        sha = hashlib.sha256(data).digest() if digest is None else digest
        yield api.file_pb2.PutRequest(finish=api.file_pb2.PutFinish(sha256=sha))


TABLE = []
for number in range(256):
    for _ in range(8):
        number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
    TABLE.append(number)


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def test_files_go_in_and_come_out(api, channel, shared_server):
    shared_server.cli("topic", "create", "pyfiles", "--scan", "gate")
    files = api.file_pb2_grpc.FileServiceStub(channel)
    data = os.urandom(1_500_000)
    answers = list(files.Put(put_requests(api, "a/b", data, uuid.uuid4().bytes)))
    assert answers[0].WhichOneof("part") == "begin_at" and answers[0].begin_at == 0
    assert answers[-1].published.sha256 == hashlib.sha256(data).digest()
    got = b"".join(p.chunk for p in files.Get(api.file_pb2.GetRequest(topic="pyfiles", name="a/b")))
    assert got == data
    part = files.Get(
        api.file_pb2.GetRequest(topic="pyfiles", name="a/b", offset=1_000_001, length=70_000)
    )
    assert b"".join(p.chunk for p in part) == data[1_000_001:1_070_001]


@pytest.mark.parametrize(
    "change, code",
    [
        ({"digest": b"\1" * 32}, "DIGEST_MISMATCH"),
        ({"size": 10_000_000}, "FILE_INCOMPLETE"),
        ({"size": 10}, "FILE_TOO_LARGE"),
        ({"topic": "nowhere"}, "TOPIC_NOT_FOUND"),
    ],
    ids=["digest", "half-a-file", "more-than-declared", "topic"],
)
def test_a_bad_put_is_refused_and_nothing_is_visible(api, channel, shared_server, change, code):
    shared_server.cli("topic", "create", "badputs", check=False)
    files = api.file_pb2_grpc.FileServiceStub(channel)
    arguments = {"topic": "badputs", **change}
    for size in (100, 600_000):
        requests = put_requests(api, f"bad-{code}", os.urandom(size), uuid.uuid4().bytes, **arguments)
        with pytest.raises(grpc.RpcError) as caught:
            list(files.Put(requests))
        assert detail(api, caught.value).code == getattr(api.errors_pb2, f"ERROR_CODE_{code}")
    assert shared_server.json("file", "list", "badputs") == []


def test_a_put_is_resumed_where_it_was_acknowledged(api, channel, shared_server):
    shared_server.cli("topic", "create", "resumed")
    files = api.file_pb2_grpc.FileServiceStub(channel)
    data = os.urandom(1 << 20) * 40
    upload = uuid.uuid4().bytes

    durable = 0

    def half():
        yield from put_requests(
            api, "r", data[: 36 << 20], upload, finish=False, size=len(data), topic="resumed"
        )
        # The stream stays open until something is durable, then breaks without a finish.
        import threading

        broken.wait(60)

    import threading

    broken = threading.Event()
    call = files.Put(half())
    for answer in call:
        if answer.WhichOneof("part") == "durable_below" and answer.durable_below > 0:
            durable = answer.durable_below
            break
    call.cancel()
    broken.set()
    assert durable > 0

    import queue
    import time

    for _ in range(100):
        sent: queue.Queue = queue.Queue()
        start = next(put_requests(api, "r", data, upload, topic="resumed"))
        sent.put(start)
        resumed = files.Put(iter(sent.get, None))
        try:
            begin = next(resumed).begin_at
            break
        except grpc.RpcError as error:
            sent.put(None)
            # The server may still be taking leave of the broken stream.
            assert detail(api, error).code == api.errors_pb2.ERROR_CODE_UPLOAD_IN_PROGRESS
            time.sleep(0.1)
    assert begin >= durable
    rest = put_requests(api, "r", data, upload, begin=begin, topic="resumed")
    next(rest)
    for request in rest:
        sent.put(request)
    sent.put(None)
    answers = list(resumed)
    assert answers[-1].published.sha256 == hashlib.sha256(data).digest()


def test_an_infected_file_ends_with_its_signature(api, channel, shared_server):
    shared_server.cli("topic", "create", "pygate", "--scan", "gate")
    files = api.file_pb2_grpc.FileServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        list(files.Put(put_requests(api, "virus", EICAR, uuid.uuid4().bytes, topic="pygate")))
    reason = detail(api, caught.value)
    assert reason.code == api.errors_pb2.ERROR_CODE_INFECTED and "eicar" in reason.message.lower()
    # Records of a gated topic are judged before they are appended.
    ingest = api.ingest_pb2_grpc.IngestServiceStub(channel)
    request = api.ingest_pb2.ProduceRequest(
        request_id=1, topic="pygate", records=[api.types_pb2.Record(value=EICAR)]
    )
    (answer,) = ingest.Produce(iter([request]))
    assert answer.error.code == api.errors_pb2.ERROR_CODE_INFECTED


def test_a_deadline_ends_a_long_poll(api, channel, shared_server):
    shared_server.cli("topic", "create", "quiet")
    ingest = api.ingest_pb2_grpc.IngestServiceStub(channel)
    request = api.ingest_pb2.FetchRequest(
        topic="quiet",
        positions=[api.ingest_pb2.FetchPosition(partition=0, offset=0)],
        wait_max_ms=30_000,
    )
    with pytest.raises(grpc.RpcError) as caught:
        list(ingest.Fetch(request, timeout=0.5))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/memq.v1.IngestService/NoSuchCall")(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
