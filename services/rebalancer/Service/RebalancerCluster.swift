// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime
import SwiftProtobuf

/// What the rebalancer needs of the cluster.
protocol RebalancerCluster: Sendable {
  var image: ClusterImage { get }

  /// Asks metadata to have another in-sync replica lead.
  func transferLeadership(
    of partition: TopicPartition, to node: NodeID, timeout: Duration
  ) async throws(MemQError)

  func waitForImage(
    timeout: Duration, _ until: @Sendable (ClusterImage) -> Bool
  ) async throws(MemQError) -> ClusterImage
}

extension ClusterSession: RebalancerCluster {
  func transferLeadership(
    of partition: TopicPartition, to node: NodeID, timeout: Duration
  ) async throws(MemQError) {
    _ = try await self.metadata.call(
      MetadataMethods.transferLeadership,
      .with {
        $0.topicPartition = partition.wire
        $0.toNode = node.rawValue
      }, timeout: timeout)
  }
}
