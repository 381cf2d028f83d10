// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import Glibc
import Logging
import MemQLog
import MemQModel
import MemQSystem

/// Runs a volume core's effects on the volume's own threads.
///
/// One lock owns the core and everything filed from it. Threads take disk work first, then answers; answers leave in
/// order, one thread at a time. Nothing here decides: see `VolumeCore`.
final class VolumeEngine: Sendable {
  /// A group write, two syncs, an allocation, a segment that is retired, and answers can all be under way at once.
  private static let threadCount = 6
  /// Idle marks tick every few milliseconds; the core's own looks at a full disk are a second apart.
  private static let roomInterval: Duration = .milliseconds(500)

  struct State {
    var core: VolumeCore
    var cache: TailCache
    var readAhead: ReadAhead
    /// Batches that wait for their group.
    var payloads: [PayloadID: StoredBatch] = [:]
    var completions: [RequestID: Completion] = [:]
    var nextRequest: UInt64 = 1
    var jobs: Deque<DiskJob> = []
    var deliveries: [Delivery] = []
    var isDelivering = false
    /// Of the syncs under way, whose open files are their own: the kernel tells each open file of a failed write-back once.
    var lanes = SyncLanes()
    var wakeAt: MonotonicInstant?
    /// Since when each thread waits for the disk.
    var diskSince = [MonotonicInstant?](repeating: nil, count: VolumeEngine.threadCount)
    /// Threads end once nothing is left to do, or at once when `isAbandoned`.
    var isStopped = false
    var isAbandoned = false
    var isClosed = false
    var onFailure: (@Sendable (MemQError) -> Void)?
    var onLocalStartMoved: (@Sendable (TopicPartition, Offset) -> Void)?
    var onSnapshotWanted: (@Sendable (TopicPartition) -> Void)?
    /// When the core was last told what the file system has free.
    var roomAt: MonotonicInstant?
    var whenStarted: (@Sendable (MemQError?) -> Void)?
    var effects: [VolumeCore.Effect] = []
    var measures = DiskMeasures()
    /// What does not read of which partition.
    var damaged: [TopicPartition: Volume.DamagedPartition] = [:]
    var onDamage: (@Sendable (Volume.DamagedPartition) -> Void)?
  }

  struct Completion {
    let body: Volume.Completion
    /// Batches up to here are durable with it.
    let serial: UInt64?
  }

  enum DiskJob {
    case write(GroupWrite, [StoredBatch])
    case sync(SegmentSlot, GroupNumber, lane: Int)
    case allocate(SegmentSlot)
    case retire(SegmentSlot, [UInt8])
  }

  enum Delivery {
    case completion(RequestID, Result<Void, MemQError>)
    case callback(@Sendable () -> Void)
  }

  enum Action {
    case job(DiskJob)
    case deliver([@Sendable () -> Void])
    case tick
    case end
  }

  let monitor: Monitor<State>
  let disk: any VolumeDisk
  let files: SegmentFiles
  let identity: VolumeIdentity
  let clock: any MemQClock
  let logger: Logger
  let metrics: VolumeMetrics
  private let cleaner = VolumeCleaner()
  /// Not under `monitor`: threads that read never keep appends from it.
  let footers: Monitor<FooterCache>
  let reading = ReadMeasures()
  private let threads = Monitor<[OwnThread]>([])

  init(
    core: VolumeCore, disk: any VolumeDisk, files: SegmentFiles,
    configuration: Volume.Configuration, clock: any MemQClock, logger: Logger
  ) {
    self.monitor = Monitor(
      State(
        core: core, cache: TailCache(bytesMax: configuration.tailCacheBytes),
        readAhead: ReadAhead(bytesMax: configuration.readAheadBytes)))
    self.footers = Monitor(FooterCache(bytesMax: configuration.footerCacheBytes))
    self.disk = disk
    self.files = files
    self.identity = core.identity
    self.clock = clock
    self.logger = logger
    self.metrics = VolumeMetrics(volume: core.identity.volume)
  }

  func startThreads() {
    self.threads.withLock { threads in
      for index in 0..<Self.threadCount {
        threads.append(OwnThread(name: "memq-disk-\(index)") { self.run(index) })
      }
      threads.append(OwnThread(name: "memq-clean") { self.cleaner.run(self) })
    }
  }

  // MARK: - Into the core

  /// Asks the core under the lock and files what follows.
  func send(_ event: VolumeCore.Event) {
    self.update { $0.core.handle(event, at: $1, wall: $2, into: &$0.effects) }
  }

  /// Changes the state under the lock, files the effects and wakes threads for them.
  func update<R>(
    _ body: (inout State, MonotonicInstant, Timestamp) throws(MemQError) -> R
  ) throws(MemQError) -> R {
    let (now, wall) = (self.clock.monotonic, self.clock.wall)
    var wakes = 0
    defer { for _ in 0..<wakes { self.monitor.signal() } }
    return try self.monitor.withLock { (state) throws(MemQError) in
      defer { wakes = self.file(&state) }
      return try body(&state, now, wall)
    }
  }

  func update<R>(_ body: (inout State, MonotonicInstant, Timestamp) -> R) -> R {
    self.update(waking: { $0 }, body)
  }

  /// As `update`, on a thread of this volume that looks for work next: one less is to be woken.
  func updateThenTake(_ body: (inout State, MonotonicInstant, Timestamp) -> Void) {
    self.update(waking: { max(0, $0 - 1) }, body)
  }

  private func update<R>(
    waking count: (Int) -> Int, _ body: (inout State, MonotonicInstant, Timestamp) -> R
  ) -> R {
    let (now, wall) = (self.clock.monotonic, self.clock.wall)
    var wakes = 0
    let result = self.monitor.withLock { state in
      let result = body(&state, now, wall)
      wakes = self.file(&state)
      return result
    }
    for _ in 0..<count(wakes) { self.monitor.signal() }
    return result
  }

  /// Turns effects into disk work and answers. Returns how many threads have something to do.
  private func file(_ state: inout State) -> Int {
    let jobsBefore = state.jobs.count
    let deliveriesBefore = state.deliveries.count
    let wakeBefore = state.wakeAt
    var effects: [VolumeCore.Effect] = []
    swap(&effects, &state.effects)
    for effect in effects { self.file(effect, &state) }
    effects.removeAll(keepingCapacity: true)
    swap(&effects, &state.effects)
    if state.whenStarted != nil { self.noteStart(&state) }
    var wakes = state.jobs.count - jobsBefore
    if state.deliveries.count > deliveriesBefore, !state.isDelivering { wakes += 1 }
    // An earlier time than any thread waits for is a thread's work of its own.
    if let wake = state.wakeAt, wake != wakeBefore,
      wakes == 0 || wakeBefore.map({ wake < $0 }) ?? true
    {
      wakes += 1
    }
    return wakes
  }

  private func file(_ effect: VolumeCore.Effect, _ state: inout State) {
    switch effect {
    case .write(let group):
      var batches: [StoredBatch] = []
      for case .payload(let id, _) in group.parts[0].pieces {
        batches.append(state.payloads.removeValue(forKey: id)!)
      }
      state.jobs.append(.write(group, batches))
    case .sync(let slot, let group): state.jobs.append(.sync(slot, group, lane: state.lanes.take()))
    case .allocate(let slot): state.jobs.append(.allocate(slot))
    case .retire(let slot, let block): state.jobs.append(.retire(slot, block))
    case .carry(let plan): self.cleaner.carry(plan)
    case .damageFound(let partition, let error, let from):
      self.logger.error(
        "Records are damaged; the cleaner leaves their partition where it is",
        metadata: [
          "volume": "\(self.identity.volume)", "partition": "\(partition)", "error": "\(error)",
        ])
      guard state.damaged[partition] == nil else { return }
      // Otherwise somewhere in what is here; a read finds the place.
      let damaged = Volume.DamagedPartition(
        partition: partition,
        from: from ?? state.core.offsets(of: partition)?.lowerBound ?? .zero, error: error,
        isPlaceKnown: from != nil)
      state.damaged[partition] = damaged
      guard let body = state.onDamage else { return }
      state.deliveries.append(.callback { body(damaged) })
    case .complete(let request, let result):
      // The rest when it is delivered: the next write or sync, which comes of the same event, is not to wait for a hundred of these.
      state.deliveries.append(.completion(request, result))
    case .localStartMoved(let partition, let start):
      state.cache.trim(partition, to: start)
      guard let body = state.onLocalStartMoved else { return }
      state.deliveries.append(.callback { body(partition, start) })
    case .segmentRolled: break
    case .snapshotWanted(let partition):
      guard let body = state.onSnapshotWanted else { return }
      state.deliveries.append(.callback { body(partition) })
    case .failed(let error):
      self.logger.error(
        "The volume failed", metadata: ["volume": "\(self.identity.volume)", "error": "\(error)"])
      state.payloads = [:]
      guard let body = state.onFailure else { return }
      state.deliveries.append(.callback { body(error) })
    case .wake(let time): state.wakeAt = time
    }
  }

  private func noteStart(_ state: inout State) {
    guard let body = state.whenStarted, state.core.isStarted || state.core.failure != nil else {
      return
    }
    state.whenStarted = nil
    let failure = state.core.failure
    state.deliveries.append(.callback { body(failure) })
  }

  // MARK: - Threads

  private func run(_ index: Int) {
    while true {
      switch self.nextAction(index) {
      case .job(let job): self.perform(job)
      case .deliver(let deliveries): self.deliver(deliveries)
      case .tick: self.tick()
      case .end: return
      }
    }
  }

  /// Room that something else freed or took in the file system is noticed here; a look costs one statvfs.
  private func tick() {
    let now = self.clock.monotonic
    let isRoomDue = self.monitor.withLock { state in
      if let last = state.roomAt, now < last + Self.roomInterval { return false }
      state.roomAt = now
      return true
    }
    let available = isRoomDue ? self.availableBytes() : nil
    let stats = self.update { state, now, wall in
      if let available {
        state.core.handle(
          .room(availableBytes: available), at: now, wall: wall, into: &state.effects)
      }
      state.core.handle(.tick, at: now, wall: wall, into: &state.effects)
      state.cache.shrink()
      return isRoomDue ? state.core.stats : nil
    }
    if let stats { self.metrics.stands(stats) }
  }

  private func nextAction(_ index: Int) -> Action {
    let clock = self.clock
    return self.monitor.await { state in
      state.diskSince[index] = nil
      if state.isAbandoned { return .done(.end) }
      if let job = state.jobs.popFirst() {
        state.diskSince[index] = clock.monotonic
        return .done(.job(job))
      }
      if !state.deliveries.isEmpty, !state.isDelivering {
        return .done(.deliver(Self.takeDeliveries(&state)))
      }
      if state.isStopped, !state.isDelivering { return .done(.end) }
      if let wake = state.wakeAt, wake <= clock.monotonic {
        state.wakeAt = nil
        return .done(.tick)
      }
      return .wait(until: state.wakeAt)
    }
  }

  private static func takeDeliveries(_ state: inout State) -> [@Sendable () -> Void] {
    state.isDelivering = true
    var bodies: [@Sendable () -> Void] = []
    bodies.reserveCapacity(state.deliveries.count)
    var durableBelow: UInt64 = 0
    for delivery in state.deliveries {
      switch delivery {
      case .completion(let request, let result):
        guard let completion = state.completions.removeValue(forKey: request) else { continue }
        if let serial = completion.serial { durableBelow = max(durableBelow, serial) }
        bodies.append { completion.body(result) }
      case .callback(let body): bodies.append(body)
      }
    }
    state.deliveries.removeAll(keepingCapacity: true)
    state.cache.durable(below: durableBelow)
    return bodies
  }

  private func deliver(_ bodies: [@Sendable () -> Void]) {
    for body in bodies { body() }
    let (isMore, isStopped) = self.monitor.withLock { state in
      state.isDelivering = false
      return (!state.deliveries.isEmpty, state.isStopped)
    }
    // Threads that were to end and found this one delivering wait again: all of them, not just one.
    if isStopped { self.monitor.broadcast() } else if isMore { self.monitor.signal() }
  }

  /// Tells the threads to end at once, without waiting for them.
  func abandonThreads() {
    self.monitor.withLock { state in
      state.isStopped = true
      state.isAbandoned = true
    }
    self.cleaner.stop()
    self.monitor.broadcast()
  }

  /// Ends the threads after what there is to do, or at once.
  func stop(abandons: Bool) {
    self.monitor.withLock { state in
      state.isStopped = true
      state.isAbandoned = state.isAbandoned || abandons
    }
    self.cleaner.stop()
    self.monitor.broadcast()
    let threads = self.threads.withLock { threads in
      defer { threads = [] }
      return threads
    }
    for thread in threads { thread.join() }
    self.files.closeAll()
    self.disk.release()
  }
}
