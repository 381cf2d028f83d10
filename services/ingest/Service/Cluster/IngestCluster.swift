// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime

/// What ingest needs of the cluster: the image and ways to the other services. Tests bring their own.
protocol IngestCluster: Sendable {
  var nodeID: NodeID { get }
  var image: ClusterImage { get }
  var metadata: any RPCChannel { get }
  func channel(to node: NodeID, lane: Lane) throws(MemQError) -> any RPCChannel
  func channel(_ service: ServiceKind, lane: Lane) throws(MemQError) -> any RPCChannel
  func waitForImage(
    timeout: Duration, _ until: @Sendable (ClusterImage) -> Bool
  ) async throws(MemQError) -> ClusterImage
}

extension ClusterSession: IngestCluster {}

extension TopicImage {
  /// The topic's partition of this number, as a request names it.
  ///
  /// - Throws: `.partitionNotFound`.
  func partition(_ number: Int32) throws(MemQError) -> TopicPartition {
    guard number >= 0, Int(number) < self.partitionCount else {
      throw MemQError(
        .partitionNotFound, "the topic has fewer partitions", subject: "\(self.name)/\(number)",
        limit: Int64(self.partitionCount) - 1, actual: Int64(number))
    }
    return TopicPartition(self.id, PartitionIndex(number))
  }
}

extension ClusterImage {
  /// The partition and the node that leads it.
  ///
  /// - Throws: `.topicDeleted` when the partition is gone, `.leaderNotAvailable` while nobody leads, `.volumeFailed` when that is because
  ///   the volume of an in-sync replica failed.
  func leader(of partition: TopicPartition) throws(MemQError) -> (PartitionImage, NodeID) {
    guard let known = self.partitions[partition] else {
      guard self.topics[partition.topic] != nil else {
        throw MemQError(.topicDeleted, "the topic was deleted meanwhile", subject: "\(partition)")
      }
      throw MemQError(
        .leaderNotAvailable, "the partition is not assigned yet", subject: "\(partition)")
    }
    guard let leader = known.leader else {
      for replica in known.replicas where known.inSync.contains(replica.node) {
        guard let volume = self.nodes[replica.node]?.volume(replica.volume),
          volume.state == .failed
        else { continue }
        throw MemQError(
          .volumeFailed, "nobody else can lead the partition: \(volume.problem)",
          subject: "\(partition) on node \(replica.node)")
      }
      throw MemQError(.leaderNotAvailable, "nobody leads the partition", subject: "\(partition)")
    }
    return (known, leader)
  }
}
