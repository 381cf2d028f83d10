// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRPC
import MemQRecords
import MemQReplication
import MemQRuntime
import MemQStorage
import NIOCore
import SwiftProtobuf

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

// What replicas say to each other, as messages. From the wire all is checked: `.corruptMessage`, `.invalidArgument`.

/// What a leader's stream brings for one partition.
enum FollowerNews: Sendable {
  case answered(OpenAnswer)
  case pushed(InboundPush)
  case heartbeat(Heartbeat)
  /// The streams to this node broke.
  case disconnected(NodeID)
}

/// What a follower's stream brings for one partition.
enum LeaderNews: Sendable {
  case opened(OpenRequest, ReplicaFeed)
  case positioned(FollowerPosition)
  /// The streams that carried this open broke.
  case closed(ReplicaID, OpenNumber)
}

/// Batches of one partition on their way into the follower's log: checked.
struct InboundPush: Sendable {
  struct Batch: Sendable {
    var summary: BatchSummary
    var slices: [ByteBuffer]
    var byteCount: Int
  }

  var leaderEpoch: LeaderEpoch
  var number: OpenNumber
  var highWatermark: Offset
  var batches: [Batch]
  /// Called once the batches are the volume's business: their bytes go back to the leader's window.
  var taken: @Sendable () -> Void

  /// - Throws: `.corruptMessage` where payload and description disagree, and as `BatchCheck`.
  init(
    _ push: Memq_V1_ReplicaPush, payload: RPCMessage, taken: @escaping @Sendable () -> Void
  ) throws(MemQError) {
    self.taken = taken
    self.leaderEpoch = LeaderEpoch(push.leaderEpoch)
    self.number = OpenNumber(push.openNumber)
    self.highWatermark = Offset(push.highWatermark)
    self.batches = []
    self.batches.reserveCapacity(push.batches.count)
    var position = 0
    for wire in push.batches {
      let count = Int(wire.byteCount)
      guard count > 0, count <= payload.byteCount - position else {
        throw MemQError(
          .corruptMessage, "a push describes more bytes than it carries",
          limit: Int64(payload.byteCount - position), actual: Int64(count))
      }
      let slices = payload.range(from: position, count: count).slices
      position += count
      self.batches.append(
        Batch(summary: try Self.summary(wire, slices), slices: slices, byteCount: count))
    }
    guard position == payload.byteCount else {
      throw MemQError(
        .corruptMessage, "a push carries more bytes than it describes", limit: Int64(position),
        actual: Int64(payload.byteCount))
    }
  }

  private static func summary(
    _ wire: Memq_V1_ReplicaBatch, _ slices: [ByteBuffer]
  ) throws(MemQError) -> BatchSummary {
    let header = try BatchCheck.header(of: slices, byteCount: Int(wire.byteCount))
    guard header.baseOffset.rawValue == wire.baseOffset,
      header.baseOffset + Int64(header.recordCount) == Offset(wire.endOffset)
    else {
      throw MemQError(
        .corruptMessage, "a batch does not stand where its push says",
        limit: wire.baseOffset, actual: header.baseOffset.rawValue)
    }
    return BatchSummary(
      baseOffset: header.baseOffset, endOffset: Offset(wire.endOffset),
      leaderEpoch: LeaderEpoch(wire.leaderEpoch), producerID: header.producerID,
      producerEpoch: header.producerEpoch,
      baseSequence: header.isIdempotent ? header.baseSequence : -1,
      maxTimestamp: header.maxTimestamp,
      appendTime: Timestamp(milliseconds: wire.appendTimeMs))
  }
}

extension Push {
  /// The description of batches as a volume read them; their bytes travel beside it.
  static func wire(
    of partition: TopicPartition, _ epoch: LeaderEpoch, _ number: OpenNumber,
    _ batches: [Volume.ReadResult.Batch], highWatermark: Offset
  ) -> Memq_V1_ReplicaPush {
    .with {
      $0.topicPartition = partition.wire
      $0.leaderEpoch = epoch.rawValue
      $0.openNumber = number.rawValue
      $0.highWatermark = highWatermark.rawValue
      $0.batches = batches.map { batch in
        .with {
          $0.byteCount = Int32(batch.byteCount)
          $0.baseOffset = batch.summary.baseOffset.rawValue
          $0.endOffset = batch.summary.endOffset.rawValue
          $0.leaderEpoch = batch.summary.leaderEpoch.rawValue
          $0.appendTimeMs = batch.summary.appendTime.milliseconds
        }
      }
    }
  }
}

extension OpenRequest {
  func wire(of partition: TopicPartition) -> Memq_V1_ReplicaOpen {
    .with {
      $0.topicPartition = partition.wire
      $0.leaderEpoch = self.leaderEpoch.rawValue
      $0.openNumber = self.number.rawValue
      $0.endOffset = self.end.rawValue
      $0.lastEpoch = self.lastEpoch.rawValue
      $0.needsHistory = self.needsHistory
    }
  }

  init(_ wire: Memq_V1_ReplicaOpen, from follower: ReplicaMember) throws(MemQError) {
    guard wire.endOffset >= 0, wire.openNumber > 0 else {
      throw MemQError(.corruptMessage, "no such open", actual: wire.endOffset)
    }
    self.init(
      follower: follower, leaderEpoch: LeaderEpoch(wire.leaderEpoch),
      number: OpenNumber(wire.openNumber), end: Offset(wire.endOffset),
      lastEpoch: LeaderEpoch(wire.lastEpoch), needsHistory: wire.needsHistory)
  }
}

extension FollowerPosition {
  func wire(of partition: TopicPartition) -> Memq_V1_ReplicaPosition {
    .with {
      $0.topicPartition = partition.wire
      $0.leaderEpoch = self.leaderEpoch.rawValue
      $0.openNumber = self.number.rawValue
      $0.durableEnd = self.durableEnd.rawValue
    }
  }

  init(_ wire: Memq_V1_ReplicaPosition, from follower: ReplicaMember) {
    self.init(
      follower: follower, leaderEpoch: LeaderEpoch(wire.leaderEpoch),
      number: OpenNumber(wire.openNumber), durableEnd: Offset(wire.durableEnd))
  }
}

extension Heartbeat {
  func wire(of partition: TopicPartition) -> Memq_V1_ReplicaHeartbeat {
    .with {
      $0.topicPartition = partition.wire
      $0.leaderEpoch = self.leaderEpoch.rawValue
      $0.openNumber = self.number.rawValue
      $0.highWatermark = self.highWatermark.rawValue
      $0.pushedThrough = self.pushedThrough.rawValue
    }
  }

  init(_ wire: Memq_V1_ReplicaHeartbeat) {
    self.init(
      leaderEpoch: LeaderEpoch(wire.leaderEpoch), number: OpenNumber(wire.openNumber),
      highWatermark: Offset(wire.highWatermark), pushedThrough: Offset(wire.pushedThrough))
  }
}

extension OpenAnswer {
  func wire(of partition: TopicPartition) -> Memq_V1_ReplicaOpenAnswer {
    .with {
      $0.topicPartition = partition.wire
      $0.leaderEpoch = self.leaderEpoch.rawValue
      $0.openNumber = self.number.rawValue
      switch self.result {
      case .accepted(let from):
        $0.result = .accepted
        $0.offset = from.rawValue
      case .diverged(let theirs):
        $0.result = .diverged
        $0.offset = theirs.end.rawValue
        $0.epoch = theirs.epoch.rawValue
      case .rejected(.fencedLeaderEpoch(let current)):
        $0.result = .fencedLeaderEpoch
        $0.epoch = current.rawValue
      case .rejected(.unknownLeaderEpoch(let current)):
        $0.result = .unknownLeaderEpoch
        $0.epoch = current.rawValue
      case .rejected(.staleNodeEpoch(let current)):
        $0.result = .staleNodeEpoch
        $0.epoch = current.rawValue
      case .rejected(.unknownNodeEpoch(let current)):
        $0.result = .unknownNodeEpoch
        $0.epoch = current.rawValue
      case .rejected(.notAReplica): $0.result = .notAReplica
      case .rejected(.notReady): $0.result = .notReady
      case .rejected(.belowLocalStart(let start)):
        $0.result = .belowLocalStart
        $0.offset = start.rawValue
      }
      if let history = self.history { $0.history = history.wire }
    }
  }

  init(_ wire: Memq_V1_ReplicaOpenAnswer, to follower: ReplicaID) throws(MemQError) {
    guard wire.offset >= 0, wire.offset < Int64.max / 2, wire.epoch >= -1 else {
      throw MemQError(
        .corruptMessage, "no log has such a place", limit: Int64.max / 2, actual: wire.offset)
    }
    let offset = Offset(wire.offset)
    let epoch = LeaderEpoch(wire.epoch)
    let result: Result
    switch wire.result {
    case .accepted: result = .accepted(from: offset)
    case .diverged: result = .diverged(EpochEnd(epoch: epoch, end: offset))
    case .fencedLeaderEpoch: result = .rejected(.fencedLeaderEpoch(current: epoch))
    case .unknownLeaderEpoch: result = .rejected(.unknownLeaderEpoch(current: epoch))
    case .staleNodeEpoch:
      result = .rejected(.staleNodeEpoch(current: NodeEpoch(wire.epoch)))
    case .unknownNodeEpoch:
      result = .rejected(.unknownNodeEpoch(current: NodeEpoch(wire.epoch)))
    case .notAReplica: result = .rejected(.notAReplica)
    case .notReady: result = .rejected(.notReady)
    case .belowLocalStart: result = .rejected(.belowLocalStart(offset))
    case .unspecified, .UNRECOGNIZED:
      throw MemQError(
        .corruptMessage, "no such result of an open", actual: Int64(wire.result.rawValue))
    }
    self.init(
      follower: follower, leaderEpoch: LeaderEpoch(wire.leaderEpoch),
      number: OpenNumber(wire.openNumber), result: result,
      history: wire.hasHistory ? try LogHistory(wire.history) : nil)
  }
}

extension LogHistory {
  /// Epochs one answer may state.
  private static let epochsMax = 65_536

  var wire: Memq_V1_ReplicaHistory {
    .with {
      // The newest count: a log is compared by its end.
      $0.epochs = self.epochs.suffix(Self.epochsMax).map { start in
        .with {
          $0.epoch = start.epoch.rawValue
          $0.startOffset = start.start.rawValue
        }
      }
      $0.producerSnapshot = Data(self.producers)
      $0.producerSnapshotEnd = self.producersEnd.rawValue
    }
  }

  init(_ wire: Memq_V1_ReplicaHistory) throws(MemQError) {
    guard wire.epochs.count <= Self.epochsMax else {
      throw MemQError(
        .corruptMessage, "a history states too many epochs", limit: Int64(Self.epochsMax),
        actual: Int64(wire.epochs.count))
    }
    self.init(
      epochs: wire.epochs.map {
        EpochStart(epoch: LeaderEpoch($0.epoch), start: Offset($0.startOffset))
      }, producers: Array(wire.producerSnapshot), producersEnd: Offset(wire.producerSnapshotEnd))
  }
}
