// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQModel
import MemQRecords
import NIOCore
import Synchronization

/// The callers' side of a producer: encodes records into one open batch per partition, on the callers' threads.
///
/// Bounded: bytes are charged from `append` until `release`.
final class RecordAccumulator: Sendable {
  enum Outcome {
    /// Taken. True: the engine must look, as nothing told it of this batch yet.
    case taken(wake: Bool)
    /// No room; wait for some.
    case full
  }

  struct Limits {
    var batchBytes: Int
    /// One batch, encoded and not compressed.
    var batchBytesMax: Int
    var batchRecordsMax: Int
    var bufferBytesMax: Int
    var linger: TimeAmount
  }

  private struct Open {
    var builder: RecordBatchBuilder
    var handlers: [(index: Int, handler: AcknowledgementHandler)] = []
    var chargedBytes = 0
    let openedAt: NIODeadline
  }

  private struct Slot {
    var open: Open?
    var closed = Deque<ProduceBatch>()
    /// It stands in `active`.
    var isActive = false
  }

  private struct Waiter {
    let id: UInt64
    let continuation: UnsafeContinuation<Void, Never>
  }

  private struct State {
    var slots: [Slot]
    /// Partitions that hold records.
    var active: [Int] = []
    var bufferedBytes = 0
    /// A record found no room, and not enough was freed since.
    var isFull = false
    var sticky: Int
    var nextBatchID: Int64 = 0
    /// Records appended and not completed.
    var records = 0
    var isWakePending = false
    var waiters = Deque<Waiter>()
    var nextWaiter: UInt64 = 0
    var failure: MemQError?
  }

  let limits: Limits
  private let compression: Compression
  private let state: Mutex<State>

  init(partitions: Int, limits: Limits, compression: Compression) {
    precondition(partitions > 0)
    self.limits = limits
    self.compression = compression
    self.state = Mutex(
      State(
        slots: (0..<partitions).map { _ in Slot() }, sticky: Int.random(in: 0..<partitions)))
  }

  // MARK: The callers' side

  /// Takes one record.
  ///
  /// - Throws: what `fail` was called with; `.partitionNotFound`, `.recordBatchTooLarge`.
  func append(
    key: UnsafeRawBufferPointer?, value: UnsafeRawBufferPointer?, headers: [RecordHeader],
    partition: PartitionIndex?, timestamp: Timestamp, now: NIODeadline,
    handler: AcknowledgementHandler?
  ) throws(MemQError) -> Outcome {
    let bytes = RecordBatchBuilder.recordBytes(
      key: key?.count, value: value?.count, headers: headers)
    guard RecordBatchHeader.byteCount + bytes <= MemQModel.Limits.recordBatchBytesMax else {
      throw MemQError(
        .recordBatchTooLarge, "the record is larger than any batch may be; put it as a file",
        limit: Int64(MemQModel.Limits.recordBatchBytesMax),
        actual: Int64(RecordBatchHeader.byteCount + bytes))
    }
    let result = self.state.withLock { state -> Result<Outcome, MemQError> in
      Result { () throws(MemQError) -> Outcome in
        if let failure = state.failure { throw failure }
        // A record larger than the whole buffer is let in alone.
        guard state.bufferedBytes == 0 || state.bufferedBytes + bytes <= self.limits.bufferBytesMax
        else {
          state.isFull = true
          return .full
        }
        let index = try self.choose(key, partition, &state)
        let mustWake = self.put(into: index, bytes, now, &state) { open in
          if let handler { open.handlers.append((open.builder.recordCount, handler)) }
          open.builder.append(
            rawKey: key, rawValue: value, headers: headers, timestamp: timestamp)
        }
        guard mustWake && !state.isWakePending else { return .taken(wake: false) }
        state.isWakePending = true
        return .taken(wake: true)
      }
    }
    return try result.get()
  }

  private func choose(
    _ key: UnsafeRawBufferPointer?, _ partition: PartitionIndex?, _ state: inout State
  ) throws(MemQError) -> Int {
    if let partition {
      guard partition.rawValue >= 0, Int(partition.rawValue) < state.slots.count else {
        throw MemQError(
          .partitionNotFound, "the topic has fewer partitions", subject: "partition \(partition)",
          limit: Int64(state.slots.count - 1), actual: Int64(partition.rawValue))
      }
      return Int(partition.rawValue)
    }
    if let key { return Int(KeyHash.partition(of: key, among: state.slots.count).rawValue) }
    return state.sticky
  }

  /// - Returns: whether this is news to the engine: a batch began, or became large enough to leave.
  private func put(
    into index: Int, _ bytes: Int, _ now: NIODeadline, _ state: inout State,
    _ body: (inout Open) -> Void
  ) -> Bool {
    if let open = state.slots[index].open,
      open.builder.byteCount + bytes > self.limits.batchBytesMax
        || open.builder.recordCount >= self.limits.batchRecordsMax
    {
      self.close(index, &state)
    }
    var open =
      state.slots[index].open.take()
      ?? Open(builder: RecordBatchBuilder(compression: self.compression), openedAt: now)
    let before = open.builder.isEmpty ? 0 : open.builder.byteCount
    body(&open)
    open.chargedBytes += bytes
    let isNews =
      before == 0
      || before < self.limits.batchBytes && open.builder.byteCount >= self.limits.batchBytes
    state.slots[index].open = consume open
    state.bufferedBytes += bytes
    state.records += 1
    if !state.slots[index].isActive {
      state.slots[index].isActive = true
      state.active.append(index)
    }
    return isNews
  }

  /// Encodes the open batch. A record without a key goes to another partition from now on.
  private func close(_ index: Int, _ state: inout State) {
    guard let open = state.slots[index].open else { return }
    state.slots[index].open = nil
    if index == state.sticky { state.sticky = (state.sticky + 1) % state.slots.count }
    let count = open.builder.recordCount
    let id = state.nextBatchID
    state.nextBatchID += 1
    do {
      let bytes = try open.builder.build()
      state.slots[index].closed.append(
        ProduceBatch(
          id: id, partition: PartitionIndex(Int32(index)), recordCount: count,
          chargedBytes: open.chargedBytes, createdAt: open.openedAt,
          bytes: ByteBuffer(bytes: bytes),
          handlers: open.handlers))
    } catch {
      // The compression library is out of memory. The batch is carried on without bytes and fails when it is taken.
      var batch = ProduceBatch(
        id: id, partition: PartitionIndex(Int32(index)), recordCount: count,
        chargedBytes: open.chargedBytes, createdAt: open.openedAt, bytes: ByteBuffer(),
        handlers: open.handlers)
      batch.lastError = error
      state.slots[index].closed.append(batch)
    }
  }

  /// Returns when there may be room, at once when no record was turned away since there was.
  func waitForRoom() async {
    let id = self.state.withLock { state in
      state.nextWaiter += 1
      return state.nextWaiter
    }
    await withTaskCancellationHandler {
      await withUnsafeContinuation { continuation in
        let isFree = self.state.withLock { state in
          if !state.isFull || state.failure != nil
            || withUnsafeCurrentTask(body: { $0?.isCancelled ?? false })
          {
            return true
          }
          state.waiters.append(Waiter(id: id, continuation: continuation))
          return false
        }
        if isFree { continuation.resume() }
      }
    } onCancel: {
      let waiter = self.state.withLock { state -> Waiter? in
        guard let at = state.waiters.firstIndex(where: { $0.id == id }) else { return nil }
        return state.waiters.remove(at: at)
      }
      waiter?.continuation.resume()
    }
  }

  // MARK: The engine's side

  /// The engine looks now: what comes from here on must wake it again.
  func beginLook() {
    self.state.withLock { $0.isWakePending = false }
  }

  /// Partitions that hold records.
  func activePartitions() -> [Int] {
    self.state.withLock { $0.active }
  }

  /// The next batch of a partition that may leave: one that is closed, large enough, or has waited long enough.
  func take(_ index: Int, _ now: NIODeadline) -> ProduceBatch? {
    self.state.withLock { state in
      if state.slots[index].closed.isEmpty, let open = state.slots[index].open,
        open.builder.byteCount >= self.limits.batchBytes
          || open.openedAt + self.limits.linger <= now
      {
        self.close(index, &state)
      }
      defer { self.settle(index, &state) }
      return state.slots[index].closed.popFirst()
    }
  }

  /// The next batch of a partition whose first record came before `cutoff`.
  func takeExpired(_ index: Int, before cutoff: NIODeadline) -> ProduceBatch? {
    self.state.withLock { state in
      if state.slots[index].closed.isEmpty, let open = state.slots[index].open,
        open.openedAt < cutoff
      {
        self.close(index, &state)
      }
      guard let first = state.slots[index].closed.first, first.createdAt < cutoff else {
        return nil
      }
      defer { self.settle(index, &state) }
      return state.slots[index].closed.popFirst()
    }
  }

  private func settle(_ index: Int, _ state: inout State) {
    guard state.slots[index].closed.isEmpty, state.slots[index].open == nil else { return }
    state.slots[index].isActive = false
    state.active.removeAll { $0 == index }
  }

  /// When the open batch of a partition has waited long enough; nil: none is open.
  func lingersUntil(_ index: Int) -> NIODeadline? {
    self.state.withLock { state in
      state.slots[index].open.map { $0.openedAt + self.limits.linger }
    }
  }

  /// Closes every open batch.
  ///
  /// - Returns: the highest batch number so far (-1: none) and the records that are not completed.
  func closeAll() -> (lastID: Int64, records: Int) {
    self.state.withLock { state in
      for index in state.active { self.close(index, &state) }
      return (state.nextBatchID - 1, state.records)
    }
  }

  /// A batch is done: its room is free again.
  func release(_ batch: ProduceBatch) {
    let waiters = self.state.withLock { state -> Deque<Waiter> in
      state.bufferedBytes -= batch.chargedBytes
      state.records -= batch.recordCount
      // A quarter at once, for each wake-up costs the sender two switches between threads.
      let threshold = self.limits.bufferBytesMax - self.limits.bufferBytesMax / 4
      guard state.isFull, state.bufferedBytes <= threshold else { return [] }
      state.isFull = false
      defer { state.waiters = [] }
      return state.waiters
    }
    for waiter in waiters { waiter.continuation.resume() }
  }

  /// From now on `append` throws `error`.
  func fail(_ error: MemQError) {
    let waiters = self.state.withLock { state -> Deque<Waiter> in
      if state.failure == nil { state.failure = error }
      defer { state.waiters = [] }
      return state.waiters
    }
    for waiter in waiters { waiter.continuation.resume() }
  }

  var failure: MemQError? { self.state.withLock { $0.failure } }
}
