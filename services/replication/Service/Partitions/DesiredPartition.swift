// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQReplication

/// What the cluster image wants of this node for one partition.
struct DesiredPartition: Hashable, Sendable {
  let id: TopicPartition
  /// `topic/partition`, for people.
  var name: String
  var member: ReplicaMember
  var assignment: PartitionAssignment
  var uploadedOffset: Offset
  /// Of the last record uploaded, where an unclean election has ever been; `.none`: nothing that was uploaded can be another history.
  var uploadedEpoch: LeaderEpoch
  /// Records below are gone on every tier.
  var logStart: Offset
  var messageBytesMax: Int
  var localRetentionBytes: Int64?
  var localRetention: Duration?
  var hasObjectTier: Bool
  var retentionBytes: Int64?
  var retention: Duration?

  /// Whether this replica's word counts for anything: it is in sync, may be elected, or leads. Otherwise its log may be given up.
  var isTrusted: Bool

  /// Nobody leads, and metadata may have to elect by where logs end.
  var isAskedForLogEnd: Bool

  /// Metadata knows this replica as damaged from here on.
  var damagedFrom: Offset?
  /// Another in-sync replica lives and is whole: it takes over what this one can't give.
  var hasSoundPeer: Bool

  /// Where a replica without records begins.
  var firstOffset: Offset { Swift.max(self.uploadedOffset, self.logStart) }

  /// Whether a leader may go on with this log. Else what is here ends below what is final, or is another history than what was uploaded
  /// (it was elected without all that was committed), and what comes must not look as if it were that.
  func mayLead(with log: ReplicaLog) -> Bool {
    log.end >= self.firstOffset
      && log.continues(uploadedBelow: self.uploadedOffset, lastEpoch: self.uploadedEpoch)
  }

  /// Nil when the partition isn't placed on this node's volumes, or the image knows another life of the node.
  init?(
    _ partition: PartitionImage, _ topic: TopicImage, in image: ClusterImage, node: NodeID,
    epoch: NodeEpoch, volumes: [VolumeID]
  ) {
    guard let own = partition.replicas.first(where: { $0.node == node }),
      volumes.contains(own.volume)
    else { return nil }
    self.id = partition.id
    self.name = "\(topic.name)/\(partition.id.partition)"
    self.member = ReplicaMember(own, epoch)
    self.uploadedOffset = partition.uploadedOffset
    self.uploadedEpoch = partition.historyEpoch > .zero ? partition.uploadedEpoch : .none
    self.logStart = partition.logStart
    self.messageBytesMax = topic.settings.messageBytesMax
    self.localRetentionBytes = topic.settings.localRetentionBytes
    self.localRetention = topic.settings.localRetention
    self.hasObjectTier = topic.settings.hasObjectTier
    self.retentionBytes = topic.settings.retentionBytes
    self.retention = topic.settings.retention
    self.damagedFrom = partition.damaged.first { $0.node == node }?.from
    self.hasSoundPeer = partition.replicas.contains { replica in
      guard replica.node != node, partition.inSync.contains(replica.node),
        !partition.isDamaged(replica.node), let peer = image.nodes[replica.node]
      else { return false }
      return peer.state.isLive && peer.volume(replica.volume)?.state != .failed
    }
    self.isTrusted =
      partition.inSync.contains(node) || partition.eligible.contains(node)
      || partition.leader == node
    self.isAskedForLogEnd =
      partition.leader == nil && partition.replicas.count > 1 && !partition.isDamaged(node)
      && (self.isTrusted || topic.settings.uncleanLeaderElection)
    let replicas = partition.replicas
    func replica(_ node: NodeID) -> ReplicaID? { replicas.first { $0.node == node } }
    self.assignment = PartitionAssignment(
      leaderEpoch: partition.leaderEpoch, partitionEpoch: partition.epoch,
      leader: partition.leader.flatMap(replica),
      replicas: replicas.map { replica in
        ReplicaMember(
          replica, replica.node == node ? epoch : image.nodes[replica.node]?.epoch ?? .zero)
      },
      isr: partition.inSync.compactMap(replica), minISR: topic.settings.minInSyncReplicas)
  }
}
