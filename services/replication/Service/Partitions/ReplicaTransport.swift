// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

/// Carries what replicas say to each other. A partition's owner calls it on its own loop and it must not block; answers
/// come back as events for the partition.
protocol ReplicaTransport: Sendable {
  func send(_ request: OpenRequest, of partition: TopicPartition, to leader: ReplicaID)
  func send(_ answer: OpenAnswer, of partition: TopicPartition)
  func send(_ position: FollowerPosition, of partition: TopicPartition, to leader: ReplicaID)
  /// From here on batches of the partition go to this follower, as `answer` accepted it.
  func startPushing(
    _ partition: TopicPartition, to follower: ReplicaID, _ open: OpenNumber, from: Offset)
  func stopPushing(_ partition: TopicPartition, to follower: ReplicaID)
  /// The log or its high watermark moved: there may be something to push.
  func advanced(_ partition: TopicPartition, end: Offset, highWatermark: Offset)
}
