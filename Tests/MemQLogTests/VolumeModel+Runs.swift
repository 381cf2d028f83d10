// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQTestSupport

extension VolumeModel {
  /// Runs random steps with crashes, kills and clean restarts in between.
  ///
  /// - Parameter rests: between two crashes a second passes in which the volume may make room. Each restart after a crash takes a
  ///   segment: a full disk that is never left alone has none at last.
  mutating func run(rounds: Int, steps: Int = 150, rests: Bool = false) throws {
    try self.open()
    for _ in 0..<rounds {
      let count = Int.random(in: 1...steps, using: &self.generator)
      for _ in 0..<count { try self.step() }
      // What time alone brings: uploads that are noticed, segments that are reclaimed, the cleaner's next look.
      if rests || self.generator.oneIn(2) { self.pass(.seconds(1)) }
      switch Int.random(in: 0..<6, using: &self.generator) {
      case 0: try self.closeAndOpen()
      case 1: try self.kill()
      default: try self.crash()
      }
      if self.generator.oneIn(2) { self.drain() }
    }
  }

  /// Everything is uploaded, or deleted where there is no object tier.
  mutating func letGo() {
    for partition in self.partitions.indices {
      if self.hasObjectTier(partition) {
        self.upload(partition)
      } else if self.partitions[partition].now.exists {
        self.raiseLogStart(partition, to: self.partitions[partition].now.end)
      }
    }
    self.drain()
  }

  /// One short run on a small disk, most of them full sooner or later, with `change` made before it starts.
  ///
  /// - Returns: how many cold segments were made.
  static func check(
    seed: UInt64, change: (inout VolumeModel) -> Void = { _ in }
  ) throws -> UInt64 {
    var model = VolumeModel(
      seed: seed, segmentBytes: 64 << 10, partitionCount: 3 + Int(seed % 3),
      slotsMax: 6 + Int(seed % 7))
    model.bodyBytesMax = 12_000
    model.truncatesDeep = seed % 2 == 0
    change(&model)
    try model.run(rounds: 3, steps: 100)
    return model.segmentsCarried
  }

  /// A longer run in which tiered partitions are uploaded in parts and truncated into what was carried of them.
  static func checkDeep(
    seed: UInt64, change: (inout VolumeModel) -> Void = { _ in }
  ) throws {
    var model = VolumeModel(seed: seed, segmentBytes: 64 << 10, partitionCount: 3, slotsMax: 10)
    model.bodyBytesMax = 3_000
    model.truncatesDeep = true
    change(&model)
    try model.run(rounds: 4, steps: 600, rests: true)
  }

  /// Runs in which what was carried of a tiered partition is truncated and written anew, part of that uploaded, and the rest carried, while
  /// other partitions keep the older cold segments.
  static func checkRewritten(
    seed: UInt64, change: (inout VolumeModel) -> Void = { _ in }
  ) throws {
    var model = VolumeModel(
      seed: seed, segmentBytes: 64 << 10, partitionCount: 3, slotsMax: 12 + Int(seed % 5))
    model.bodyBytesMax = 3_000
    model.truncatesDeep = true
    change(&model)
    try model.open()
    for _ in 0..<3 {
      for _ in 0..<Int.random(in: 1...40, using: &model.generator) { try model.step() }
      for _ in 0..<Int.random(in: 5...20, using: &model.generator) { model.append(1) }
      // These have no tier: they keep the cold segments.
      model.bodyBytesMin = model.bodyBytesMax
      for _ in 0..<Int.random(in: 1...10, using: &model.generator) { model.append(2) }
      model.bodyBytesMin = 0
      model.drain()
      for _ in 0..<2 {
        model.fill { $0.core!.stats.counters.segmentsCarried }
        model.rewrite(1)
      }
      model.fill { $0.core!.stats.counters.segmentsCarried }
      if model.generator.oneIn(3) { try model.closeAndOpen() } else { try model.kill() }
      for index in model.partitions.indices { try model.check(index) }
    }
  }
}
