# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A producer that speaks gRPC itself: one lane per partition, each with a stream, a producer id and an order of its own.

A lane that is idempotent has several batches in flight; when anything goes wrong it opens a new stream, at the other ingest, and sends
all that is not acknowledged again, in order and with the same sequences. One that is not has one batch in flight, and either sends
it again (`--retry always`) or leaves it when it may have been appended (`--retry never`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

import grpc

from .api import channel
from .client import options, run, split, tell
from .history import Writer, value_of

IN_FLIGHT = 4
# From the ingest; then another one is tried.
ANSWER_SECONDS = 8.0
REQUEST_TIMEOUT_MS = 6_000
# Answers that say: nothing was appended.
REFUSALS = {
    "NOT_LEADER", "LEADER_NOT_AVAILABLE", "FENCED_LEADER_EPOCH", "UNKNOWN_LEADER_EPOCH", "NOT_ENOUGH_REPLICAS", "VOLUME_FULL",
    "VOLUME_FAILED", "RESOURCE_EXHAUSTED", "PARTITION_QUOTA_EXCEEDED", "SHUTTING_DOWN",
}
SEQUENCE = {"OUT_OF_ORDER_SEQUENCE", "SEQUENCE_STRADDLES", "UNKNOWN_PRODUCER", "PRODUCER_FENCED"}


class Operation:
    __slots__ = ("n", "count", "sequence", "is_uncertain", "was_sent")

    def __init__(self, n: int, count: int, sequence: int):
        self.n, self.count, self.sequence = n, count, sequence
        self.is_uncertain = self.was_sent = False


class Broken(Exception):
    """This stream is of no more use."""


class Lane:
    def __init__(self, given, history: Writer, number: int, partition: str):
        self.given, self.history, self.number, self.partition = given, history, number, partition
        self.topic, self.index = split(partition)
        self.next_n = self.next_sequence = self.server = 0
        self.producer_id = self.producer_epoch = 0
        self.unacked: deque[Operation] = deque()
        self.acked = 0
        self.refused_sequences = 0
        self.wait = 0.05

    @property
    def most(self) -> int:
        return IN_FLIGHT if self.given.idempotent else 1

    def request(self, op: Operation):
        api = self.given.api
        return api.ingest_pb2.ProduceRequest(
            request_id=op.n, topic=self.topic, partition=self.index,
            acks=api.replication_pb2.ACKS_ALL if self.given.acks == "all" else api.replication_pb2.ACKS_LEADER,
            producer_id=self.producer_id, producer_epoch=self.producer_epoch,
            base_sequence=op.sequence if self.given.idempotent else 0, timeout_ms=REQUEST_TIMEOUT_MS,
            records=[api.types_pb2.Record(value=value_of(self.number, op.n + k)) for k in range(op.count)],
        )

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set() or self.unacked:
            try:
                async with channel(self.given.servers[self.server % len(self.given.servers)]) as opened:
                    await self.session(opened, stop)
            # InvalidStateError: the call ended before the write.
            except (Broken, grpc.RpcError, asyncio.TimeoutError, asyncio.InvalidStateError):
                self.server += 1
                if not self.given.idempotent and self.given.retry == "never":
                    self.leave()
            await asyncio.sleep(self.wait)
            self.wait = min(2 * self.wait, 1.0)

    def leave(self) -> None:
        """Goes on without what was in flight: it may be there or not."""
        while self.unacked and self.unacked[0].was_sent:
            self.history.put(e="unknown", p=self.partition, n=self.unacked.popleft().n)

    async def session(self, opened, stop: asyncio.Event) -> None:
        api = self.given.api
        stub = api.ingest_pb2_grpc.IngestServiceStub(opened)
        if self.given.idempotent and not self.producer_id:
            answer = await stub.InitProducer(api.metadata_pb2.InitProducerRequest(), timeout=ANSWER_SECONDS)
            self.producer_id, self.producer_epoch = answer.producer_id, answer.producer_epoch
        call = stub.Produce()
        try:
            in_flight: dict[int, Operation] = {}
            # What is not acknowledged goes first, in its order; not more at a time than ever.
            again = deque(op for op in self.unacked if op.was_sent)
            due = time.monotonic()
            reading = None
            while not stop.is_set() or self.unacked:
                while len(in_flight) < self.most:
                    if again:
                        op = again.popleft()
                        self.history.put(e="again", p=self.partition, n=op.n)
                    elif not stop.is_set() and time.monotonic() >= due:
                        op = Operation(self.next_n, self.given.records, self.next_sequence)
                        self.next_n += op.count
                        self.next_sequence += op.count
                        self.unacked.append(op)
                        self.history.put(e="send", p=self.partition, n=op.n, c=op.count)
                        # Behind its pace it does not catch up in a burst.
                        due = max(due + self.given.interval, time.monotonic() - 1)
                    else:
                        break
                    op.was_sent = True
                    in_flight[op.n] = op
                    await asyncio.wait_for(call.write(self.request(op)), ANSWER_SECONDS)
                if not in_flight:
                    await asyncio.sleep(min(max(due - time.monotonic(), 0.001), 0.2))
                    continue
                if reading is None:
                    reading = asyncio.ensure_future(call.read())
                    asked = time.monotonic()
                can_send = len(in_flight) < self.most and not again and not stop.is_set()
                patience = max(due - time.monotonic(), 0) if can_send else ANSWER_SECONDS
                done, _ = await asyncio.wait({reading}, timeout=patience)
                if not done:
                    if time.monotonic() - asked > ANSWER_SECONDS:
                        raise Broken
                    continue
                answer, reading = reading.result(), None
                if answer is grpc.aio.EOF:
                    raise Broken
                await self.answered(stub, in_flight.pop(answer.request_id), answer)
        finally:
            call.cancel()
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def answered(self, stub, op: Operation, answer) -> None:
        code = self.given.api.code(answer.error) if answer.HasField("error") else None
        if code in (None, "DUPLICATE_SEQUENCE"):
            event = {"e": "ack", "p": self.partition, "n": op.n, "o": answer.base_offset if code is None else -1}
            if answer.duplicate or code:
                event["dup"] = 1
            self.history.put(**event)
            self.unacked.remove(op)
            self.acked += op.count
            self.wait = 0.05
            self.refused_sequences = 0
            return
        if code in SEQUENCE and self.given.idempotent and op is self.unacked[0]:
            await self.begin_anew(stub, op, code)
        elif not self.given.idempotent and code in REFUSALS and not op.is_uncertain:
            if self.given.retry == "never":
                self.history.put(e="refused", p=self.partition, n=op.n, why=code)
                self.unacked.remove(op)
                await asyncio.sleep(0.05)
                return
        else:
            self.history.put(e="error", p=self.partition, n=op.n, why=code, says=answer.error.message)
        op.is_uncertain |= code not in REFUSALS
        raise Broken

    async def begin_anew(self, stub, op: Operation, code: str) -> None:
        """The leader misses what came before: a new epoch with sequences from 0, as KIP-360 has it. A first time may pass: the
        one refused may still stand behind another of an earlier stream."""
        self.history.put(e="error", p=self.partition, n=op.n, why=code)
        self.refused_sequences += 1
        if self.refused_sequences < 4:
            return
        self.history.put(e="sequence", p=self.partition, n=op.n, why=code)
        api = self.given.api
        answer = await stub.InitProducer(
            api.metadata_pb2.InitProducerRequest(producer_id=self.producer_id), timeout=ANSWER_SECONDS
        )
        self.producer_id, self.producer_epoch = answer.producer_id, answer.producer_epoch
        self.next_sequence = 0
        for waiting in self.unacked:
            waiting.sequence = self.next_sequence
            self.next_sequence += waiting.count
        self.refused_sequences = 0


async def main(stop: asyncio.Event, given) -> None:
    history = Writer(
        given.history, kind="producer", producer=given.number, idempotent=given.idempotent, acks=given.acks, client="grpcio",
        retry=given.retry,
    )
    lanes = [Lane(given, history, given.number, partition) for partition in given.partitions]

    async def report():
        while True:
            tell(acked={lane.partition: lane.acked for lane in lanes})
            await asyncio.sleep(0.25)

    reporting = asyncio.ensure_future(report())
    await asyncio.gather(*(lane.run(stop) for lane in lanes))
    reporting.cancel()
    tell(acked={lane.partition: lane.acked for lane in lanes})
    history.close()


if __name__ == "__main__":
    given = options(
        ("--number", {"type": int, "required": True}), ("--acks", {"choices": ["all", "1"], "default": "all"}),
        ("--idempotent", {"action": "store_true"}), ("--retry", {"choices": ["always", "never"], "default": "always"}),
        ("--records", {"type": int, "default": 10}), ("--interval", {"type": float, "default": 0.1}),
    )
    run(main, given)
