// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// What a node says of one of its replicas.
public struct ReplicaReport: Hashable, Sendable {
  public var partition: TopicPartition
  public var volume: VolumeID
  /// Damaged: records below are whole. Nil: the replica is whole, filled anew or read well.
  public var damagedFrom: Offset?

  public init(_ partition: TopicPartition, on volume: VolumeID, damagedFrom: Offset?) {
    self.partition = partition
    self.volume = volume
    self.damagedFrom = damagedFrom
  }
}

extension MetadataState {
  /// Takes over where a node's volumes stand; what is not named stays as it was. A volume that failed stays failed until the
  /// node registers again, so reports may come twice and in any order. Reconciling comes after it.
  ///
  /// - Throws: `.nodeUnknown`, `.nodeFenced`; `.invalidArgument` for a volume the node did not register.
  public func reportVolumes(
    of id: NodeID, _ epoch: NodeEpoch, _ volumes: [VolumeImage]
  ) throws(MemQError) -> Plan<[VolumeImage]> {
    let node = try self.session(id, epoch)
    var next = node.value
    var failed: [VolumeImage] = []
    for volume in volumes {
      guard let at = next.volumes.firstIndex(where: { $0.id == volume.id }) else {
        throw MemQError(
          .invalidArgument, "the node did not register this volume", subject: "\(volume.id)")
      }
      guard next.volumes[at].state != .failed else { continue }
      next.volumes[at] = volume
      if volume.state == .failed { failed.append(volume) }
    }
    guard next != node.value else { return Plan(outcome: []) }
    var transaction = Transaction()
    transaction.replace(.node(id), node, with: next)
    return Plan([transaction], outcome: failed)
  }

  /// Takes over what a node says of one of its replicas. Asked again it changes nothing. Reconciling comes after it.
  ///
  /// - Returns: whether it is news.
  /// - Throws: `.nodeUnknown`, `.nodeFenced`, `.partitionNotFound`, `.topicNotFound`, `.topicDeleted`; `.invalidArgument` when
  ///   the node has no replica of the partition on that volume.
  public func reportReplica(
    _ report: ReplicaReport, of id: NodeID, _ epoch: NodeEpoch
  ) throws(MemQError) -> Plan<Bool> {
    _ = try self.session(id, epoch)
    let known = try self.partition(report.partition)
    guard known.value.replicas.contains(ReplicaID(id, report.volume)) else {
      throw MemQError(
        .invalidArgument, "node \(id) has no replica of the partition on volume \(report.volume)",
        subject: "\(report.partition)")
    }
    var next = known.value
    let from = report.damagedFrom.map { Swift.max($0, .zero) }
    if let at = next.damaged.firstIndex(where: { $0.node == id }) {
      if let from {
        next.damaged[at].from = Swift.min(next.damaged[at].from, from)
      } else {
        next.damaged.remove(at: at)
      }
    } else if let from {
      next.damaged.append(DamagedReplica(id, from: from))
    }
    guard next != known.value else { return Plan(outcome: false) }
    // An ISR that was proposed before this rests on less than is known now.
    next.epoch = next.epoch.next
    var transaction = Transaction()
    transaction.replace(.partition(next.id), known, with: next)
    return Plan([transaction], outcome: true)
  }
}
