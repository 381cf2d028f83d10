// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQLog
import MemQModel
import MemQReplication
import MemQStorage
import MemQSystem
import NIOCore

/// The owner of a share of the node's partitions, bound to one event loop: all state here is touched on it alone.
final class PartitionShard: @unchecked Sendable {
  enum Event: Sendable {
    case append(InboundAppend)
    case durable([(partition: TopicPartition, number: WriteNumber)])
    case volumeFailed(VolumeID, MemQError)
    /// A write that the volume had taken and didn't make durable.
    case refused(VolumeID, MemQError)
    case localStartMoved(TopicPartition, Offset)
    case snapshotWanted(TopicPartition)
    /// Metadata knows that the log begins here now.
    case logStartRaised(TopicPartition, Offset)
    /// The volume is too full to note it.
    case logStartRefused(TopicPartition)
    case assign(DesiredPartition)
    case unassign(TopicPartition)
    /// On this volume, opened or moved on to its end.
    case opened(TopicPartition, VolumeID, Result<Void, MemQError>)
    case dropped(TopicPartition, VolumeID, Result<Void, MemQError>)
    case proposalAnswered(TopicPartition, ISRProposal, ISRAnswer)
    case leaderNews(TopicPartition, LeaderNews)
    case followerNews(TopicPartition, FollowerNews)
    case pushRead(TopicPartition, PushRead)
    /// Something of the partition does not read.
    case damaged(VolumeID, Volume.DamagedPartition)
    /// What the replica holds here is of no use: it is filled anew from this offset on.
    case startAfresh(TopicPartition, at: Offset)
    /// Somebody's question.
    case run(@Sendable (PartitionShard) -> Void)

    /// It opens or drops partitions.
    var changesPartitions: Bool {
      switch self {
      case .assign, .unassign, .opened, .dropped, .startAfresh: true
      default: false
      }
    }
  }

  private static let tickInterval: TimeAmount = .milliseconds(100)
  /// What failed is tried again this long after: a full disk heals in seconds at the earliest.
  private static let retryPause: Duration = .seconds(1)

  private struct Problem {
    enum Operation {
      case take
      case drop(VolumeID)
    }
    var error: MemQError
    var failed: Operation
    /// What the cluster wants now; nil: the partition is to go.
    var desired: DesiredPartition?
    /// Nil: trying again is of no use.
    var retryAt: MonotonicInstant?
  }

  let loop: any EventLoop
  let configuration: ReplicationNode.Configuration
  let clock: any MemQClock
  let logger: Logger
  let metrics: ReplicationMetrics
  let metadata: any MetadataProposals
  let streams: ReplicaStreams
  /// Its place among the node's shards.
  let index: Int
  private(set) var mailbox: Mailbox<Event>!
  private var lanes: [VolumeID: VolumeLane] = [:]
  /// Volumes that could not be opened, and why.
  private var closed: [VolumeID: MemQError] = [:]
  private(set) var partitions: [TopicPartition: PartitionOwner] = [:]
  var damageWatch: DamageWatch
  var refusals = RefusedLeaderships()
  var logEnds = AskedLogEnds()
  /// Called when a replica is no longer damaged.
  let damageChanged: @Sendable () -> Void
  /// What a volume holds of a partition: normally one of the node's does, two when the node stopped amid a move between them.
  private struct Copy: Hashable {
    var partition: TopicPartition
    var volume: VolumeID
  }
  /// On a volume, and without an owner yet.
  private var recovered: [Copy: Volume.RecoveredPartition] = [:]
  /// Being opened on, or dropped from, a volume; with what is wanted once that is done.
  private var changing: [TopicPartition: DesiredPartition?] = [:]
  /// Partitions that are wanted here, or unwanted, and can't be had, or be rid of.
  private var problems: [TopicPartition: Problem] = [:]
  /// A replica whose log is given up: where the next one begins, and the open numbers that are used up.
  private var fresh: [TopicPartition: (start: Offset, opens: OpenNumber)] = [:]
  /// Partitions with something to push, longest waiting first.
  private var line: [PartitionOwner] = []
  private(set) var isStopped = false
  private var ticks: RepeatedTask?
  private var retentionCheckedAt: MonotonicInstant
  /// A round of retention waits for metadata.
  private var isRaising = false
  private(set) var isDraining = false

  init(
    _ index: Int, on loop: any EventLoop, _ configuration: ReplicationNode.Configuration,
    clock: any MemQClock, logger: Logger, metrics: ReplicationMetrics,
    metadata: any MetadataProposals, streams: ReplicaStreams,
    damageChanged: @escaping @Sendable () -> Void
  ) {
    self.index = index
    self.loop = loop
    self.configuration = configuration
    self.clock = clock
    self.logger = logger
    self.metrics = metrics
    self.metadata = metadata
    self.streams = streams
    self.retentionCheckedAt = clock.monotonic
    self.damageWatch = DamageWatch(reportAt: clock.monotonic, checkAt: clock.monotonic)
    self.damageChanged = damageChanged
    self.mailbox = Mailbox(on: loop) { [weak self] events in self?.take(events) }
  }

  // MARK: - Life

  /// On the loop, once, before anything else.
  func start(
    _ volumes: [Volume], closed: [VolumeID: MemQError],
    recovered: [(volume: VolumeID, partition: Volume.RecoveredPartition)]
  ) {
    self.closed = closed
    for volume in volumes { self.lanes[volume.id] = VolumeLane(volume, shard: self) }
    for (volume, found) in recovered {
      self.recovered[Copy(partition: found.partition, volume: volume)] = found
    }
    self.ticks = self.loop.scheduleRepeatedTask(
      initialDelay: Self.tickInterval, delay: Self.tickInterval
    ) { [weak self] _ in self?.tick() }
  }

  /// Refuses appends from now on. True when none waits any more.
  func drain() -> Bool {
    self.isDraining = true
    return self.partitions.values.allSatisfy { $0.waitingCount == 0 }
      && self.lanes.values.allSatisfy { $0.parkedCount == 0 }
  }

  func stop() {
    self.isStopped = true
    self.ticks?.cancel()
    self.ticks = nil
    for owner in self.partitions.values { owner.retire() }
    self.partitions = [:]
  }

  private func take(_ events: [Event]) {
    for event in events { self.handle(event) }
    for lane in self.lanes.values { lane.flush() }
    self.pushWaiting()
    self.tellLogEnds(at: self.clock.monotonic)
  }

  private func handle(_ event: Event) {
    // The volumes close: what is not changed now is found at the next start, and wanted again.
    if self.isStopped && event.changesPartitions { return }
    switch event {
    case .append(let append): self.appendArrived(append)
    case .durable(let numbers):
      for (partition, number) in numbers {
        self.partitions[partition]?.feed(.durable(through: number))
      }
      for lane in self.lanes.values { lane.goOn(at: self.clock.monotonic) }
    case .volumeFailed(let id, let error): self.volumeFailed(id, error)
    case .refused(let id, let error):
      // A volume that closes while it is full, or after a write was filed, is no failed one.
      if error.code != .volumeFull && error.code != .shuttingDown { self.volumeFailed(id, error) }
    case .localStartMoved(let partition, let offset):
      self.partitions[partition]?.feed(.localStartMoved(offset))
    case .snapshotWanted(let partition): self.partitions[partition]?.feed(.snapshotWanted)
    case .logStartRaised(let partition, let offset):
      self.partitions[partition]?.logStartRaised(to: offset)
    case .logStartRefused(let partition): self.partitions[partition]?.logStartRefused()
    case .assign(let desired): self.assign(desired)
    case .unassign(let partition): self.unassign(partition)
    case .opened(let partition, let volume, let result): self.opened(partition, volume, result)
    case .dropped(let partition, let volume, let result):
      self.dropped(partition, volume, result)
    case .proposalAnswered(let partition, let proposal, let answer):
      self.partitions[partition]?.feed(.leader(.proposalAnswered(proposal, answer)))
    case .leaderNews(let partition, let news): self.take(news, of: partition)
    case .followerNews(let partition, let news): self.take(news, of: partition)
    case .pushRead(let partition, let read):
      read.feed.release(read.charged, .catchUp)
      self.partitions[partition]?.take(read)
    case .damaged(let volume, let found): self.damaged(found, on: volume)
    case .startAfresh(let partition, let offset): self.startAfresh(partition, at: offset)
    case .run(let body): body(self)
    }
  }

  private func take(_ news: LeaderNews, of partition: TopicPartition) {
    if let owner = self.partitions[partition] { return owner.take(news) }
    // It may be opened here in a moment.
    if case .opened(let request, let feed) = news { feed.refuse(request, of: partition, .notReady) }
  }

  private func take(_ news: FollowerNews, of partition: TopicPartition) {
    if let owner = self.partitions[partition] { return owner.take(news) }
    if case .pushed(let push) = news { push.taken() }
  }

  private func tick() {
    let now = self.clock.monotonic
    for owner in self.partitions.values where owner.core.needsTick { owner.feed(.tick) }
    if !self.problems.isEmpty { self.retry(at: now) }
    for owner in self.partitions.values { owner.retryLogStart() }
    self.watchDamage(at: now)
    self.tellRefusals(at: now)
    self.tellLogEnds(at: now)
    for lane in self.lanes.values {
      lane.goOn(at: now)
      lane.expire(at: now)
      lane.flush()
    }
    self.pushWaiting()
    self.sendHeartbeats(at: now)
    self.applyRetention(at: now)
    self.metrics.setParked(self.lanes.values.reduce(0) { $0 + $1.parkedCount })
  }

  /// While a volume has no room left, what may go should not wait.
  private var retentionInterval: Duration {
    let isFull = self.lanes.values.contains { $0.failure == nil && $0.volume.isFull(for: 0) }
    let interval = self.configuration.retentionCheckInterval
    return isFull ? Swift.min(interval, .seconds(1)) : interval
  }

  /// Has metadata know, at intervals, which records are past their topics' retention.
  private func applyRetention(at now: MonotonicInstant) {
    guard !self.isStopped, !self.isRaising, let node = self.partitions.values.first?.desired.member,
      now - self.retentionCheckedAt >= self.retentionInterval
    else { return }
    self.retentionCheckedAt = now
    let starts = self.partitions.values.compactMap { $0.retentionStart() }
    guard !starts.isEmpty else { return }
    self.isRaising = true
    let (metadata, mailbox, logger) = (self.metadata, self.mailbox!, self.logger)
    Task {
      for first in stride(from: 0, to: starts.count, by: LogStartRaise.perRequestMax) {
        let part = Array(starts[first..<min(first + LogStartRaise.perRequestMax, starts.count)])
        let errors = await metadata.raise(part, of: node.id.node, node.nodeEpoch)
        for (start, error) in zip(part, errors) {
          guard let error else {
            mailbox.post(.logStartRaised(start.partition, start.offset))
            continue
          }
          // The next round says it again.
          logger.debug(
            "Retention waits",
            metadata: ["partition": "\(start.partition)", "error": "\(error)"])
        }
      }
      mailbox.post(.run { $0.isRaising = false })
    }
  }

  private func sendHeartbeats(at now: MonotonicInstant) {
    var batch = HeartbeatBatch()
    var numbers = ReplicationMetrics.Replicas()
    for owner in self.partitions.values {
      owner.addHeartbeats(to: &batch, at: now)
      guard let leader = owner.core.leader else { continue }
      if leader.inSyncReplicas.count < leader.replicaCount { numbers.underReplicated += 1 }
      numbers.lagMax = Swift.max(numbers.lagMax, leader.followerLagMax)
    }
    batch.send()
    self.metrics.set(numbers, shard: self.index)
  }

  // MARK: - Pushes

  func wantsToPush(_ owner: PartitionOwner) {
    guard !owner.isInLine else { return }
    owner.isInLine = true
    self.line.append(owner)
  }

  /// Gives each partition its turn; those that found no room stay in the line, in front of those that come.
  func pushWaiting() {
    guard !self.line.isEmpty else { return }
    let owners = self.line
    self.line = []
    for owner in owners {
      owner.isInLine = false
      if owner.push() { self.wantsToPush(owner) }
    }
  }

  func after(_ wait: Duration, _ body: @escaping () -> Void) {
    // The loop runs it on itself; nothing leaves this thread.
    nonisolated(unsafe) let body = body
    self.loop.scheduleTask(in: .nanoseconds(wait.nanoseconds)) { body() }
  }

  /// A partition that the image counts on here, and that the volume lost with what named it. Before it is assigned.
  func lost(_ missing: Volume.RecoveredPartition, on volume: VolumeID) {
    self.recovered[Copy(partition: missing.partition, volume: volume)] = missing
  }

  // MARK: - Appends

  private func appendArrived(_ append: InboundAppend) {
    guard let owner = self.partitions[append.partition] else {
      return self.refuse(append, self.missing(append.partition))
    }
    if owner.lane.failure == nil && !owner.lane.admit(append) { return }
    owner.decide(append)
    owner.lane.decided()
  }

  /// A parked append whose turn has come.
  func decide(_ append: InboundAppend) {
    guard let owner = self.partitions[append.partition] else {
      return self.refuse(append, self.missing(append.partition))
    }
    owner.decide(append)
  }

  func refuse(_ append: InboundAppend, _ error: MemQError) {
    self.metrics.refused(error.code)
    append.stream.post(.credit(append.messageBytes))
    append.stream.post(.done(append.acks == .none ? nil : append.response(error)))
  }

  /// Why there is no owner for a partition.
  func missing(_ partition: TopicPartition) -> MemQError {
    if let problem = self.problems[partition], problem.desired != nil { return problem.error }
    if self.changing[partition] != nil {
      return MemQError(
        .leaderNotAvailable, "the partition is being opened here", subject: "\(partition)")
    }
    return MemQError(.notLeader, "this node doesn't hold the partition", subject: "\(partition)")
  }

  /// What a partition that was found damaged still gives where nobody else can lead it: everything below the damage, read-only.
  ///
  /// - Throws: why there is no owner.
  func damagedView(_ partition: TopicPartition) throws(MemQError) -> PartitionView {
    guard let desired = self.problems[partition]?.desired,
      desired.assignment.leader == desired.member.id,
      let found = self.found(desired), var end = found.damagedFrom,
      let lane = self.lanes[desired.member.id.volume], lane.failure == nil
    else { throw self.missing(partition) }
    // Alone it holds nothing that is not committed; else only what is known to be.
    if desired.assignment.replicas.count > 1 {
      end = Swift.max(Swift.min(end, found.highWatermark), found.logStart)
    }
    let isCut = found.logStart > Swift.max(found.uploadedOffset, desired.uploadedOffset)
    return PartitionView(
      name: desired.name, volume: lane.volume, highWatermark: end, isHighWatermarkCurrent: false,
      logStart: Swift.max(isCut ? found.logStart : .zero, desired.logStart),
      localStart: lane.volume.state(of: partition)?.localStart ?? end, logEnd: end,
      leaderEpoch: desired.assignment.leaderEpoch,
      // Where the damage begins says nothing of what readers have read: nothing is compared.
      epochs: EpochCache())
  }

  // MARK: - Partitions come and go

  private func assign(_ desired: DesiredPartition) {
    if desired.damagedFrom != nil { self.damageWatch.suspects.insert(desired.id) }
    if let owner = self.partitions[desired.id] {
      guard owner.desired.member.id.volume == desired.member.id.volume else {
        return self.move(owner, to: desired)
      }
      self.noteLogEndAsked(desired, before: owner.desired)
      owner.assign(desired)
      return self.fillAnew(owner)
    }
    if self.changing[desired.id] != nil {
      self.changing[desired.id] = .some(desired)
    } else if let problem = self.problems[desired.id] {
      if case .take = problem.failed,
        problem.desired?.member.id.volume != desired.member.id.volume
      {
        self.problems[desired.id] = nil
        return self.take(up: desired)
      }
      self.problems[desired.id]!.desired = desired
      if let found = self.found(desired) { self.repair(found, desired) }
    } else {
      self.take(up: desired)
    }
  }

  /// A damaged replica is filled anew from its leader, as soon as nobody counts on what it holds: until it is out of the ISR and can't be
  /// elected, an empty log in its place would pass for all that was committed.
  @discardableResult
  private func repair(
    _ found: Volume.RecoveredPartition, _ desired: DesiredPartition
  ) -> Bool {
    guard found.damage != nil || desired.damagedFrom != nil, !desired.isTrusted,
      desired.assignment.leader != nil,
      let lane = self.lanes[desired.member.id.volume], lane.failure == nil
    else { return false }
    self.logger.warning(
      "A damaged replica is filled anew from its leader",
      metadata: [
        "partition": "\(desired.name)",
        "damaged.from": "\(found.damagedFrom ?? desired.damagedFrom ?? found.end)",
      ])
    self.problems[desired.id] = nil
    self.forget(desired)
    self.drop(desired.id, from: lane)
    self.changing[desired.id] = .some(desired)
    return true
  }

  /// What the volume that the cluster names holds of the partition, and nobody owns yet.
  private func found(_ desired: DesiredPartition) -> Volume.RecoveredPartition? {
    self.recovered[Copy(partition: desired.id, volume: desired.member.id.volume)]
  }

  /// - Returns: whether there was anything.
  @discardableResult
  private func forget(_ desired: DesiredPartition) -> Bool {
    self.forget(desired.id, on: desired.member.id.volume)
  }

  @discardableResult
  private func forget(_ partition: TopicPartition, on volume: VolumeID) -> Bool {
    self.recovered.removeValue(forKey: Copy(partition: partition, volume: volume)) != nil
  }

  /// Begins to drop a copy that stands on another volume than the cluster names, if there is one.
  ///
  /// - Parameter wanted: taken up once it is gone; nil: nothing is.
  /// - Returns: false: there is none.
  private func dropOther(_ partition: TopicPartition, wanted: DesiredPartition?) -> Bool {
    let lane = self.lanes.values.first { lane in
      lane.failure == nil && lane.volume.id != wanted?.member.id.volume
        && self.recovered[Copy(partition: partition, volume: lane.volume.id)] != nil
    }
    guard let lane else { return false }
    self.logger.notice(
      "A copy is dropped that the cluster has elsewhere",
      metadata: ["partition": "\(partition)", "volume": "\(lane.volume.id)"])
    self.forget(partition, on: lane.volume.id)
    self.drop(partition, from: lane)
    self.changing[partition] = .some(wanted)
    return true
  }

  /// The cluster knows the partition and has no replica of it here: what was found of it at the start goes.
  func dropStray(_ partition: TopicPartition) {
    guard self.partitions[partition] == nil, self.changing[partition] == nil,
      self.problems[partition] == nil
    else { return }
    _ = self.dropOther(partition, wanted: nil)
  }

  /// As `repair`, for one that was found damaged while it served.
  func fillAnew(_ owner: PartitionOwner) {
    guard let from = owner.desired.damagedFrom, !owner.isKnownWhole, !owner.desired.isTrusted,
      owner.desired.assignment.leader != nil, owner.lane.failure == nil,
      self.partitions[owner.id] === owner
    else { return }
    self.logger.warning(
      "A damaged replica is filled anew from its leader",
      metadata: ["partition": "\(owner.name)", "damaged.from": "\(from)"])
    self.renew(owner, at: owner.desired.firstOffset, after: owner.core.opens)
  }

  /// Found damaged when its volume opened.
  func foundDamaged(
    _ partition: TopicPartition
  ) -> (DesiredPartition, Volume.RecoveredPartition)? {
    guard let desired = self.problems[partition]?.desired, let found = self.found(desired),
      found.damage != nil, self.lanes[desired.member.id.volume]?.failure == nil
    else { return nil }
    return (desired, found)
  }

  func isChanging(_ partition: TopicPartition) -> Bool { self.changing[partition] != nil }

  /// Makes an owner for the partition, or says why there is none.
  private func take(up desired: DesiredPartition) {
    guard let lane = self.lanes[desired.member.id.volume] else {
      if let error = self.closed[desired.member.id.volume] {
        self.note(error, of: desired, isFinal: true)
      }
      return
    }
    if let failure = lane.failure { return self.note(failure, of: desired, isFinal: true) }
    if self.dropOther(desired.id, wanted: desired) { return }
    if let found = self.found(desired) {
      if self.repair(found, desired) { return }
      if let damage = found.damage {
        self.damageWatch.suspects.insert(desired.id)
        return self.note(damage, of: desired, isFinal: true)
      }
      return self.resume(desired, found, lane)
    }
    // An empty disk: what was uploaded is the object tier's, the log goes on from there.
    self.changing[desired.id] = .some(desired)
    let (mailbox, volume, id) = (self.mailbox!, lane.volume, desired.id)
    let start = Swift.max(desired.firstOffset, self.fresh[id]?.start ?? .zero)
    lane.inOrder {
      volume.openPartition(id, logStart: start, epochs: []) { result in
        mailbox.post(.opened(id, volume.id, result))
      }
    }
  }

  private func note(
    _ error: MemQError, of desired: DesiredPartition, isFinal: Bool,
    failed: Problem.Operation = .take
  ) {
    self.logger.error(
      "A partition can't be served",
      metadata: ["partition": "\(desired.name)", "error": "\(error)"])
    self.problems[desired.id] = Problem(
      error: error, failed: failed, desired: desired,
      retryAt: isFinal ? nil : self.clock.monotonic + Self.retryPause)
  }

  private func retry(at now: MonotonicInstant) {
    for (partition, problem) in self.problems {
      guard let retryAt = problem.retryAt, retryAt <= now else { continue }
      self.problems[partition] = nil
      switch problem.failed {
      case .take: if let desired = problem.desired { self.take(up: desired) }
      case .drop(let volume):
        guard let lane = self.lanes[volume] else { continue }
        self.drop(partition, from: lane)
        self.changing[partition] = .some(problem.desired)
      }
    }
  }

  private func resume(
    _ desired: DesiredPartition, _ found: Volume.RecoveredPartition, _ lane: VolumeLane
  ) {
    guard found.end >= desired.firstOffset else {
      guard desired.assignment.replicas.count > 1 else {
        return self.skipToUploaded(desired, from: found.end, lane)
      }
      // The leader tells of what this replica doesn't hold; nothing older may contradict it.
      self.logger.warning(
        "A replica ends below what is uploaded or deleted and is filled anew from there",
        metadata: [
          "partition": "\(desired.name)", "end": "\(found.end)",
          "offset": "\(desired.firstOffset)",
        ])
      self.forget(desired)
      self.drop(desired.id, from: lane)
      return self.changing[desired.id] = .some(desired)
    }
    do {
      let rules = self.configuration.rules
      let log = ReplicaLog(
        start: found.logStart, end: found.end, highWatermark: found.highWatermark,
        uploadedOffset: found.uploadedOffset, epochs: try EpochCache(found.epochs),
        producers: try ProducerState(
          snapshot: found.producerSnapshot, start: found.producerSnapshotEnd,
          batches: found.batchesAfterSnapshot, limits: rules.producers))
      self.forget(desired)
      self.own(desired, log, lane, localStart: lane.volume.localBytes(desired.id).localStart)
    } catch {
      self.note(error, of: desired, isFinal: true)
    }
  }

  /// The volume holds less than what is uploaded or deleted: that is final, the log goes on behind it.
  private func skipToUploaded(
    _ desired: DesiredPartition, from end: Offset, _ lane: VolumeLane
  ) {
    self.logger.warning(
      "The volume ends below what is uploaded or deleted; the log goes on from there",
      metadata: [
        "partition": "\(desired.name)", "end": "\(end)", "offset": "\(desired.firstOffset)",
      ])
    self.changing[desired.id] = .some(desired)
    let (mailbox, volume, id) = (self.mailbox!, lane.volume, desired.id)
    lane.inOrder {
      volume.setLogStart(id, to: desired.firstOffset) {
        mailbox.post(.opened(id, volume.id, $0))
      }
    }
  }

  private func opened(
    _ partition: TopicPartition, _ volume: VolumeID, _ result: Result<Void, MemQError>
  ) {
    guard let lane = self.lanes[volume], let wanted = self.changing.removeValue(forKey: partition)
    else { return }
    if case .failure(let error) = result {
      if let desired = wanted {
        return self.note(
          lane.failure ?? error, of: desired, isFinal: lane.failure != nil)
      }
      if self.forget(partition, on: volume) { self.drop(partition, from: lane) }
      return
    }
    guard let desired = wanted, desired.member.id.volume == volume,
      let state = lane.volume.state(of: partition)
    else {
      self.forget(partition, on: volume)
      self.drop(partition, from: lane)
      self.changing[partition] = wanted
      return
    }
    // More may have been uploaded, or deleted, since this was asked for.
    guard state.end >= desired.firstOffset else {
      return self.skipToUploaded(desired, from: state.end, lane)
    }
    do {
      let log = ReplicaLog(
        start: state.logStart, end: state.end, highWatermark: state.end,
        uploadedOffset: state.end, epochs: try EpochCache(state.epochs),
        producers: ProducerState(at: state.end, limits: self.configuration.rules.producers))
      let hasSkipped = self.forget(desired)
      let opens = self.fresh.removeValue(forKey: partition)?.opens ?? .zero
      self.own(desired, log, lane, localStart: state.end, after: opens, isKnownWhole: true)
      // Of what was skipped no producer counts any more, after a restart neither.
      if hasSkipped { self.partitions[partition]?.feed(.snapshotWanted) }
    } catch {
      self.note(error, of: desired, isFinal: true)
    }
  }

  private func own(
    _ desired: DesiredPartition, _ log: ReplicaLog, _ lane: VolumeLane, localStart: Offset,
    after opens: OpenNumber = .zero, isKnownWhole: Bool = false
  ) {
    let owner = PartitionOwner(desired, log: log, lane: lane, shard: self, after: opens)
    owner.isKnownWhole = isKnownWhole
    if desired.damagedFrom != nil { self.damageWatch.suspects.insert(desired.id) }
    self.partitions[desired.id] = owner
    owner.feed(.localStartMoved(localStart))
    owner.applyRetention()
    self.noteLogEndAsked(desired, before: nil)
    owner.assign(desired)
  }

  /// The leader has nothing that would follow what is here: all of it goes, and the log begins anew.
  private func startAfresh(_ partition: TopicPartition, at offset: Offset) {
    guard let owner = self.partitions[partition], let follower = owner.core.follower,
      owner.lane.failure == nil
    else { return }
    self.logger.warning(
      "A replica is filled anew",
      metadata: ["partition": "\(owner.name)", "offset": "\(offset)"])
    self.renew(owner, at: offset, after: follower.number)
  }

  /// One that is to lead, and holds another history than what is uploaded or deleted, or less: it goes on behind that.
  func beginAbove(_ partition: TopicPartition) {
    guard let owner = self.partitions[partition], owner.core.leader == nil,
      !owner.desired.mayLead(with: owner.core.log), owner.lane.failure == nil
    else { return }
    let offset = owner.desired.firstOffset
    self.logger.warning(
      "A replica lacks what is uploaded or deleted, or holds other records; its log goes on from there",
      metadata: [
        "partition": "\(owner.name)", "end": "\(owner.core.log.end)", "offset": "\(offset)",
      ])
    self.renew(owner, at: offset, after: owner.core.opens)
  }

  /// The cluster has the replica on another volume of this node: nobody counts on what is here, the leader fills the new one.
  private func move(_ owner: PartitionOwner, to desired: DesiredPartition) {
    self.logger.notice(
      "A replica goes to another volume",
      metadata: [
        "partition": "\(owner.name)", "volume.from": "\(owner.lane.volume.id)",
        "volume.to": "\(desired.member.id.volume)",
      ])
    self.partitions[owner.id] = nil
    owner.retire()
    // A failed volume takes no drop; what it holds is dropped when it opens again.
    guard owner.lane.failure == nil else { return self.take(up: desired) }
    self.drop(owner.id, from: owner.lane)
    self.changing[owner.id] = .some(desired)
  }

  /// Gives up the replica's log; the next one begins at the offset.
  private func renew(_ owner: PartitionOwner, at offset: Offset, after opens: OpenNumber) {
    self.fresh[owner.id] = (offset, opens)
    self.partitions[owner.id] = nil
    owner.retire()
    self.drop(owner.id, from: owner.lane)
    self.changing[owner.id] = .some(owner.desired)
  }

  /// The topic is gone, or the replica moved away: its records here go.
  private func unassign(_ partition: TopicPartition) {
    self.fresh[partition] = nil
    if self.changing[partition] != nil {
      self.changing[partition] = .some(nil)
      return
    }
    if let problem = self.problems.removeValue(forKey: partition) {
      if case .drop = problem.failed {
        self.problems[partition] = problem
        self.problems[partition]!.desired = nil
      } else if let desired = problem.desired, self.forget(desired),
        let lane = self.lanes[desired.member.id.volume]
      {
        self.drop(partition, from: lane)
      }
      return
    }
    guard let owner = self.partitions.removeValue(forKey: partition) else { return }
    owner.retire()
    self.drop(partition, from: owner.lane)
  }

  private func drop(_ partition: TopicPartition, from lane: VolumeLane) {
    self.changing[partition] = .some(nil)
    let (mailbox, volume) = (self.mailbox!, lane.volume)
    lane.inOrder {
      volume.dropPartition(partition) { mailbox.post(.dropped(partition, volume.id, $0)) }
    }
  }

  private func dropped(
    _ partition: TopicPartition, _ volume: VolumeID, _ result: Result<Void, MemQError>
  ) {
    guard let wanted = self.changing.removeValue(forKey: partition) else { return }
    // One that the volume lost has nothing to drop.
    if case .failure(let error) = result, error.code != .partitionNotFound {
      self.logger.error(
        "Could not drop a partition", metadata: ["partition": "\(partition)", "error": "\(error)"])
      let isFinal = self.lanes[volume]?.failure != nil
      // What a failed volume holds is dropped when it opens again.
      if isFinal, let desired = wanted, desired.member.id.volume != volume {
        return self.take(up: desired)
      }
      self.problems[partition] = Problem(
        error: error, failed: .drop(volume), desired: wanted,
        retryAt: isFinal ? nil : self.clock.monotonic + Self.retryPause)
      return
    }
    self.damageChanged()
    if let desired = wanted { return self.take(up: desired) }
    _ = self.dropOther(partition, wanted: nil)
  }

  private func volumeFailed(_ id: VolumeID, _ error: MemQError) {
    guard let lane = self.lanes[id], lane.failure == nil else { return }
    lane.failed(error)
    for owner in self.partitions.values where owner.lane === lane { owner.retire() }
  }

  func failure(of volume: VolumeID) -> MemQError? { self.lanes[volume]?.failure }

  // MARK: - Metadata

  func propose(_ proposal: ISRProposal, for owner: PartitionOwner) {
    let (id, mailbox) = (owner.id, self.mailbox!)
    self.logger.notice(
      "Proposes an ISR",
      metadata: [
        "partition": "\(owner.name)", "leader.epoch": "\(proposal.leaderEpoch)",
        "isr": "\(proposal.isr.map { "\($0.id.node)" }.joined(separator: ","))",
      ])
    let replicas = owner.desired.assignment.replicas.map(\.id)
    self.metadata.propose(proposal, of: id, replicas: replicas) { answer in
      mailbox.post(.proposalAnswered(id, proposal, answer))
    }
  }
}
