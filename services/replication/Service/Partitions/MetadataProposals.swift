// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
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
  /// Has the cluster know that records below are gone. The answers are in the order of `starts`: nil where it does.
  func raise(
    _ starts: [LogStartRaise], of node: NodeID, _ nodeEpoch: NodeEpoch
  ) async -> [MemQError?]
  /// Has the cluster know which replicas of the node are damaged, or whole again. The answers are in the order of `reports`: nil where
  /// it does.
  func report(
    _ reports: [DamageReport], of node: NodeID, _ nodeEpoch: NodeEpoch
  ) async -> [MemQError?]
  /// Has partitions get other leader epochs. The answers are in the order of `refusals`: nil where one holds.
  func refuse(
    _ refusals: [LeadershipRefusal], of node: NodeID, _ nodeEpoch: NodeEpoch
  ) async -> [MemQError?]
  /// Says where logs of replicas end that nobody leads.
  func state(
    _ logEnds: [LogEndStatement], of node: NodeID, _ nodeEpoch: NodeEpoch
  ) async throws(MemQError)
}

/// A leadership whose epoch the replica's log already holds.
struct LeadershipRefusal: Hashable, Sendable {
  /// One request's, as metadata takes them.
  static let perRequestMax = 1_000

  var partition: TopicPartition
  var leaderEpoch: LeaderEpoch
  var logEpoch: LeaderEpoch
}

/// What a node says of one of its replicas.
struct DamageReport: Hashable, Sendable {
  /// One request's, as metadata takes them.
  static let perRequestMax = 1_000

  var partition: TopicPartition
  var volume: VolumeID
  /// Records below are whole; nil: all are.
  var damagedFrom: Offset?
}

/// A leader's word that its partition's log begins later now.
struct LogStartRaise: Hashable, Sendable {
  /// One request's, as metadata takes them.
  static let perRequestMax = 1_000

  var partition: TopicPartition
  var leaderEpoch: LeaderEpoch
  var offset: Offset
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
            isr: replicas.filter { isr.contains($0.node.rawValue) }.sorted(),
            minISR: Int(answer.minInsyncReplicas)))
      } catch {
        completion(Self.isDefinite(error.code) ? .refused : .unknown)
      }
    }
  }

  func raise(
    _ starts: [LogStartRaise], of node: NodeID, _ nodeEpoch: NodeEpoch
  ) async -> [MemQError?] {
    let request = Memq_V1_RaiseLogStartsRequest.with {
      $0.nodeID = node.rawValue
      $0.nodeEpoch = nodeEpoch.rawValue
      $0.logStarts = starts.map { start in
        .with {
          $0.topicPartition = start.partition.wire
          $0.leaderEpoch = start.leaderEpoch.rawValue
          $0.offset = start.offset.rawValue
        }
      }
    }
    return await self.errors(of: starts.count) { () throws(MemQError) in
      try await self.cluster.metadata.call(
        MetadataMethods.raiseLogStarts, request, timeout: self.timeout
      ).errors
    }
  }

  func report(
    _ reports: [DamageReport], of node: NodeID, _ nodeEpoch: NodeEpoch
  ) async -> [MemQError?] {
    let request = Memq_V1_ReportDamageRequest.with {
      $0.nodeID = node.rawValue
      $0.nodeEpoch = nodeEpoch.rawValue
      $0.replicas = reports.map { report in
        .with {
          $0.topicPartition = report.partition.wire
          $0.volumeID = report.volume.wire
          $0.damaged = report.damagedFrom != nil
          $0.fromOffset = report.damagedFrom?.rawValue ?? 0
        }
      }
    }
    return await self.errors(of: reports.count) { () throws(MemQError) in
      try await self.cluster.metadata.call(
        MetadataMethods.reportDamage, request, timeout: self.timeout
      ).errors
    }
  }

  /// Which of these topics, at most 1,000, were deleted.
  func deletedTopics(among topics: [TopicID]) async throws(MemQError) -> Set<TopicID> {
    let request = Memq_V1_FindDeletedTopicsRequest.with { $0.topicIds = topics.map(\.wire) }
    let answer = try await self.cluster.metadata.call(
      MetadataMethods.findDeletedTopics, request, timeout: self.timeout)
    var deleted: Set<TopicID> = []
    for id in answer.deleted { deleted.insert(try TopicID(wire: id, "deleted")) }
    return deleted
  }

  func refuse(
    _ refusals: [LeadershipRefusal], of node: NodeID, _ nodeEpoch: NodeEpoch
  ) async -> [MemQError?] {
    let request = Memq_V1_RefuseLeadershipRequest.with {
      $0.nodeID = node.rawValue
      $0.nodeEpoch = nodeEpoch.rawValue
      $0.refused = refusals.map { refusal in
        .with {
          $0.topicPartition = refusal.partition.wire
          $0.leaderEpoch = refusal.leaderEpoch.rawValue
          $0.logEpoch = refusal.logEpoch.rawValue
        }
      }
    }
    return await self.errors(of: refusals.count) { () throws(MemQError) in
      try await self.cluster.metadata.call(
        MetadataMethods.refuseLeadership, request, timeout: self.timeout
      ).errors
    }
  }

  func state(
    _ logEnds: [LogEndStatement], of node: NodeID, _ nodeEpoch: NodeEpoch
  ) async throws(MemQError) {
    let request = Memq_V1_ReportLogEndsRequest.with {
      $0.nodeID = node.rawValue
      $0.nodeEpoch = nodeEpoch.rawValue
      $0.replicas = logEnds.map { statement in
        .with {
          $0.topicPartition = statement.partition.wire
          $0.volumeID = statement.volume.wire
          $0.leaderEpoch = statement.leaderEpoch.rawValue
          $0.lastEpoch = statement.log.lastEpoch.rawValue
          $0.endOffset = statement.log.end.rawValue
        }
      }
    }
    _ = try await self.cluster.metadata.call(
      MetadataMethods.reportLogEnds, request, timeout: self.timeout)
  }

  /// What metadata answers for each of `count` items; the call's own error for all of them where it fails.
  private func errors(
    of count: Int, _ ask: () async throws(MemQError) -> [Memq_V1_ErrorDetail]
  ) async -> [MemQError?] {
    do throws(MemQError) {
      let errors = try await ask()
      guard errors.count == count else {
        throw MemQError(
          .internalError, "metadata did not answer for each item", limit: Int64(count),
          actual: Int64(errors.count))
      }
      return errors.map { $0.code == .unspecified ? nil : MemQError($0) }
    } catch {
      return Array(repeating: error, count: count)
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
