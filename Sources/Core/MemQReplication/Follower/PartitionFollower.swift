// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Follows one leader in one leader epoch: asks to be sent the log, cuts off what the leader doesn't have,
/// writes what is pushed, and reports what is durable.
///
///     phase      event                                  phase      effects
///     settling   durable, nothing on its way            opening    open
///     opening    accepted                               following
///     opening    diverged                               settling   truncate
///     opening    rejected                               waiting
///     opening    no answer in time (tick)               opening    open, next number
///     waiting    pause over (tick)                      settling
///     following  push at the log's end                  following  write
///     following  push or heartbeat beyond it            settling
///     following  durable, heartbeat                     following  position
///     following  silence (tick)                         settling
///     any        disconnected                           waiting
///     any        anything with another open number      unchanged  dropped
///
/// Invariants: an open states only what is durable, a cut included; each diverged answer lowers (last
/// epoch, end), so opening ends; the log is never cut at the high watermark, nor below the uploaded offset.
public struct PartitionFollower: Sendable {
  public enum Event: Sendable {
    case answered(OpenAnswer)
    /// The batch's bytes wait behind `token`.
    case pushed(Push, token: UInt64)
    case heartbeat(Heartbeat)
    /// The stream to the leader ended.
    case disconnected
    case tick
  }

  public enum Phase: Hashable, Sendable {
    case settling
    case opening
    case following
    case waiting
  }

  public let member: ReplicaMember
  public let epoch: LeaderEpoch
  public let leader: ReplicaID
  public internal(set) var log: ReplicaLog
  public private(set) var phase = Phase.settling
  public private(set) var number: OpenNumber
  /// The leader's producer snapshot covers more than the log holds yet: it is kept once the log ends there.
  private var keepSnapshotAt: Offset?
  /// No position is told before this write is durable: the leader takes it as the word that the history is held.
  private var silentUntil: WriteNumber?
  /// When the phase began, or the leader was last heard.
  private var since: MonotonicInstant
  private let configuration: ReplicationConfiguration
  private let weaknesses: Weaknesses

  /// - Parameter number: the last open number this life of the replica used.
  init(
    _ log: ReplicaLog, as member: ReplicaMember, of leader: ReplicaID, _ epoch: LeaderEpoch,
    after number: OpenNumber, _ configuration: ReplicationConfiguration, _ weaknesses: Weaknesses,
    at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    self.member = member
    self.epoch = epoch
    self.leader = leader
    self.log = log
    self.number = number
    self.since = now
    self.configuration = configuration
    self.weaknesses = weaknesses
    if log.producers.snapshotOffset > log.end {
      self.keepSnapshotAt = log.producers.snapshotOffset
    }
    if weaknesses.contains(.truncateToHighWatermark) && log.highWatermark < log.end {
      self.truncate(to: log.highWatermark, log.epochs.lastEpoch, into: &effects)
    }
    self.openWhenSettled(at: now, into: &effects)
  }

  public mutating func handle(
    _ event: Event, at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    switch event {
    case .answered(let answer): self.answered(answer, at: now, into: &effects)
    case .pushed(let push, let token): self.pushed(push, token, at: now, into: &effects)
    case .heartbeat(let heartbeat): self.heard(heartbeat, at: now, into: &effects)
    case .disconnected: self.enter(.waiting, at: now)
    case .tick: self.tick(at: now, into: &effects)
    }
  }

  mutating func durable(
    through number: WriteNumber, at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    var moved = self.log.settle(through: number)
    if let awaited = self.silentUntil, number >= awaited {
      self.silentUntil = nil
      moved = true
    }
    switch self.phase {
    case .settling: self.openWhenSettled(at: now, into: &effects)
    case .following: if moved { self.report(into: &effects) }
    case .opening, .waiting: break
    }
  }

  private mutating func answered(
    _ answer: OpenAnswer, at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    guard self.phase == .opening, answer.number == self.number, answer.leaderEpoch == self.epoch
    else { return }
    switch answer.result {
    case .accepted(let from):
      guard from == self.log.end, self.adopt(answer.history, into: &effects) else {
        return self.enter(.waiting, at: now)
      }
      self.enter(.following, at: now)
    case .diverged(let theirs):
      self.diverged(theirs, at: now, into: &effects)
    case .rejected(.belowLocalStart(let start)):
      self.enter(.waiting, at: now)
      if start > self.log.end { effects.append(.startAfresh(at: start)) }
    case .rejected:
      self.enter(.waiting, at: now)
    }
  }

  /// False when what the leader remembers was asked for, and is missing or doesn't hold.
  private mutating func adopt(
    _ history: LogHistory?, into effects: inout [ReplicationEffect]
  ) -> Bool {
    guard self.needsHistory else { return true }
    guard let history else { return false }
    do {
      let number = try self.log.adopt(history, limits: self.configuration.producers)
      // In this order: what is durable once the write is, includes the snapshot. A position says that both are.
      self.keepSnapshot(into: &effects)
      effects.append(.truncate(number, to: self.log.end, epochs: self.log.epochs.entries))
      self.silentUntil = number
    } catch {
      return false
    }
    return true
  }

  /// Has a snapshot from the leader kept as soon as the log reaches as far as it covers.
  private mutating func keepSnapshot(into effects: inout [ReplicationEffect]) {
    let at = self.log.producers.snapshotOffset
    guard at <= self.log.end else { return self.keepSnapshotAt = at }
    self.keepSnapshotAt = nil
    let snapshot = self.log.producers.peekSnapshot(through: at)
    effects.append(.producerSnapshot(snapshot.bytes, at: snapshot.at))
  }

  /// Cuts to where the two logs may still agree, and asks again.
  private mutating func diverged(
    _ theirs: EpochEnd, at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    let (epoch, end) = self.commonEnd(with: theirs)
    guard epoch < self.log.epochs.lastEpoch || end < self.log.end else {
      return self.enter(.waiting, at: now)
    }
    // Nor can the producers be told of a cut below what the leader's snapshot covers.
    let final =
      self.weaknesses.contains(.cutUploaded)
      ? self.log.start : Swift.max(self.log.uploadedOffset, self.log.start)
    guard end >= final || end == self.log.end,
      self.keepSnapshotAt == nil || end == self.log.end
    else {
      // Uploaded ranges are final, deleted ones too: what is below stays as it is, the rest comes anew.
      self.enter(.waiting, at: now)
      return effects.append(.startAfresh(at: final))
    }
    self.enter(.settling, at: now)
    self.truncate(to: end, epoch, into: &effects)
    self.openWhenSettled(at: now, into: &effects)
  }

  /// The end of the largest own epoch not above theirs. Always a batch boundary: within one epoch both
  /// logs hold the same batches, and an epoch's end is the next one's first batch.
  private func commonEnd(with theirs: EpochEnd) -> (LeaderEpoch, Offset) {
    guard let own = self.log.epochs.end(of: theirs.epoch, logEnd: self.log.end) else {
      // All epochs here are above theirs: nothing agrees.
      return (.none, self.log.epochs.entries.first?.start ?? self.log.end)
    }
    return (own.epoch, own.epoch == theirs.epoch ? Swift.min(own.end, theirs.end) : own.end)
  }

  private mutating func truncate(
    to end: Offset, _ lastEpoch: LeaderEpoch, into effects: inout [ReplicationEffect]
  ) {
    let number = self.log.truncate(
      to: end, lastEpoch: lastEpoch,
      keepsProducers: self.weaknesses.contains(.keepProducersOnCut))
    effects.append(.truncate(number, to: end, epochs: self.log.epochs.entries))
  }

  private mutating func pushed(
    _ push: Push, _ token: UInt64, at now: MonotonicInstant,
    into effects: inout [ReplicationEffect]
  ) {
    guard self.isCurrent(push.number, push.leaderEpoch) else { return }
    let batch = push.batch
    // A push that was sent twice.
    guard batch.baseOffset >= self.log.end else { return }
    guard batch.baseOffset == self.log.end, batch.endOffset > batch.baseOffset,
      batch.leaderEpoch >= self.log.epochs.lastEpoch,
      batch.leaderEpoch <= self.epoch || self.weaknesses.contains(.takeStalePushes)
    else { return self.reopen(at: now, into: &effects) }
    self.since = now
    let number = self.log.append(batch)
    effects.append(.write(number, batch, token: token))
    if let at = self.keepSnapshotAt, self.log.end >= at { self.keepSnapshot(into: &effects) }
    self.follow(push.highWatermark, into: &effects)
    if self.weaknesses.contains(.ackBeforeSync) { self.report(into: &effects) }
  }

  private mutating func heard(
    _ heartbeat: Heartbeat, at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    guard self.isCurrent(heartbeat.number, heartbeat.leaderEpoch) else { return }
    guard heartbeat.pushedThrough <= self.log.end else {
      return self.reopen(at: now, into: &effects)
    }
    self.since = now
    self.follow(heartbeat.highWatermark, into: &effects)
    self.report(into: &effects)
  }

  private func isCurrent(_ number: OpenNumber, _ epoch: LeaderEpoch) -> Bool {
    self.phase == .following
      && (number == self.number && epoch == self.epoch
        || self.weaknesses.contains(.takeStalePushes))
  }

  /// The leader's watermark holds even when it is lower: only the true one is monotonic.
  private mutating func follow(
    _ highWatermark: Offset, into effects: inout [ReplicationEffect]
  ) {
    let known = Swift.max(self.log.start, Swift.min(highWatermark, self.log.end))
    guard self.log.setHighWatermark(known) else { return }
    effects.append(.highWatermark(known))
    if let snapshot = self.log.takeSnapshot(batches: self.configuration.snapshotBatches) {
      effects.append(.producerSnapshot(snapshot.bytes, at: snapshot.at))
    }
  }

  private func report(into effects: inout [ReplicationEffect]) {
    guard self.silentUntil == nil else { return }
    let isLying = self.weaknesses.contains(.ackBeforeSync)
    effects.append(
      .position(
        FollowerPosition(
          follower: self.member, leaderEpoch: self.epoch, number: self.number,
          durableEnd: isLying ? self.log.end : self.log.durableEnd)))
  }

  private mutating func tick(at now: MonotonicInstant, into effects: inout [ReplicationEffect]) {
    let quiet = now - self.since
    switch self.phase {
    case .settling: self.openWhenSettled(at: now, into: &effects)
    case .opening:
      if quiet >= self.configuration.openTimeout { self.reopen(at: now, into: &effects) }
    case .following:
      if quiet >= self.configuration.silenceMax { self.reopen(at: now, into: &effects) }
    case .waiting:
      if quiet >= self.configuration.reopenPause { self.reopen(at: now, into: &effects) }
    }
  }

  private mutating func reopen(at now: MonotonicInstant, into effects: inout [ReplicationEffect]) {
    self.enter(.settling, at: now)
    self.openWhenSettled(at: now, into: &effects)
  }

  private mutating func openWhenSettled(
    at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    guard self.phase == .settling,
      self.log.isSettled || self.weaknesses.contains(.openBeforeDurable)
    else { return }
    self.number = self.number.next
    self.enter(.opening, at: now)
    effects.append(
      .open(
        OpenRequest(
          follower: self.member, leaderEpoch: self.epoch, number: self.number, end: self.log.end,
          lastEpoch: self.log.epochs.lastEpoch, needsHistory: self.needsHistory)))
  }

  private var needsHistory: Bool {
    self.log.needsHistory && !self.weaknesses.contains(.joinWithoutHistory)
  }

  private mutating func enter(_ phase: Phase, at now: MonotonicInstant) {
    self.phase = phase
    self.since = now
  }
}
