// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQTestSupport
import Testing

@Suite struct VolumePropertyTests {
  private static let seedsPerLot =
    (getenv("MEMQ_LOG_SEEDS").flatMap { UInt64(String(cString: $0)) } ?? 2_000) / 8

  @Test(arguments: 1...16 as ClosedRange<UInt64>)
  func `acknowledged state survives crashes byte for byte`(seed: UInt64) throws {
    var model = VolumeModel(seed: seed)
    try model.run(rounds: 15)
    #expect(model.appends > 100)
  }

  @Test(arguments: 101...112 as ClosedRange<UInt64>)
  func `a full disk refuses, keeps what it took, and goes on after uploads`(seed: UInt64) throws {
    var model = VolumeModel(seed: seed, slotsMax: 8)
    try model.run(rounds: 8, steps: 300, rests: true)
    // Whatever the random run left: once everything is uploaded or deleted, appends go on. Where restarts in quick succession took
    // the very last segment, the log needs one more to say what was deleted.
    model.drain()
    if model.volume.core?.hasActiveSegment == false {
      model.volume.slotsMax += 1
      model.pass(.seconds(1))
      model.pass(.seconds(1))
    }
    model.letGo()
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

  /// Short runs on small disks of all shapes, in eight lots: 2,000, or as many as `MEMQ_LOG_SEEDS` says.
  @Test(arguments: 0..<8 as Range<UInt64>)
  func `no seed loses, doubles or revives anything, carried or not`(lot: UInt64) throws {
    var carried: UInt64 = 0
    let count = Self.seedsPerLot
    for seed in (lot * count)..<((lot + 1) * count) {
      do {
        carried += try VolumeModel.check(seed: 10_000 + seed)
      } catch {
        throw ModelViolation(description: "seed \(10_000 + seed): \(error)")
      }
    }
    #expect(carried > count / 25)
  }

  @Test(arguments: 301...340 as ClosedRange<UInt64>)
  func `what was truncated stays dead, carried or not`(seed: UInt64) throws {
    try VolumeModel.checkDeep(seed: seed)
  }

  @Test(arguments: 401...416 as ClosedRange<UInt64>)
  func `what was carried, truncated and written anew reads as it was written`(seed: UInt64) throws {
    try VolumeModel.checkRewritten(seed: seed)
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
      var model = VolumeModel(seed: 99, slotsMax: 8)
      try model.run(rounds: 6)
      return model.volume.disk.slots.map { model.volume.disk.bytes(of: $0) }
    }
    #expect(try bytes() == bytes())
  }
}
