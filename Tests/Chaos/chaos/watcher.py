# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Asks the cluster again and again who leads and who is in sync; writes down each new leader epoch, tells the run the rest."""

from __future__ import annotations

import asyncio

import grpc

from .api import channel
from .client import options, run, split, tell
from .history import Writer

ASK_SECONDS = 0.3


async def main(stop: asyncio.Event, given) -> None:
    api = given.api
    history = Writer(given.history, kind="control", client="watcher")
    known: dict[str, int] = {}
    topics = sorted({split(partition)[0] for partition in given.partitions})
    server = 0
    while not stop.is_set():
        try:
            async with channel(given.servers[server % len(given.servers)]) as opened:
                stub = api.metadata_pb2_grpc.MetadataServiceStub(opened)
                while not stop.is_set():
                    rows = {}
                    cluster = await stub.DescribeCluster(api.metadata_pb2.DescribeClusterRequest(), timeout=3)
                    for topic in topics:
                        described = await stub.DescribeTopic(api.metadata_pb2.DescribeTopicRequest(name=topic), timeout=3)
                        for row in described.partitions:
                            name = f"{topic}/{row.topic_partition.partition}"
                            rows[name] = {"leader": row.leader, "epoch": row.leader_epoch, "isr": list(row.isr)}
                            if row.leader and known.get(name) != row.leader_epoch:
                                known[name] = row.leader_epoch
                                history.put(e="leader", p=name, epoch=row.leader_epoch, leader=row.leader)
                    tell(partitions=rows, nodes={
                        node.address: [node.node_id, api.types_pb2.NodeState.Name(node.state).removeprefix("NODE_STATE_").lower()]
                        for node in cluster.nodes
                    })
                    await asyncio.sleep(ASK_SECONDS)
        except (grpc.RpcError, asyncio.TimeoutError):
            server += 1
            await asyncio.sleep(0.2)
    history.close()


if __name__ == "__main__":
    run(main, options())
