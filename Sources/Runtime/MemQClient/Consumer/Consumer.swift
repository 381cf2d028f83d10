// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import Logging
import MemQAPI
public import MemQModel
import MemQRPC
import MemQRecords

/// Reads one topic from positions of its own or from those of a consumer group.
///
/// Records of a partition come in the order of their offsets, each once, over reconnects and restarts of the server. It fetches ahead, bounded by
/// ``Configuration/prefetchBytesMax``. One task calls `next`; the rest may be called from anywhere.
public actor Consumer {
  public nonisolated let topic: String
  public nonisolated let topicID: TopicID
  /// Partitions of the topic when the consumer was made.
  nonisolated let partitionCount: Int

  let servers: Servers
  let admin: Admin
  let configuration: Configuration
  let logger: Logger

  /// Where the next fetch of each partition begins; partitions that reached their end are taken out.
  var fetchPositions: SortedMap<PartitionIndex, Offset>
  /// Where to stop, by partition; empty: never.
  let ends: SortedMap<PartitionIndex, Offset>
  /// What `next` has handed out ends here.
  var deliveredPositions: SortedMap<PartitionIndex, Offset>
  var ready = Deque<(records: ConsumedRecords, bytes: Int)>()
  var readyBytes = 0
  var failure: MemQError?
  var fetching: Task<Void, Never>?
  /// Rises with each fetch.
  private var fetchNumber = 0
  private var background: [Task<Void, Never>] = []
  private var waiter: UnsafeContinuation<Void, Never>?
  private var firstPartition = 0
  var isClosed = false
  /// Since when fetches fail, one after the other.
  private var failingSince: ContinuousClock.Instant?
  private var backoff = Backoff()
  var groupBackoff = Backoff()

  /// Its place in its group; nil: no group.
  var membership: GroupMembership?
  /// What the group gave it, `Consumer+Group.swift`.
  var assignment = GroupAssignment()
  /// Handed out last; counts as consumed at the next call.
  var unmarked: (partition: PartitionIndex, next: Offset)?
  /// Consumed below it.
  var consumed: SortedMap<PartitionIndex, Offset> = [:]
  /// Committed below it.
  var committed: SortedMap<PartitionIndex, Offset> = [:]
  /// The group gave this member up before all that was consumed was committed, and nobody who commits has been told yet.
  var hasLostMarks = false
  /// Leader epochs of what was fetched.
  var trails: SortedMap<PartitionIndex, EpochTrail> = [:]
  /// Where the log lost records that were handed out: marks from before may name them.
  var truncatedPartitions: Set<PartitionIndex> = []
  /// How often the log lost records that had been handed out (``Configuration/onTruncation``).
  public internal(set) var truncationCount = 0

  init(
    _ description: TopicDescription, _ plan: ConsumerPlan, client: MemQClient,
    configuration: Configuration
  ) {
    self.topic = description.topic.name
    self.topicID = description.topic.id
    self.partitionCount = description.topic.partitionCount
    self.servers = client.servers
    self.admin = client.admin
    self.configuration = configuration
    self.logger = client.logger
    self.fetchPositions = plan.positions
    self.deliveredPositions = plan.positions
    self.ends = plan.ends
    self.committed = plan.committed
    self.membership = plan.membership
    for (partition, epoch) in plan.epochs {
      guard let committed = plan.committed[partition] else { continue }
      self.trails[partition] = EpochTrail(epoch, before: committed)
    }
    if plan.membership != nil {
      self.assignment = GroupAssignment(plan.positions, isWaiting: plan.isWaiting)
    }
    // Those that are not this member's, or not yet, have no position.
    for (partition, end) in plan.ends where plan.positions[partition].map({ $0 >= end }) ?? false {
      self.fetchPositions[partition] = nil
    }
  }

  func startBackground() {
    guard self.membership != nil else { return }
    self.fixPlaces(self.partitions)
    self.background.append(
      Task { [weak self] in
        while await self?.followGroup() ?? false {}
      })
    guard let interval = self.configuration.commitInterval else { return }
    self.background.append(
      Task { [weak self] in
        while (try? await Task.sleep(for: interval)) != nil {
          guard let self else { return }
          await self.commitInBackground()
        }
      })
  }

  // MARK: Reading

  /// The next piece of some partition; nil at the end, with ``Configuration/stopsAtEnd``.
  ///
  /// - Throws: `.cancelled`, `.offsetOutOfRange` and `.logTruncated` (with ``Reset/fail``), `.groupMemberFenced` when another member has joined under the
  ///   same instance id, `.topicNotFound` when the topic is gone, `.unavailable` when no server was found for ``Configuration/reconnectTimeout``.
  public func next() async throws(MemQError) -> ConsumedRecords? {
    if self.configuration.marksAutomatically, let unmarked = self.unmarked {
      self.markConsumed(unmarked.partition, below: unmarked.next)
    }
    while true {
      if let piece = self.ready.popFirst() {
        self.readyBytes -= piece.bytes
        self.fetchAhead()
        self.deliveredPositions[piece.records.partition] = piece.records.nextOffset
        self.unmarked = (piece.records.partition, piece.records.nextOffset)
        return piece.records
      }
      if let failure = self.failure { throw failure }
      if self.isClosed { throw MemQError(.cancelled, "the consumer was closed") }
      if self.isAtEnd { return nil }
      self.fetchAhead()
      try await self.waitForChange()
    }
  }

  /// Nothing is left to read, and nothing is to come.
  private var isAtEnd: Bool {
    guard self.fetchPositions.isEmpty else { return false }
    return self.membership == nil || (self.configuration.stopsAtEnd && self.assignment.isSettled)
  }

  /// The partitions it reads, ascending. With a group they come and go.
  public var partitions: [PartitionIndex] { self.deliveredPositions.keys }

  /// Whether `next` would return at once.
  public var hasReady: Bool { !self.ready.isEmpty }

  /// Where each partition goes on after what `next` has handed out.
  public var positions: [(partition: PartitionIndex, offset: Offset)] {
    self.deliveredPositions.map { ($0, $1) }
  }

  private func waitForChange() async throws(MemQError) {
    precondition(self.waiter == nil, "two tasks call next() of one consumer")
    await withTaskCancellationHandler {
      await withUnsafeContinuation { self.waiter = $0 }
    } onCancel: {
      Task { await self.changed() }
    }
    if Task.isCancelled { throw MemQError(.cancelled, "the read was cancelled") }
  }

  func changed() {
    self.waiter?.resume()
    self.waiter = nil
  }

  // MARK: Fetching

  func fetchAhead() {
    guard self.fetching == nil, self.failure == nil, !self.isClosed, !self.fetchPositions.isEmpty,
      self.readyBytes < self.configuration.prefetchBytesMax
    else { return }
    self.fetching = Task {
      await self.fetch()
      self.fetching = nil
      self.fetchAhead()
      self.changed()
    }
  }

  private func fetch() async {
    let (address, channel) = self.servers.channel(.fetch)
    self.fetchNumber += 1
    let number = self.fetchNumber
    do throws(MemQError) {
      let stream = try await channel.streamHot(
        IngestMethods.fetch, self.request(),
        RPCCallOptions(timeout: self.configuration.fetchWaitMax + .seconds(30)))
      while let part = try await stream.next() {
        try await self.take(part, of: number)
      }
      self.failingSince = nil
      self.backoff.reset()
    } catch {
      await self.failed(error, address)
    }
  }

  private func request() -> Memq_V1_FetchRequest {
    var request = Memq_V1_FetchRequest()
    request.topic = self.topic
    request.maxBytes = Int32(clamping: self.configuration.fetchBytesMax)
    request.minBytes = 1
    request.waitMaxMs = Int32(clamping: self.configuration.fetchWaitMax.milliseconds)
    request.format = .batches
    // The server fills the answer in this order: each partition comes first in its turn.
    let keys = self.fetchPositions.keys
    self.firstPartition = (self.firstPartition + 1) % keys.count
    for partition in keys[self.firstPartition...] + keys[..<self.firstPartition] {
      guard request.positions.count < Self.positionsMax else { break }
      var position = Memq_V1_FetchPosition()
      position.partition = partition.rawValue
      let offset = self.fetchPositions[partition]!
      position.offset = offset.rawValue
      if let epoch = self.trails[partition]?.epoch(before: offset) {
        position.lastEpoch = epoch.rawValue
      }
      request.positions.append(position)
    }
    return request
  }

  /// Positions of one fetch, as the protocol bounds them.
  private static let positionsMax = 1_000

  /// The number of the fetch that would be begun now.
  var nextFetchNumber: Int { self.fetchNumber + 1 }

  private func take(
    _ part: Hot<Memq_V1_FetchResponse>, of fetch: Int
  ) async throws(MemQError) {
    let partition = PartitionIndex(part.header.partition)
    // A partition that went and came back meanwhile goes on elsewhere.
    guard let position = self.fetchPositions[partition],
      self.assignment.began(partition) <= fetch
    else { return }
    if part.header.hasError {
      return try await self.partFailed(MemQError(part.header.error), partition, part.header)
    }
    let end = self.end(of: partition)
    var trail = self.trails[partition] ?? EpochTrail(nil, before: position)
    let records = try FetchedBatches.records(
      in: part.payload, from: position, below: end, noting: &trail)
    let next = min(
      max(Offset(part.header.nextOffset), records.last.map { $0.offset + 1 } ?? position), end)
    if part.header.hasLastEpoch, trail.epoch(before: next) == nil,
      next == Offset(part.header.nextOffset)
    {
      trail = EpochTrail(LeaderEpoch(part.header.lastEpoch), before: next)
    }
    self.trails[partition] = trail
    guard next > position || !records.isEmpty else { return }
    self.fetchPositions[partition] = next >= end ? nil : next
    self.ready.append(
      (
        ConsumedRecords(
          partition: partition, records: records, nextOffset: next,
          highWatermark: Offset(part.header.highWatermark),
          isFromObjects: part.header.fromObjects), part.payload.byteCount
      ))
    self.readyBytes += part.payload.byteCount
    self.changed()
  }

  private func partFailed(
    _ error: MemQError, _ partition: PartitionIndex, _ header: Memq_V1_FetchResponse
  ) async throws(MemQError) {
    if error.code == .logTruncated { return try await self.truncated(error, partition, header) }
    guard error.code == .offsetOutOfRange else { throw error }
    guard let position = self.fetchPositions[partition],
      let offset = self.configuration.reset.offset(from: position, error, header)
    else { throw error }
    self.logger.warning(
      "Offset does not exist: going on elsewhere",
      metadata: [
        "topic": "\(self.topic)", "partition": "\(partition)",
        "offset": "\(position)", "next": "\(offset)",
      ])
    self.trails[partition] = nil
    // Behind everything stands who does not know the end yet: the next answer tells it.
    let end = self.end(of: partition)
    self.fetchPositions[partition] = end < .max && offset >= end ? nil : offset
  }

  /// Where to stop. A partition that was added later has nothing from before.
  func end(of partition: PartitionIndex) -> Offset {
    self.ends[partition] ?? (self.configuration.stopsAtEnd ? .zero : .max)
  }

  private func failed(_ error: MemQError, _ address: String) async {
    if self.isClosed || Task.isCancelled { return }
    let now = ContinuousClock.now
    let since = self.failingSince ?? now
    self.failingSince = since
    // A server that cancels is about to go, or broken: as one that is not there.
    guard error.isRetriable || error.code == .cancelled,
      now - since < self.configuration.reconnectTimeout
    else {
      self.failure = Servers.naming(error, address)
      return
    }
    if Servers.isAbsence(error) { self.servers.failed(address) }
    self.logger.debug(
      "Fetch failed: trying again", metadata: ["server": "\(address)", "error": "\(error)"])
    try? await Task.sleep(for: self.backoff.step())
  }

  // MARK: Offsets of the group

  /// Says that everything of a partition below `offset` is consumed: the next commit tells the group. Of a partition that the group has
  /// taken away, or that came back behind `offset`, this says nothing.
  public func markConsumed(_ partition: PartitionIndex, below offset: Offset) {
    if self.unmarked?.partition == partition { self.unmarked = nil }
    if self.membership != nil {
      guard let begin = self.assignment.begin(partition), offset >= begin else { return }
    }
    // What was lost is not consumed: others stand there, or nothing yet.
    if self.truncatedPartitions.contains(partition),
      offset > self.deliveredPositions[partition] ?? .zero
    {
      return
    }
    self.consumed[partition] = offset
    self.assignment.marked()
  }

  /// Commits what is consumed. Durable when it returns.
  ///
  /// - Throws: `.groupMemberUnknown`, once, when the group gave this member up: its partitions are lost, and `next` goes on with others;
  ///   `.groupMemberFenced` when another member has joined under the same instance id; `.invalidArgument` without a group.
  public func commit() async throws(MemQError) {
    guard self.membership != nil else {
      throw MemQError(.invalidArgument, "a consumer without a group has nothing to commit to")
    }
    let hasLost = self.hasLostMarks
    self.hasLostMarks = false
    try await self.commit(self.consumed.keys)
    // The heartbeat heard of it first: what the caller believes to be committed is gone from `consumed`.
    guard !hasLost else {
      throw MemQError(
        .groupMemberUnknown, "the group gave this member up before what it consumed was committed",
        subject: self.membership?.group ?? "")
    }
  }

  /// What can heal is tried again at the next turn.
  func groupFailed(_ error: MemQError) {
    guard !error.isRetriable, error.code != .cancelled, self.failure == nil, !self.isClosed else {
      return
    }
    // The heartbeat hears of it, too, and joins again.
    guard error.code != .groupMemberUnknown, error.code != .partitionNotAssigned else {
      self.assignment.nudge()
      return
    }
    self.failure = error
    self.changed()
  }

  // MARK: The end

  /// Commits what is consumed, leaves the group and ends. What `next` handed out last counts as consumed when it is marked automatically.
  ///
  /// - Throws: as `commit`, but nothing of what was lost earlier.
  public func close() async throws(MemQError) {
    guard !self.isClosed else { return }
    if self.configuration.marksAutomatically, let unmarked = self.unmarked {
      self.markConsumed(unmarked.partition, below: unmarked.next)
    }
    self.isClosed = true
    self.changed()
    for task in self.background { task.cancel() }
    self.fetching?.cancel()
    self.assignment.end()
    guard let membership = self.membership else { return }
    var failure: MemQError?
    do throws(MemQError) { try await self.commit(self.consumed.keys) } catch { failure = error }
    await membership.leave()
    if let failure { throw failure }
  }
}

extension Consumer.Reset {
  /// Where to go on from an offset that does not exist; nil: nowhere.
  ///
  /// The server may not know the log's bounds (-1), only the nearest of them: the error's limit. Then the other is found in a second step, from
  /// beyond it.
  func offset(
    from position: Offset, _ error: MemQError, _ header: Memq_V1_FetchResponse
  ) -> Offset? {
    let nearest = error.limit.map { Offset($0) }
    switch self {
    case .fail: return nil
    case .nearest: return nearest
    case .beginning:
      if header.logStartOffset >= 0 { return Offset(header.logStartOffset) }
      return nearest.map { position > $0 ? .zero : $0 }
    case .end:
      if header.highWatermark >= 0 { return Offset(header.highWatermark) }
      return nearest.map { position > $0 ? $0 : Offset(Int64.max) }
    }
  }
}
