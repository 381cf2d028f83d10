// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQPacking
import MemQRecords
import NIOCore

enum Examples {
  static let topic = TopicID("11111111-2222-4333-8444-555555555555")!
  static let otherTopic = TopicID("99999999-2222-4333-8444-555555555555")!

  static func partition(_ index: Int32, _ topic: TopicID = Self.topic) -> TopicPartition {
    TopicPartition(topic, PartitionIndex(index))
  }

  static func identity(_ number: UInt64 = 7, group: Int32 = 3) -> ObjectIdentity {
    ObjectIdentity(
      clusterID: ClusterID("00000000-0000-4000-8000-000000000001")!, incarnation: Incarnation(2),
      incarnationID: UniqueID("00000000-0000-4000-8000-000000000002")!,
      objectID: ObjectID(UniqueID(random: 0x0123_4567_89AB_CDEF, number)), groupID: group,
      leaseEpoch: LeaseEpoch(5))
  }

  /// A stamped batch of records that carry `size` bytes each.
  static func batch(
    at offset: Int64, records: Int, size: Int, epoch: Int64 = 0, time: Int64 = 1_700_000_000_000
  ) throws -> [UInt8] {
    var builder = RecordBatchBuilder()
    for index in 0..<records {
      let value = (0..<size).map { UInt8(truncatingIfNeeded: $0 + index + Int(offset)) }
      builder.append(value: value, timestamp: Timestamp(milliseconds: time + Int64(index)))
    }
    var bytes = try builder.build()
    bytes.withUnsafeMutableBytes {
      RecordBatchHeader.stamp($0, baseOffset: Offset(offset), leaderEpoch: LeaderEpoch(epoch))
    }
    return bytes
  }
}

/// A run with its bytes.
struct ExampleRun {
  var builder: RunBuilder
  var bytes: [UInt8] = []

  init(_ partition: TopicPartition, from offset: Int64, history: Int64 = 0, lease: Int64 = 5) {
    self.builder = RunBuilder(
      partition: partition, baseOffset: Offset(offset), historyEpoch: HistoryEpoch(history),
      leaseEpoch: LeaseEpoch(lease))
  }

  mutating func add(_ batch: [UInt8]) throws {
    try batch.withUnsafeBytes { bytes in
      try self.builder.append(try RecordBatchHeader(parsing: bytes), bytes)
    }
    self.bytes += batch
  }

  mutating func add(
    records: Int, size: Int = 20, epoch: Int64 = 0, time: Int64 = 1_700_000_000_000
  ) throws {
    try self.add(
      try Examples.batch(
        at: self.builder.endOffset.rawValue, records: records, size: size, epoch: epoch, time: time)
    )
  }
}

/// A whole object in memory.
struct ExampleObject {
  let plan: ObjectPlan
  let bytes: [UInt8]

  init(_ identity: ObjectIdentity, _ runs: [ExampleRun]) throws {
    self.plan = try ObjectPlan(identity: identity, runs: runs.map(\.builder))
    let sorted = runs.sorted { $0.builder.partition < $1.builder.partition }
    self.bytes = self.plan.head + sorted.flatMap(\.bytes) + self.plan.tail
  }

  func ref(sequence: Int64, key: String) -> ObjectRef {
    ObjectRef(
      id: self.plan.footer.identity.objectID, groupID: self.plan.footer.identity.groupID,
      sequence: sequence, key: key, byteCount: self.plan.byteCount,
      footerByteCount: self.plan.footer.footerByteCount)
  }
}
