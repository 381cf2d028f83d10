// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQModel
import MemQRecords
import NIOCore
import Testing

@testable import MemQClient

@Suite struct PartitionLaneTests {
  static let start = NIODeadline.uptimeNanoseconds(1_000_000_000)
  static let later = Self.start + .seconds(5)

  static func batch(_ id: Int64, records: Int = 10) -> ProduceBatch {
    var builder = RecordBatchBuilder()
    for number in 0..<records {
      builder.append(value: [UInt8(number)], timestamp: Timestamp(milliseconds: 1))
    }
    return ProduceBatch(
      id: id, partition: PartitionIndex(0), recordCount: records, chargedBytes: 100,
      createdAt: Self.start, bytes: ByteBuffer(bytes: try! builder.build()), handlers: [])
  }

  static func lane(batches: Int, inFlight: Int = 5) -> PartitionLane {
    var lane = PartitionLane(
      producerID: ProducerID(7), epoch: ProducerEpoch(0), inFlightMax: inFlight)
    for id in 0..<batches { lane.add(Self.batch(Int64(id))) }
    return lane
  }

  /// Sends what may leave; the sequences that left.
  static func send(
    _ lane: inout PartitionLane, from request: UInt64, at now: NIODeadline
  ) -> [Int32] {
    var sequences: [Int32] = []
    while let batch = lane.send(request: request + UInt64(sequences.count), at: now) {
      sequences.append(batch.sequence)
    }
    return sequences
  }

  @Test func `batches leave in order, five at a time`() {
    var lane = Self.lane(batches: 7)
    #expect(Self.send(&lane, from: 1, at: Self.start) == [0, 10, 20, 30, 40])
    _ = lane.answered(request: 1, .success(Offset(0)), at: Self.start)
    #expect(Self.send(&lane, from: 6, at: Self.start) == [50])
  }

  @Test
  func `after a failure nothing leaves until all answers are there, then all goes again in order`()
  {
    var lane = Self.lane(batches: 4)
    _ = Self.send(&lane, from: 1, at: Self.start)
    let gap = MemQError(.outOfOrderSequence, "a gap")
    _ = lane.answered(request: 1, .failure(MemQError(.notEnoughReplicas, "wait")), at: Self.start)
    _ = lane.answered(request: 2, .failure(gap), at: Self.start)
    #expect(Self.send(&lane, from: 5, at: Self.later) == [])
    _ = lane.answered(request: 3, .failure(gap), at: Self.start)
    _ = lane.answered(request: 4, .failure(gap), at: Self.start)
    #expect(Self.send(&lane, from: 5, at: Self.start) == [])
    #expect(Self.send(&lane, from: 5, at: Self.later) == [0, 10, 20, 30])
    #expect(!lane.needsEpoch)
  }

  @Test func `what follows a refused batch is numbered anew under another epoch`() {
    var lane = Self.lane(batches: 3)
    _ = Self.send(&lane, from: 1, at: Self.start)
    let verdict = lane.answered(
      request: 1, .failure(MemQError(.infected, "a signature")), at: Self.start)
    guard case .done(let batch, .failure) = verdict else {
      Issue.record("a refusal is final")
      return
    }
    #expect(batch.id == 0)
    let gap = MemQError(.outOfOrderSequence, "a gap")
    _ = lane.answered(request: 2, .failure(gap), at: Self.start)
    #expect(!lane.wantsEpoch)
    _ = lane.answered(request: 3, .failure(gap), at: Self.start)
    #expect(lane.wantsEpoch)
    #expect(Self.send(&lane, from: 4, at: Self.later) == [])
    lane.renew(ProducerID(7), ProducerEpoch(1))
    #expect(Self.send(&lane, from: 4, at: Self.start) == [0, 10])
    let header = lane.batches[0].bytes.withUnsafeReadableBytes { bytes in
      try? RecordBatchHeader.validate(bytes, maxBytes: .max)
    }
    #expect(header?.producerEpoch == ProducerEpoch(1) && header?.producerID == ProducerID(7))
  }

  @Test func `a lost stream sends everything again with the same sequences`() {
    var lane = Self.lane(batches: 3)
    _ = Self.send(&lane, from: 1, at: Self.start)
    _ = lane.answered(request: 1, .success(Offset(0)), at: Self.start)
    lane.streamLost(MemQError(.unavailable, "gone"))
    #expect(Self.send(&lane, from: 4, at: Self.start) == [10, 20])
    guard case .stale = lane.answered(request: 2, .success(nil), at: Self.start) else {
      Issue.record("an answer to a lost request counts for nothing")
      return
    }
  }

  @Test func `halves keep the place and the sequences of the whole`() throws {
    var lane = Self.lane(batches: 3)
    _ = Self.send(&lane, from: 1, at: Self.start)
    _ = lane.answered(request: 1, .success(Offset(0)), at: Self.start)
    let verdict = lane.answered(
      request: 2, .failure(MemQError(.recordBatchTooLarge, "too large")), at: Self.start)
    guard case .tooLarge(let batch, let at, _) = verdict else {
      Issue.record("a batch of several records can be halved")
      return
    }
    lane.putBack(try batch.halves(.none), of: batch, at: at)
    _ = lane.answered(
      request: 3, .failure(MemQError(.outOfOrderSequence, "a gap")), at: Self.start)
    #expect(Self.send(&lane, from: 4, at: Self.later) == [10, 15, 20])
    #expect(!lane.needsEpoch)
  }

  @Test func `sequences wrap to zero`() {
    #expect(ProduceBatch.sequence(.max, after: 1) == 0)
    #expect(ProduceBatch.sequence(.max - 1, after: 3) == 1)
  }
}
