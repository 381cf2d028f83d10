// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQReplication
import MemQRuntime
import SwiftProtobuf

/// Where a leader's ISR proposals go.
protocol MetadataProposals: Sendable {
  /// `completion` is called exactly once, from any thread.
  func propose(
    _ proposal: ISRProposal, of partition: TopicPartition, replicas: [ReplicaID],
    completion: @escaping @Sendable (ISRAnswer) -> Void)
}

/// Proposals by RPC to the cluster's metadata.
struct ClusterProposals: MetadataProposals {
  let cluster: ClusterSession
  let timeout: Duration

  func propose(
    _ proposal: ISRProposal, of partition: TopicPartition, replicas: [ReplicaID],
    completion: @escaping @Sendable (ISRAnswer) -> Void
  ) {
    let request = Memq_V1_AlterPartitionRequest.with {
      $0.topicPartition = partition.wire
      $0.nodeID = proposal.leader.id.node.rawValue
      $0.nodeEpoch = proposal.leader.nodeEpoch.rawValue
      $0.leaderEpoch = proposal.leaderEpoch.rawValue
      $0.partitionEpoch = proposal.base.rawValue
      $0.isr = proposal.isr.map(\.id.node.rawValue)
      $0.isrNodeEpochs = proposal.isr.map(\.nodeEpoch.rawValue)
    }
    Task {
      do throws(MemQError) {
        let answer = try await self.cluster.metadata.call(
          MetadataMethods.alterPartition, request, timeout: self.timeout)
        let isr = answer.partition.isr
        completion(
          .accepted(
            PartitionEpoch(answer.partition.partitionEpoch),
            isr: replicas.filter { isr.contains($0.node.rawValue) }.sorted()))
      } catch {
        completion(Self.isDefinite(error.code) ? .refused : .unknown)
      }
    }
  }

  /// Refused by the rules, so certainly not applied; everything else may have been.
  private static func isDefinite(_ code: ErrorCode) -> Bool {
    switch code {
    case .partitionNotFound, .staleNodeEpoch, .fencedLeaderEpoch, .unknownLeaderEpoch,
      .revisionConflict, .invalidArgument:
      true
    default: false
    }
  }
}
