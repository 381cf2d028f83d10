// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQLog
import MemQModel
import MemQRecords
import MemQReplication
import MemQStorage
import MemQSystem
import NIOCore
import SwiftProtobuf

/// One partition of this node. Lives on its shard's loop: asks the rules and carries out what they say, nothing between.
final class PartitionOwner {
  /// A request that the rules have and that waits for its answer.
  private struct Waiting {
    var stream: AppendStream
    var requestID: UInt64
    var wantsAnswer: Bool
    var receivedAt: MonotonicInstant
    /// The partition is near its cap: its producers are slowed by so much.
    var slowedBy: Duration
  }

  private(set) var desired: DesiredPartition
  private(set) var core: PartitionReplica
  let lane: VolumeLane
  unowned let shard: PartitionShard
  private var waiting: [UInt64: Waiting] = [:]
  private var lastToken: UInt64 = 0
  /// The batch being decided on: `.write` takes it.
  private var deciding: (token: UInt64, append: InboundAppend)?
  private var readers: [UInt64: PartitionReader] = [:]
  private var effects: [ReplicationEffect] = []
  /// What the volume was told last.
  private var toldUploadedOffset = Offset.zero
  private var appliedLogStart = Offset.zero
  private var hasLogStartDue = false
  /// The batch that was pushed here and is being decided on: `.write` takes it.
  var writing: (token: UInt64, slices: [ByteBuffer], byteCount: Int)?
  /// While it leads: what is on its way to the other replicas.
  var pushers: [ReplicaID: ReplicaPusher] = [:]
  /// Pushers that the event being handled ended: an open that takes their place takes over what they had on its way.
  var stopped: [ReplicaID: ReplicaPusher] = [:]
  /// Where the open that is being decided on came from.
  var asking: ReplicaFeed?
  /// Records of it do not read.
  var damage: ReplicaDamage? { didSet { if self.damage != nil { self.isKnownWhole = false } } }
  /// Begun anew on this volume in this life of the node, or looked at again: a mark in the image is of what was before.
  var isKnownWhole = false
  /// In the shard's line of those with something to push.
  var isInLine = false

  /// - Parameter opens: the last open number of an owner before, in this life of the node.
  init(
    _ desired: DesiredPartition, log: ReplicaLog, lane: VolumeLane, shard: PartitionShard,
    after opens: OpenNumber = .zero
  ) {
    self.desired = desired
    self.lane = lane
    self.shard = shard
    self.core = PartitionReplica(
      desired.member, log: log, configuration: shard.configuration.rules, after: opens)
  }

  var id: TopicPartition { self.desired.id }
  /// First offset that exists, wherever. What a replica lacks below its own beginning was uploaded, not deleted.
  var logStart: Offset {
    let log = self.core.log
    let own =
      log.start <= Swift.max(log.uploadedOffset, self.desired.uploadedOffset) ? .zero : log.start
    return Swift.max(own, self.desired.logStart)
  }
  var name: String { self.desired.name }

  // MARK: - Events

  func feed(_ event: PartitionReplica.Event) {
    precondition(self.effects.isEmpty, "the rules are asked one thing at a time")
    self.core.handle(event, at: self.shard.clock.monotonic, into: &self.effects)
    let effects = self.effects
    self.effects.removeAll(keepingCapacity: true)
    for effect in effects { self.perform(effect) }
    if !self.stopped.isEmpty {
      for pusher in self.stopped.values { pusher.end() }
      self.stopped = [:]
    }
    if !self.pushers.isEmpty { self.shard.wantsToPush(self) }
  }

  func nextToken() -> UInt64 {
    self.lastToken += 1
    return self.lastToken
  }

  /// Takes over what the cluster wants; any number of changes may lie in between.
  func assign(_ desired: DesiredPartition) {
    let before = self.desired
    self.desired = desired
    // An image may be older than an answer of metadata's.
    self.desired.logStart = Swift.max(desired.logStart, before.logStart)
    if desired.assignment.leader == desired.member.id, self.core.leader == nil,
      !desired.mayLead(with: self.core.log)
    {
      return self.shard.mailbox.post(.run { [id] in $0.beginAbove(id) })
    }
    if desired.member.nodeEpoch > before.member.nodeEpoch {
      self.feed(.registered(desired.member.nodeEpoch))
    }
    self.applyUploadedOffset()
    self.applyLogStart()
    self.applyRetention()
    self.feed(.assigned(desired.assignment))
    if self.core.leader == nil { self.wakeReaders() }
  }

  private func applyUploadedOffset() {
    let offset = self.desired.uploadedOffset
    guard offset > self.toldUploadedOffset else { return }
    self.toldUploadedOffset = offset
    self.feed(.uploadedOffsetMoved(offset))
    self.lane.volume.setUploadedOffset(self.id, to: offset)
  }

  /// Lets go of what the cluster says is deleted, as far as it is committed here.
  private func applyLogStart(again: Bool = false) {
    let offset = Swift.min(self.desired.logStart, self.core.highWatermark)
    guard offset > self.appliedLogStart else { return }
    self.appliedLogStart = offset
    guard again || offset > self.core.log.start else { return }
    self.feed(.logStartMoved(offset))
    let (volume, partition, mailbox) = (self.lane.volume, self.id, self.shard.mailbox!)
    self.lane.inOrder {
      volume.setLogStart(partition, to: offset) { result in
        guard case .failure(let error) = result else { return }
        mailbox.post(.refused(volume.id, error))
        // A full volume: it is what frees it, so it is said again.
        if error.code == .volumeFull { mailbox.post(.logStartRefused(partition)) }
      }
    }
  }

  /// The volume had no room to note it: once more, in a moment.
  func logStartRefused() {
    self.appliedLogStart = .zero
    self.hasLogStartDue = true
  }

  /// Tries again what a full volume refused.
  func retryLogStart() {
    guard self.hasLogStartDue else { return }
    self.hasLogStartDue = false
    self.applyLogStart(again: true)
  }

  /// Metadata has taken over a later beginning; the image that says so may come after the answer.
  func logStartRaised(to offset: Offset) {
    self.desired.logStart = Swift.max(self.desired.logStart, offset)
    self.applyLogStart()
    self.wakeReaders()
  }

  /// Where retention by age and size lets the log begin; nil: where it does. Of a partition with an object tier the size counts over both
  /// tiers, so the uploader, which knows the objects, sees to that.
  func retentionStart() -> LogStartRaise? {
    guard let leader = self.core.leader, leader.isHighWatermarkCurrent, self.lane.failure == nil
    else { return nil }
    let bytes = self.desired.hasObjectTier ? nil : self.desired.retentionBytes
    let since = self.desired.retention.map { age in
      Timestamp(milliseconds: self.shard.clock.wall.milliseconds - age.milliseconds)
    }
    guard bytes != nil || since != nil,
      let start = self.lane.volume.retentionStart(self.id, bytes: bytes, appendedSince: since)
    else { return nil }
    let offset = Swift.min(start, leader.highWatermark)
    guard offset > self.logStart else { return nil }
    return LogStartRaise(partition: self.id, leaderEpoch: leader.epoch, offset: offset)
  }

  /// What to tell metadata so that records below `offset` are deleted; nil offset: all that is committed.
  ///
  /// - Throws: `.notLeader`, `.leaderNotAvailable`, `.offsetOutOfRange` above the committed end.
  func deletion(below offset: Offset?) throws(MemQError) -> LogStartRaise {
    let view = try self.leaderView(epoch: nil)
    guard view.isHighWatermarkCurrent else {
      throw MemQError(
        .leaderNotAvailable, "the new leader doesn't know the committed end yet", subject: self.name
      )
    }
    let wanted = offset ?? view.highWatermark
    guard wanted <= view.highWatermark else {
      throw MemQError(
        .offsetOutOfRange, "only committed records can be deleted", subject: self.name,
        limit: view.highWatermark.rawValue, actual: wanted.rawValue)
    }
    return LogStartRaise(
      partition: self.id, leaderEpoch: view.leaderEpoch, offset: Swift.max(wanted, view.logStart))
  }

  func applyRetention() {
    self.lane.volume.setLocalRetention(
      self.id, bytes: self.desired.localRetentionBytes,
      milliseconds: self.desired.localRetention?.milliseconds,
      hasObjectTier: self.desired.hasObjectTier, capBytes: self.capBytes)
  }

  func decide(_ append: InboundAppend) {
    let slowedBy: Duration
    do throws(MemQError) {
      try self.check(append)
      slowedBy = try self.checkCap(append.header.batchLength)
    } catch {
      return self.shard.refuse(append, error)
    }
    let token = self.nextToken()
    self.waiting[token] = Waiting(
      stream: append.stream, requestID: append.requestID, wantsAnswer: append.acks != .none,
      receivedAt: append.receivedAt, slowedBy: slowedBy)
    self.deciding = (token, append)
    let header = append.header
    self.feed(
      .leader(
        .append(
          AppendRequest(
            token: token, recordCount: Int64(header.recordCount),
            producerID: header.producerID, producerEpoch: header.producerEpoch,
            baseSequence: header.isIdempotent ? header.baseSequence : -1,
            maxTimestamp: header.maxTimestamp, appendTime: self.shard.clock.wall,
            acks: append.acks, leaderEpoch: append.leaderEpoch, deadline: append.deadline))))
    self.deciding = nil
    append.stream.post(.credit(append.messageBytes))
  }

  /// What the rules don't judge: the topic's own limit, and the state of the disk.
  private func check(_ append: InboundAppend) throws(MemQError) {
    if let failure = self.lane.failure { throw failure }
    try self.checkDamage()
    if self.shard.isDraining {
      throw MemQError(.shuttingDown, "the node is shutting down", subject: self.name)
    }
    guard append.header.batchLength <= self.desired.messageBytesMax else {
      throw MemQError(
        .recordBatchTooLarge, "the batch has more bytes than max.message.bytes allows",
        subject: self.name, limit: Int64(self.desired.messageBytesMax),
        actual: Int64(append.header.batchLength))
    }
    guard append.header.batchLength <= self.lane.batchBytesMax else {
      throw MemQError(
        .recordBatchTooLarge,
        "the batch has more bytes than this volume's segments take: make segment.bytes larger",
        subject: self.name, limit: Int64(self.lane.batchBytesMax),
        actual: Int64(append.header.batchLength))
    }
  }

  /// `local.retention.bytes` is the most that only this disk has of the partition: near it producers are slowed, past it refused.
  /// 0 means that uploaded records leave the SSD at once, and caps nothing.
  private var capBytes: Int64? { self.desired.localRetentionBytes.flatMap { $0 > 0 ? $0 : nil } }

  /// - Returns: how long the answer should wait.
  /// - Throws: `.partitionQuotaExceeded`, retriable.
  private func checkCap(_ byteCount: Int) throws(MemQError) -> Duration {
    guard self.capBytes != nil else { return .zero }
    switch self.lane.volume.room(of: self.id, for: byteCount) {
    case .open: return .zero
    case .slowed(let wait):
      self.shard.metrics.slowed()
      return wait
    case .full(let error):
      throw MemQError(
        error.code, error.message, subject: self.name, limit: error.limit, actual: error.actual)
    }
  }

  /// The partition leaves this node, or its volume failed.
  func retire() {
    self.feed(.retired)
    for replica in self.pushers.keys { self.stopPushing(to: replica) }
    self.wakeReaders()
  }

  var waitingCount: Int { self.waiting.count }

  // MARK: - Effects

  private func perform(_ effect: ReplicationEffect) {
    switch effect {
    case .startEpoch(let number, let start):
      self.write(number, .startEpoch(start))
      self.shard.logger.notice(
        "Leads a partition",
        metadata: [
          "partition": "\(self.name)", "leader.epoch": "\(start.epoch)",
          "offset": "\(start.start)",
        ])
    case .write(let number, let summary, let token):
      self.append(number, summary, token)
    case .truncate(let number, let end, let epochs):
      self.write(number, .truncate(to: end, epochs: epochs))
    case .highWatermark(let offset):
      self.lane.volume.setHighWatermark(self.id, to: offset)
      self.applyLogStart()
      self.wakeReaders()
    case .producerSnapshot(let bytes, let at):
      let (volume, partition) = (self.lane.volume, self.id)
      self.lane.inOrder { volume.setProducerSnapshot(partition, bytes: bytes, at: at) }
    case .reply(let token, let outcome): self.reply(token, outcome)
    case .propose(let proposal): self.shard.propose(proposal, for: self)
    case .refuseLeadership(let epoch):
      self.shard.logger.warning(
        "Waits for another election: the log already holds this leader epoch",
        metadata: ["partition": "\(self.name)", "leader.epoch": "\(epoch)"])
      self.shard.refusals.waiting.insert(self.id)
    case .answer(let answer): self.send(answer)
    case .stopPushing(let replica):
      if let pusher = self.pushers.removeValue(forKey: replica) { self.stopped[replica] = pusher }
    case .open(let request): self.send(request)
    case .position(let position): self.send(position)
    case .startAfresh(let offset): self.shard.mailbox.post(.startAfresh(self.id, at: offset))
    }
  }

  private func append(_ number: WriteNumber, _ summary: BatchSummary, _ token: UInt64) {
    let (slices, byteCount): ([ByteBuffer], Int)
    if let writing = self.writing, writing.token == token {
      (slices, byteCount) = (writing.slices, writing.byteCount)
      self.shard.metrics.replicated(bytes: byteCount)
    } else if let (deciding, append) = self.deciding, deciding == token {
      (slices, byteCount) = (append.batch, append.header.batchLength)
      self.shard.metrics.appended(bytes: byteCount)
    } else {
      preconditionFailure("a write comes with the batch that is being decided on")
    }
    self.lane.append(
      Volume.Append(partition: self.id, summary: summary, batch: slices),
      byteCount: byteCount, number: number)
  }

  /// A write that isn't an append, in order with those. A full volume delays it: it fails nothing.
  private func write(_ number: WriteNumber, _ change: Volume.Change) {
    let (volume, partition, mailbox) = (self.lane.volume, self.id, self.shard.mailbox!)
    self.lane.inOrderOnceTaken {
      do throws(MemQError) {
        try volume.submit(change, of: partition) { result in
          switch result {
          case .success: mailbox.post(.durable([(partition, number)]))
          case .failure(let error): mailbox.post(.refused(volume.id, error))
          }
        }
        return true
      } catch {
        return false
      }
    }
  }

  private func reply(_ token: UInt64, _ outcome: AppendOutcome) {
    guard let waiting = self.waiting.removeValue(forKey: token) else { return }
    self.count(outcome, waiting)
    guard waiting.wantsAnswer else { return waiting.stream.post(.done(nil)) }
    let logStart = self.logStart.rawValue
    let response = Memq_V1_AppendResponse.with {
      $0.requestID = waiting.requestID
      $0.logStartOffset = logStart
      $0.baseOffset = -1
      $0.endOffset = -1
      switch outcome {
      case .appended(let base, let end, let at):
        $0.baseOffset = base.rawValue
        $0.endOffset = end.rawValue
        $0.appendTimeMs = at.milliseconds
      case .duplicate(let base):
        $0.duplicate = true
        if let base { $0.baseOffset = base.rawValue }
      case .refused(let refusal):
        $0.error = Memq_V1_ErrorDetail(refusal.error(self.name))
      }
    }
    guard waiting.slowedBy > .zero else { return waiting.stream.post(.done(response)) }
    self.shard.after(waiting.slowedBy) { waiting.stream.post(.done(response)) }
  }

  private func count(_ outcome: AppendOutcome, _ waiting: Waiting) {
    switch outcome {
    case .appended:
      self.shard.metrics.acknowledged(after: self.shard.clock.monotonic - waiting.receivedAt)
    case .duplicate: self.shard.metrics.duplicate()
    case .refused(let refusal): self.shard.metrics.refused(refusal.error(self.name).code)
    }
  }

  // MARK: - Readers

  /// Readers of one partition that may wait at once.
  private static let readersMax = 10_000

  func add(_ reader: PartitionReader) {
    if let answer = self.answer(reader) { return reader.resume(answer) }
    guard self.readers.count < Self.readersMax else {
      return reader.resume(
        .failure(
          MemQError(
            .resourceExhausted, "too many readers wait for this partition", subject: self.name,
            limit: Int64(Self.readersMax), actual: Int64(self.readers.count + 1))))
    }
    self.readers[reader.id] = reader
    let wait = Swift.max(.zero, reader.deadline - self.shard.clock.monotonic)
    self.shard.after(wait) { [weak self] in self?.endWait(reader.id) }
  }

  /// Ends a wait as it is: its time is over, or nobody waits any more.
  func endWait(_ id: UInt64) {
    guard let reader = self.readers.removeValue(forKey: id) else { return }
    reader.resume(self.view(for: reader))
  }

  private func wakeReaders() {
    guard !self.readers.isEmpty else { return }
    for reader in self.readers.values {
      guard let answer = self.answer(reader) else { continue }
      self.readers[reader.id] = nil
      reader.resume(answer)
    }
  }

  /// Nil: nothing to say yet.
  private func answer(_ reader: PartitionReader) -> Result<PartitionView, MemQError>? {
    switch self.view(for: reader) {
    case .failure(let error): .failure(error)
    case .success(let view):
      view.truncation != nil || view.highWatermark > reader.offset
        || reader.deadline <= self.shard.clock.monotonic
        ? .success(view) : nil
    }
  }

  private func view(for reader: PartitionReader) -> Result<PartitionView, MemQError> {
    do throws(MemQError) {
      var view = try self.leaderView(epoch: reader.leaderEpoch)
      if let lastEpoch = reader.lastEpoch {
        // A leader that is behind must not judge who has read from a later one.
        guard lastEpoch <= view.leaderEpoch else {
          throw AppendRefusal.unknownLeaderEpoch(current: view.leaderEpoch).error(self.name)
        }
        view.truncation = view.epochs.truncation(
          forReaderAt: reader.offset, lastEpoch: lastEpoch, logStart: view.logStart,
          logEnd: view.logEnd)
        if view.truncation != nil { return .success(view) }
      }
      try view.check(reader.offset, self.name)
      return .success(view)
    } catch {
      return .failure(error)
    }
  }

  /// What the leader may tell; refused elsewhere.
  func leaderView(epoch: LeaderEpoch?) throws(MemQError) -> PartitionView {
    if let failure = self.lane.failure { throw failure }
    guard let leader = self.core.leader else {
      throw AppendRefusal.notLeader.error(self.name)
    }
    if let epoch, epoch != leader.epoch {
      throw epoch < leader.epoch
        ? AppendRefusal.fencedLeaderEpoch(current: leader.epoch).error(self.name)
        : AppendRefusal.unknownLeaderEpoch(current: leader.epoch).error(self.name)
    }
    return PartitionView(
      name: self.name, volume: self.lane.volume, highWatermark: leader.highWatermark,
      isHighWatermarkCurrent: leader.isHighWatermarkCurrent, logStart: self.logStart,
      localStart: leader.log.localStart, logEnd: leader.log.end, leaderEpoch: leader.epoch,
      epochs: leader.log.epochs)
  }
}
