// Part of MemQ. SPDX-License-Identifier: Apache-2.0

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

  static let window: Int64 = 40

  let number: Int
  var volume: SimVolume
  var isUp = false
  /// Events of an earlier life are dropped.
  var life = 0
  var attempt = 0
  var epoch: NodeEpoch?
  var replicas: [PartitionReplica?]
  var pushers: [[Pusher]]
  /// The payload behind a token of `.write`, until then.
  var payloads: [UInt64: [UInt64]] = [:]
  var waiting: [UInt64: (client: Int, attempt: Int)] = [:]
  var lastToken: UInt64 = 0
  /// Deliveries and ticks wait until then.
  var pausedUntil: Int64 = 0
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

  init(number: Int, partitions: Int) {
    self.number = number
    self.volume = SimVolume(node: number, partitions: partitions)
    self.replicas = Array(repeating: nil, count: partitions)
    self.pushers = Array(repeating: [], count: partitions)
    self.checked = Array(repeating: 0, count: partitions)
  }

  mutating func token() -> UInt64 {
    self.lastToken += 1
    return self.lastToken
  }

  mutating func crash(_ random: inout Randomness) {
    self.isUp = false
    self.life += 1
    self.epoch = nil
    self.volume.crash(&random)
    self.replicas = Array(repeating: nil, count: self.replicas.count)
    self.pushers = Array(repeating: [], count: self.pushers.count)
    self.payloads = [:]
    self.waiting = [:]
    self.checked = Array(repeating: 0, count: self.checked.count)
    self.pausedUntil = 0
    self.scheduledWork = 0
    self.scheduledWake = nil
    self.lastWake = nil
  }
}
