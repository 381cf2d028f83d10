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
    case localStartMoved(TopicPartition, Offset)
    case snapshotWanted(TopicPartition)
    case assign(DesiredPartition)
    case unassign(TopicPartition)
    /// On this volume.
    case opened(TopicPartition, VolumeID, Result<Void, MemQError>)
    case dropped(TopicPartition, Result<Void, MemQError>)
    case proposalAnswered(TopicPartition, ISRProposal, ISRAnswer)
    /// Somebody's question.
    case run(@Sendable (PartitionShard) -> Void)
  }

  private static let tickInterval: TimeAmount = .milliseconds(100)

  let loop: any EventLoop
  let configuration: ReplicationNode.Configuration
  let clock: any MemQClock
  let logger: Logger
  let metrics: ReplicationMetrics
  let metadata: any MetadataProposals
  let transport: (any ReplicaTransport)?
  private(set) var mailbox: Mailbox<Event>!
  private var lanes: [VolumeID: VolumeLane] = [:]
  private(set) var partitions: [TopicPartition: PartitionOwner] = [:]
  private var recovered: [TopicPartition: Volume.RecoveredPartition] = [:]
  /// Being opened on, or dropped from, a volume; with what is wanted once that is done.
  private var changing: [TopicPartition: DesiredPartition?] = [:]
  private var ticks: RepeatedTask?
  private(set) var isDraining = false

  init(
    on loop: any EventLoop, _ configuration: ReplicationNode.Configuration, clock: any MemQClock,
    logger: Logger, metrics: ReplicationMetrics, metadata: any MetadataProposals,
    transport: (any ReplicaTransport)?
  ) {
    self.loop = loop
    self.configuration = configuration
    self.clock = clock
    self.logger = logger
    self.metrics = metrics
    self.metadata = metadata
    self.transport = transport
    self.mailbox = Mailbox(on: loop) { [weak self] events in self?.take(events) }
  }

  // MARK: - Life

  /// On the loop, once, before anything else.
  func start(_ volumes: [Volume], recovered: [TopicPartition: Volume.RecoveredPartition]) {
    for volume in volumes { self.lanes[volume.id] = VolumeLane(volume, shard: self) }
    self.recovered = recovered
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
    self.ticks?.cancel()
    self.ticks = nil
    for owner in self.partitions.values { owner.retire() }
    self.partitions = [:]
  }

  private func take(_ events: [Event]) {
    for event in events { self.handle(event) }
    for lane in self.lanes.values { lane.flush() }
  }

  private func handle(_ event: Event) {
    switch event {
    case .append(let append): self.appendArrived(append)
    case .durable(let numbers):
      for (partition, number) in numbers {
        self.partitions[partition]?.feed(.durable(through: number))
      }
      for lane in self.lanes.values { lane.goOn(at: self.clock.monotonic) }
    case .volumeFailed(let id, let error): self.volumeFailed(id, error)
    case .localStartMoved(let partition, let offset):
      self.partitions[partition]?.feed(.localStartMoved(offset))
    case .snapshotWanted(let partition): self.partitions[partition]?.feed(.snapshotWanted)
    case .assign(let desired): self.assign(desired)
    case .unassign(let partition): self.unassign(partition)
    case .opened(let partition, let volume, let result): self.opened(partition, volume, result)
    case .dropped(let partition, let result): self.dropped(partition, result)
    case .proposalAnswered(let partition, let proposal, let answer):
      self.partitions[partition]?.feed(.leader(.proposalAnswered(proposal, answer)))
    case .run(let body): body(self)
    }
  }

  private func tick() {
    let now = self.clock.monotonic
    for owner in self.partitions.values where owner.core.needsTick { owner.feed(.tick) }
    for lane in self.lanes.values {
      lane.goOn(at: now)
      lane.expire(at: now)
      lane.flush()
    }
    self.metrics.setParked(self.lanes.values.reduce(0) { $0 + $1.parkedCount })
  }

  func after(_ wait: Duration, _ body: @escaping () -> Void) {
    // The loop runs it on itself; nothing leaves this thread.
    nonisolated(unsafe) let body = body
    self.loop.scheduleTask(in: .nanoseconds(wait.nanoseconds)) { body() }
  }

  // MARK: - Appends

  private func appendArrived(_ append: InboundAppend) {
    guard let owner = self.partitions[append.partition] else {
      return self.refuse(append, self.missing(append.partition))
    }
    if owner.lane.failure == nil && !owner.lane.admit(append) { return }
    owner.decide(append)
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
    if self.changing[partition] != nil {
      return MemQError(
        .leaderNotAvailable, "the partition is being opened here", subject: "\(partition)")
    }
    return MemQError(.notLeader, "this node doesn't hold the partition", subject: "\(partition)")
  }

  // MARK: - Partitions come and go

  private func assign(_ desired: DesiredPartition) {
    if let owner = self.partitions[desired.id] { return owner.assign(desired) }
    if self.changing[desired.id] != nil {
      self.changing[desired.id] = .some(desired)
      return
    }
    guard let lane = self.lanes[desired.member.id.volume], lane.failure == nil else { return }
    if let found = self.recovered.removeValue(forKey: desired.id) {
      return self.resume(desired, found, lane)
    }
    // An empty disk: what was uploaded is the object tier's, the log goes on from there.
    self.changing[desired.id] = .some(desired)
    let (mailbox, volume, id) = (self.mailbox!, lane.volume, desired.id)
    lane.inOrder {
      volume.openPartition(id, logStart: desired.uploadedOffset, epochs: []) { result in
        mailbox.post(.opened(id, volume.id, result))
      }
    }
  }

  private func resume(
    _ desired: DesiredPartition, _ found: Volume.RecoveredPartition, _ lane: VolumeLane
  ) {
    guard found.end >= desired.uploadedOffset else {
      return self.skipToUploaded(desired, from: found.end, lane)
    }
    do {
      let rules = self.configuration.rules
      let log = ReplicaLog(
        start: found.logStart, end: found.end, highWatermark: found.highWatermark,
        uploadedOffset: found.uploadedOffset, epochs: try EpochCache(found.epochs),
        producers: try ProducerState(
          snapshot: found.producerSnapshot, start: found.producerSnapshotEnd,
          batches: found.batchesAfterSnapshot, limits: rules.producers))
      self.own(desired, log, lane, localStart: lane.volume.localBytes(desired.id).localStart)
    } catch {
      self.logger.error(
        "A partition's state on the volume is damaged",
        metadata: ["partition": "\(desired.name)", "error": "\(error)"])
    }
  }

  /// The volume holds less than the object tier: uploaded ranges are final, the log goes on behind them.
  private func skipToUploaded(
    _ desired: DesiredPartition, from end: Offset, _ lane: VolumeLane
  ) {
    self.logger.warning(
      "The volume ends below the uploaded offset; the log goes on from there",
      metadata: [
        "partition": "\(desired.name)", "end": "\(end)", "uploaded": "\(desired.uploadedOffset)",
      ])
    self.changing[desired.id] = .some(desired)
    let (mailbox, volume, id) = (self.mailbox!, lane.volume, desired.id)
    lane.inOrder {
      volume.setLogStart(id, to: desired.uploadedOffset) {
        mailbox.post(.opened(id, volume.id, $0))
      }
    }
  }

  private func opened(
    _ partition: TopicPartition, _ volume: VolumeID, _ result: Result<Void, MemQError>
  ) {
    guard let wanted = self.changing.removeValue(forKey: partition) else { return }
    switch result {
    case .failure(let error):
      self.logger.error(
        "Could not open a partition", metadata: ["partition": "\(partition)", "error": "\(error)"])
    case .success:
      guard let lane = self.lanes[volume] else { return }
      guard let desired = wanted, desired.member.id.volume == volume else {
        self.drop(partition, from: lane)
        self.changing[partition] = wanted
        return
      }
      let log = ReplicaLog(
        emptyAt: desired.uploadedOffset, limits: self.configuration.rules.producers)
      self.own(desired, log, lane, localStart: desired.uploadedOffset)
    }
  }

  private func own(
    _ desired: DesiredPartition, _ log: ReplicaLog, _ lane: VolumeLane, localStart: Offset
  ) {
    let owner = PartitionOwner(desired, log: log, lane: lane, shard: self)
    self.partitions[desired.id] = owner
    owner.feed(.localStartMoved(localStart))
    owner.applyRetention()
    owner.assign(desired)
  }

  /// The topic is gone, or the replica moved away: its records here go.
  private func unassign(_ partition: TopicPartition) {
    if self.changing[partition] != nil {
      self.changing[partition] = .some(nil)
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
      volume.dropPartition(partition) { mailbox.post(.dropped(partition, $0)) }
    }
  }

  private func dropped(_ partition: TopicPartition, _ result: Result<Void, MemQError>) {
    let wanted = self.changing.removeValue(forKey: partition)
    if case .failure(let error) = result {
      self.logger.error(
        "Could not drop a partition", metadata: ["partition": "\(partition)", "error": "\(error)"])
    }
    if let wanted, let desired = wanted { self.assign(desired) }
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
