// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQTestSupport
import Testing

@Suite struct VolumePropertyTests {
  /// Runs random steps with crashes, kills and clean restarts in between.
  private func run(_ model: inout VolumeModel, rounds: Int, steps: Int = 150) throws {
    try model.open()
    for _ in 0..<rounds {
      let count = Int.random(in: 1...steps, using: &model.generator)
      for _ in 0..<count { try model.step() }
      switch Int.random(in: 0..<6, using: &model.generator) {
      case 0: try model.closeAndOpen()
      case 1: try model.kill()
      default: try model.crash()
      }
      if model.generator.oneIn(2) { model.drain() }
    }
  }

  @Test(arguments: 1...32 as ClosedRange<UInt64>)
  func `acknowledged state survives crashes byte for byte`(seed: UInt64) throws {
    var model = VolumeModel(seed: seed)
    try self.run(&model, rounds: 25)
    #expect(model.appends > 100)
  }

  @Test(arguments: 101...112 as ClosedRange<UInt64>)
  func `a full disk refuses, keeps what it took, and goes on after uploads`(seed: UInt64) throws {
    var model = VolumeModel(seed: seed, slotsMax: 8)
    try self.run(&model, rounds: 20, steps: 300)
    // Whatever the random run left: once everything is uploaded, appends go on.
    model.drain()
    for partition in model.partitions.indices { model.upload(partition) }
    model.pass(.seconds(1))
    let before = model.appends
    for _ in 0..<200 {
      model.append(0)
      model.drain()
      model.upload(0)
      model.pass(.seconds(1))
    }
    #expect(model.appends > before + 150)
    try model.crash()
  }

  @Test func `a disk that lies about syncs is noticed`() throws {
    var noticed = 0
    for seed in 1...16 as ClosedRange<UInt64> {
      var model = VolumeModel(seed: seed)
      model.volume.disk.skipsSyncs = true
      do { try self.run(&model, rounds: 8) } catch { noticed += 1 }
    }
    #expect(noticed > 10)
  }

  @Test(arguments: 201...216 as ClosedRange<UInt64>)
  func `a failed write or sync is final and acknowledges nothing`(seed: UInt64) throws {
    var model = VolumeModel(seed: seed)
    try model.open()
    model.volume.worksUntilFailure = Int.random(in: 2...60, using: &model.generator)
    var steps = 0
    while model.volume.failure == nil, steps < 2_000 {
      try model.step()
      steps += 1
    }
    let failure = try #require(model.volume.failure)
    #expect(failure.code == .volumeFailed)
    let acknowledged = model.partitions.map(\.versions[0])
    for partition in model.partitions.indices { model.append(partition) }
    model.drain()
    #expect(model.partitions.map(\.versions[0]) == acknowledged)
    #expect(model.volume.core?.hasRoom == false)
    try model.crash()
  }

  @Test func `equal seeds give equal bytes`() throws {
    func bytes() throws -> [[UInt8]] {
      var model = VolumeModel(seed: 99)
      try self.run(&model, rounds: 6)
      return model.volume.disk.slots.map { model.volume.disk.bytes(of: $0) }
    }
    #expect(try bytes() == bytes())
  }
}
