// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQReplication

/// A storage node: its disk, which outlives crashes, and the replicas of one life.
struct SimNode {
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
  var replicas: [PartitionReplica?]
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
  /// The last wake that was given: the volume shows it until it asks for another.
  var lastWake: MonotonicInstant?
  /// Milliseconds its wall clock is off.
  var clockError: Int64 = 0
  var ticks = 0
  /// How far each replica's log below its high watermark has been checked.
  var checked: [Int]

  /// - Parameter isOrdered: messages don't overtake each other; else much on its way at once is only torn up and sent anew.
  init(number: Int, partitions: Int, seed: UInt64, isOrdered: Bool, mutation: Mutation?) {
    self.number = number
    var random = Randomness(seed: seed, stream: 100 + UInt64(number))
    self.window = Int64(random.pick([5, 20, 40, isOrdered ? 200 : 10]))
    self.clockRate = Int64(random.pick([1_000, 1_000, 990, 1_010, 900, 1_100]))
    self.heartbeatTicks = random.pick([1, 2, 2, 8])
    self.random = random
    self.volume = SimVolume(node: number, partitions: partitions, mutation: mutation)
    self.replicas = Array(repeating: nil, count: partitions)
    self.pushers = Array(repeating: [], count: partitions)
    self.checked = Array(repeating: 0, count: partitions)
  }

  mutating func token() -> UInt64 {
    self.lastToken += 1
    return self.lastToken
  }

  mutating func crash() {
    self.forget()
    self.volume.crash(&self.random)
  }

  /// An orderly end.
  mutating func stop(at now: MonotonicInstant, wall: Timestamp) throws(Shadow.Broken) {
    try self.volume.close(at: now, wall: wall)
    self.forget()
  }

  private mutating func forget() {
    self.isUp = false
    self.life += 1
    self.epoch = nil
    self.imageRevision = .zero
    self.drainsUntil = nil
    self.replicas = Array(repeating: nil, count: self.replicas.count)
    self.pushers = Array(repeating: [], count: self.pushers.count)
    self.payloads = [:]
    self.waiting = [:]
    self.checked = Array(repeating: 0, count: self.checked.count)
    self.pausedUntil = 0
    self.quietUntil = 0
    self.scheduledWork = 0
    self.scheduledWake = nil
    self.lastWake = nil
  }
}
