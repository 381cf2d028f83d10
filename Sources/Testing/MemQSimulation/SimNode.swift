// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog
import MemQMetadata
import MemQModel
import MemQReplication

/// A storage node: its disk, which outlives crashes, and the replicas of one life.
final class SimNode {
  /// A box: looking at a replica copies nothing of it.
  final class Replica {
    var core: PartitionReplica
    init(_ core: PartitionReplica) { self.core = core }
  }

  /// Where a leader stands with pushing to one follower.
  struct Pusher {
    var node: Int
    var number: OpenNumber
    var next: Offset
    /// The follower's durable end: at most `window` records are on their way beyond it.
    var acknowledged: Offset
  }

  let number: Int
  /// Records on their way to one follower, at most.
  let window: Int64
  /// Its clock gains so much each 1,000 units of true time.
  let clockRate: Int64
  /// Ticks between heartbeats.
  let heartbeatTicks: Int
  var random: Randomness
  var volume: SimVolume
  var isUp = false
  /// A write of its disk failed: its volume is out of use until it restarts.
  var isVolumeFailed = false
  /// How long it goes on without it.
  var failsFor: Int64 = 0
  /// Events of an earlier life are dropped.
  var life = 0
  var attempt = 0
  var epoch: NodeEpoch?
  /// The metadata instance it talks to, and when it last heard of it.
  var instance = 0
  var heardAt: Int64 = 0
  /// The newest image it took over in this life.
  var imageRevision = Revision.zero
  /// It is about to stop; by then at the latest.
  var drainsUntil: Int64?
  /// How long it will stay away after that.
  var awayFor: Int64 = 0
  var replicas: [Replica?]
  var pushers: [[Pusher]]
  /// The payload behind a token of `.write`, until then.
  var payloads: [UInt64: [UInt64]] = [:]
  var waiting: [UInt64: (client: Int, attempt: Int)] = [:]
  var lastToken: UInt64 = 0
  /// Deliveries and ticks wait until then.
  var pausedUntil: Int64 = 0
  /// No heartbeats leave until then.
  var quietUntil: Int64 = 0
  var diskMax = 1_000_000
  /// Disk work that has its time; the rest is given one.
  var scheduledWork = 0
  var scheduledWake: MonotonicInstant?
  /// Milliseconds its wall clock is off.
  var clockError: Int64 = 0
  var ticks = 0
  /// What each replica was told: below it the object tier is the log.
  var toldUploaded: [Offset]
  /// Where its log begins, as far as it was told and could follow.
  var appliedStart: [Offset]
  /// Where it is to begin by what it was told.
  var wantedStart: [Offset]
  /// Filled anew in this life: what metadata says of damage is of what was before.
  var isKnownWhole: [Bool]
  /// What of uploaded records stays.
  let retention: LocalRetention
  /// Where a log that was given up begins anew, and the last open number of the replica before.
  var fresh: [(start: Offset, opens: OpenNumber)?]
  /// Where each replica has to start afresh, once what it says now is done.
  var renewal: [Offset?]
  /// How far each replica's log below its high watermark has been checked.
  var checked: [Int]

  /// - Parameter isOrdered: messages don't overtake each other; else much on its way at once is only torn up and sent anew.
  init(
    number: Int, partitions: Int, seed: UInt64, isOrdered: Bool, options: SimulationOptions
  ) {
    self.number = number
    var random = Randomness(seed: seed, stream: 100 + UInt64(number))
    self.window = Int64(random.pick([5, 20, 40, isOrdered ? 200 : 10]))
    self.clockRate = Int64(random.pick([1_000, 1_000, 990, 1_010, 900, 1_100]))
    self.heartbeatTicks = random.pick([1, 2, 2, 8])
    self.random = random
    self.volume = SimVolume(
      node: number, partitions: partitions, mutation: options.mutation,
      slotsMax: options.diskSegments)
    self.replicas = Array(repeating: nil, count: partitions)
    self.pushers = Array(repeating: [], count: partitions)
    self.checked = Array(repeating: 0, count: partitions)
    self.toldUploaded = Array(repeating: .zero, count: partitions)
    self.appliedStart = Array(repeating: .zero, count: partitions)
    self.wantedStart = Array(repeating: .zero, count: partitions)
    self.isKnownWhole = Array(repeating: false, count: partitions)
    var kept = Randomness(seed: seed, stream: 300 + UInt64(number))
    self.retention = LocalRetention(
      bytes: kept.pick([nil, 0, 30_000, 300_000]), hasObjectTier: true)
    self.fresh = Array(repeating: nil, count: partitions)
    self.renewal = Array(repeating: nil, count: partitions)
  }

  /// A replica is gone from the memory of its node.
  func forget(_ partition: Int) {
    self.replicas[partition] = nil
    self.pushers[partition] = []
    self.checked[partition] = 0
    self.toldUploaded[partition] = .zero
    self.appliedStart[partition] = .zero
    self.wantedStart[partition] = .zero
    self.renewal[partition] = nil
  }

  func token() -> UInt64 {
    self.lastToken += 1
    return self.lastToken
  }

  func crash() {
    self.forget()
    self.volume.crash(&self.random)
  }

  func loseVolume() { self.volume.crash(&self.random, isFailed: true) }

  /// An orderly end.
  func stop(at now: MonotonicInstant, wall: Timestamp) throws(Shadow.Broken) {
    if !self.isVolumeFailed, try !self.volume.close(at: now, wall: wall) { self.loseVolume() }
    self.forget()
  }

  private func forget() {
    self.isUp = false
    self.isVolumeFailed = false
    self.life += 1
    self.epoch = nil
    self.imageRevision = .zero
    self.drainsUntil = nil
    for partition in self.replicas.indices {
      self.forget(partition)
      self.fresh[partition] = nil
      self.isKnownWhole[partition] = false
    }
    self.payloads = [:]
    self.waiting = [:]
    self.pausedUntil = 0
    self.quietUntil = 0
    self.scheduledWork = 0
    self.scheduledWake = nil
  }
}
