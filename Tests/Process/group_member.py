# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A member of a consumer group in another language: the five calls of docs/protocols/groups.md and nothing of ours."""

import threading
import uuid

import grpc


class GroupMember:
    """Reads one topic until it is told to stop; collects (partition, offset, value). One thread, one call at a time."""

    def __init__(self, api, address: str, group: str, topic: str):
        self.api, self.group, self.topic = api, group, topic
        self.channel = grpc.insecure_channel(address)
        self.ingest = api.ingest_pb2_grpc.IngestServiceStub(self.channel)
        self.read: list[tuple[int, int, bytes]] = []
        # Where each partition goes on.
        self.positions: dict[int, int] = {}
        # Leader epoch of the record before it, where that is known.
        self.epochs: dict[int, int] = {}
        # Partitions whose log lost what was read, and where they went on.
        self.truncations: list[tuple[int, int]] = []
        self.joins = self.number = 0
        self.failure: BaseException | None = None
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(60)
        assert not self.thread.is_alive() and self.failure is None, self.failure
        self.channel.close()

    def _run(self) -> None:
        try:
            while not self.stopping.is_set():
                try:
                    self._membership()
                except grpc.RpcError as error:
                    # The server is away, or has given this member up: again, as a new one.
                    if error.code() not in (
                        grpc.StatusCode.UNAVAILABLE,
                        grpc.StatusCode.DEADLINE_EXCEEDED,
                        grpc.StatusCode.CANCELLED,
                        grpc.StatusCode.ABORTED,
                    ):
                        raise
                    self.positions = {}
                    self.stopping.wait(0.2)
        except BaseException as error:  # noqa: BLE001: told by stop().
            self.failure = error

    def _membership(self) -> None:
        pb = self.api.metadata_pb2
        place = self.ingest.JoinGroup(
            pb.JoinGroupRequest(
                group=self.group,
                topics=[self.topic],
                client_id="python",
                member_id=str(uuid.uuid4()),
                session_timeout_ms=5000,
            ),
            timeout=20,
        )
        self.joins += 1
        self.member, self.epoch, self.topic_id = place.member_id, place.member_epoch, None
        self._follow(place.assigned)
        while not self.stopping.is_set():
            answer = self.ingest.HeartbeatGroup(
                pb.HeartbeatGroupRequest(
                    group=self.group,
                    member_id=self.member,
                    member_epoch=self.epoch,
                    number=self._next(),
                    reading=pb.TopicPartitions(partitions=[self._at(n) for n in self.positions]),
                    wait_max_ms=0 if self.positions else 500,
                ),
                timeout=20,
            )
            if answer.HasField("assigned") and answer.member_epoch >= self.epoch:
                self.epoch = answer.member_epoch
                self._follow(answer.assigned.partitions)
            if self.positions:
                self._read()
        self.ingest.LeaveGroup(
            pb.LeaveGroupRequest(group=self.group, member_id=self.member, member_epoch=self.epoch), timeout=20
        )

    def _next(self) -> int:
        self.number += 1
        return self.number

    def _at(self, partition: int):
        return self.api.types_pb2.TopicPartition(topic_id=self.topic_id, partition=partition)

    def _follow(self, assigned) -> None:
        """All that was read is committed by now: what goes may go."""
        if assigned:
            self.topic_id = assigned[0].topic_id
        wanted = {one.partition for one in assigned}
        self.positions = {n: at for n, at in self.positions.items() if n in wanted}
        new = wanted - set(self.positions)
        if not new:
            return
        offsets = self.ingest.FetchOffsets(
            self.api.metadata_pb2.FetchOffsetsRequest(group=self.group, partitions=[self._at(n) for n in new]),
            timeout=20,
        ).offsets
        committed = {one.topic_partition.partition: one.offset for one in offsets}
        self.epochs = {n: at for n, at in self.epochs.items() if n not in new}
        self.epochs.update(
            {one.topic_partition.partition: one.leader_epoch for one in offsets if one.HasField("leader_epoch")}
        )
        self.positions.update({n: committed.get(n, 0) for n in new})

    def _read(self) -> None:
        pb = self.api.ingest_pb2
        parts = self.ingest.Fetch(
            pb.FetchRequest(
                topic=self.topic,
                positions=[
                    pb.FetchPosition(partition=n, offset=at, last_epoch=self.epochs.get(n))
                    for n, at in self.positions.items()
                ],
                wait_max_ms=100,
                max_bytes=65536,
                format=pb.FETCH_FORMAT_RECORDS,
            ),
            timeout=20,
        )
        changed = {}
        epochs = {}
        for part in parts:
            if part.error.code == self.api.errors_pb2.ERROR_CODE_LOG_TRUNCATED:
                self.truncations.append((part.partition, part.next_offset))
                changed[part.partition] = part.next_offset
                epochs[part.partition] = part.last_epoch if part.HasField("last_epoch") else None
                continue
            for record in part.records:
                if record.offset >= self.positions[part.partition]:
                    self.read.append((part.partition, record.offset, record.value))
            if part.next_offset > self.positions[part.partition]:
                changed[part.partition] = part.next_offset
                epochs[part.partition] = part.last_epoch if part.HasField("last_epoch") else None
        if not changed:
            return
        self.ingest.CommitOffsets(
            self.api.metadata_pb2.CommitOffsetsRequest(
                group=self.group,
                member_id=self.member,
                member_epoch=self.epoch,
                offsets=[
                    self.api.metadata_pb2.GroupOffset(topic_partition=self._at(n), offset=at, leader_epoch=epochs[n])
                    for n, at in changed.items()
                ],
            ),
            timeout=20,
        )
        self.positions.update(changed)
        self.epochs.update(epochs)
