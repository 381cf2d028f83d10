// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// What becomes of a store's entries when they are brought back from a snapshot: all that the cluster has given out since must be below
/// what it gives out from now on.
///
///     cluster                       the next incarnation, under a new UUID: nodes refuse everything older
///     nodes                         no session; without replicas: forgotten. Their next epochs are above those of before
///     partitions                    led by nobody; leader and partition epochs above those of before
///     upload groups                 free; lease epochs above those of before
///     numbers, producer epochs      above those of before
///     everything else               as it was
public struct Restoration: Sendable {
  /// More elections, registrations and leases than happen between a snapshot and the loss of its store.
  static let epochStep: Int64 = 1 << 20
  /// More numbers than are given out in that time.
  static let numberStep: Int64 = 1 << 20
  static let nodeNumberStep: Int64 = 1 << 10
  /// Of 32,767 that a producer id has.
  static let producerEpochStep: Int16 = 64

  public let cluster: ClusterRecord

  /// - Parameter incarnationID: never used before.
  public init(of cluster: ClusterRecord, incarnationID: UniqueID) {
    self.cluster = ClusterRecord(
      id: cluster.id, incarnation: cluster.incarnation.next, incarnationID: incarnationID,
      createdAt: cluster.createdAt)
  }

  /// The value to put under the key; nil: none.
  ///
  /// - Throws: `.corruptMessage`.
  public func restored(_ key: StoreKey, _ value: [UInt8]) throws(MemQError) -> [UInt8]? {
    func changed<Record: StoredRecord>(
      _ change: (inout Record) -> Void
    ) throws(MemQError) -> [UInt8] {
      var record = try Record(value, for: key)
      change(&record)
      return record.encoded(for: key)
    }
    if key == .controller || key == .snapshotMark { return nil }
    if key == .cluster { return self.cluster.encoded(for: key) }
    if key.hasPrefix(.nodes) {
      let node = try NodeImage(value, for: key)
      guard node.service == .replication else { return nil }
      return try changed { (node: inout NodeImage) in
        node.epoch = NodeEpoch(node.epoch.rawValue + Self.epochStep)
        if node.state.isLive { node.state = .fenced }
      }
    }
    if key.hasPrefix(.partitions) {
      return try changed { (partition: inout PartitionImage) in
        partition.leader = nil
        partition.leaderEpoch = LeaderEpoch(partition.leaderEpoch.rawValue + Self.epochStep)
        partition.epoch = PartitionEpoch(partition.epoch.rawValue + Self.epochStep)
      }
    }
    if key.hasPrefix(.uploadGroups) {
      return try changed { (record: inout UploadGroupRecord) in
        record.group.holder = nil
        record.group.leaseEpoch = LeaseEpoch(record.group.leaseEpoch.rawValue + Self.epochStep)
      }
    }
    if key.hasPrefix(.counters) {
      let step = key == .counter(.nodes) ? Self.nodeNumberStep : Self.numberStep
      return try changed { (counter: inout CounterRecord) in counter.next += step }
    }
    if key.hasPrefix(.producerEpochs) {
      return try changed { (record: inout ProducerEpochRecord) in
        let (next, isUsedUp) = record.epoch.rawValue.addingReportingOverflow(
          Self.producerEpochStep)
        record.epoch = ProducerEpoch(isUsedUp ? .max : next)
      }
    }
    return value
  }

  /// What producer epochs without a record begin above, in an incarnation.
  static func producerEpochFloor(_ incarnation: Incarnation?) -> Int16 {
    let restores = max(0, (incarnation?.rawValue ?? 1) - 1)
    return Int16(clamping: restores.multipliedReportingOverflow(by: 64).partialValue)
  }
}
