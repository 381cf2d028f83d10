// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQTestSupport
import Testing

/// Each switches one safety rule off and shows that the model check notices.
@Suite struct MutationTests {
  /// Whether one of the first `seeds` runs goes wrong with `change`.
  private func isNoticed(
    within seeds: UInt64, _ change: (inout VolumeModel) -> Void
  ) -> Bool {
    for seed in 1...seeds {
      do { _ = try VolumeModel.check(seed: seed, change: change) } catch { return true }
    }
    return false
  }

  @Test func `without fdatasync`() {
    #expect(self.isNoticed(within: 10) { $0.volume.disk.skipsSyncs = true })
  }

  @Test func `without the folder's fsync`() {
    #expect(self.isNoticed(within: 20) { $0.volume.disk.skipsFolderSyncs = true })
  }

  @Test func `a tail that is cut and not sealed there`() {
    #expect(
      self.isNoticed(within: 20) { $0.volume.configuration.mutations = .cutsWithoutSealing })
  }

  @Test func `an original freed before its copy is durable`() {
    #expect(self.isNoticed(within: 200) { $0.volume.skipsCarrySyncs = true })
  }

  @Test func `a carried copy that undoes a truncate`() {
    #expect(
      self.isNoticed(within: 400) { $0.volume.configuration.mutations = .carriesOverTruncates })
  }

  @Test func `a restart that goes by the cold end alone`() {
    let noticed = (UInt64(1)...20).first { seed in
      do {
        try VolumeModel.checkRewritten(seed: seed) {
          $0.volume.configuration.mutations = .ignoresColdCuts
        }
        return false
      } catch {
        return true
      }
    }
    #expect(noticed != nil)
  }

  /// A model with damage below what was durable, opened: what it is found to be.
  private func damaged(seed: UInt64, _ mutations: LogMutations) throws -> ModelViolation? {
    var model = VolumeModel(seed: seed, segmentBytes: 64 << 10, slotsMax: 12)
    try model.run(rounds: 1, steps: 60)
    // Until there is a block of data to damage in the youngest segment.
    var durable = LogPlace.start
    for _ in 0..<20 where durable.position <= 12_288 {
      model.append(0)
      model.drain()
      model.pass(.milliseconds(30))
      durable = model.volume.core!.stats.durable
    }
    var disk = model.volume.disk
    let slot = try #require(
      disk.slots.first { try SegmentInspector.header($0, from: &disk)?.sequence == durable.segment }
    )
    model.volume.kill()
    // Before the mark-only group, which is the last block.
    let position = Int.random(in: 8_192..<(Int(durable.position) - 4_096), using: &model.generator)
    model.volume.disk.flip(bit: 2, at: position, of: slot)
    model.volume.configuration.mutations = mutations
    do {
      try model.open()
      return nil
    } catch let violation as ModelViolation {
      return violation
    } catch let error as MemQError {
      return ModelViolation(description: "\(error)", error: error)
    }
  }

  @Test func `damage below the durable mark that counts as a torn tail`() throws {
    var noticed = 0
    for seed in 1...20 as ClosedRange<UInt64> {
      // As it ships, the volume says so itself and gives nothing back.
      let shipped = try self.damaged(seed: seed, [])
      #expect(shipped?.error?.code == .logCorrupt)
      if let found = try self.damaged(seed: seed, .ignoresDurableMark), found.error == nil {
        noticed += 1
      }
    }
    #expect(noticed > 5)
  }

  /// A full disk whose last segment was sealed while groups were under way, then damaged somewhere in it.
  private func damagedWhenFull(seed: UInt64, _ mutations: LogMutations) throws -> ModelViolation? {
    var model = VolumeModel(seed: seed, segmentBytes: 64 << 10)
    model.volume.configuration.mutations = mutations
    model.bodyBytesMax = 2_000
    try model.open()
    model.drain()
    // No further file can be made; the log does not know yet.
    model.volume.slotsMax = model.volume.disk.slots.count
    for turn in 0..<2_000 where model.volume.core!.hasActiveSegment {
      for partition in model.partitions.indices {
        model.append(partition)
        model.noteCompletions()
      }
      // States of the log count on the file that is to come.
      for _ in 0..<24 {
        model.startEpoch(turn % model.partitions.count)
        model.noteCompletions()
      }
      // A slow disk.
      let works = model.volume.outstanding.indices.filter {
        if case .allocate = model.volume.outstanding[$0] { false } else { true }
      }
      if let work = works.randomElement(using: &model.generator) {
        model.volume.perform(work, at: model.time, wall: model.wall)
      }
      model.pass(beforeDisk: .microseconds(300))
      model.noteCompletions()
    }
    model.drain()
    try #require(!model.volume.core!.hasActiveSegment)
    let durable = model.volume.core!.stats.durable
    var disk = model.volume.disk
    let slot = try #require(
      disk.slots.first { try SegmentInspector.header($0, from: &disk)?.sequence == durable.segment }
    )
    model.volume.kill()
    let position = Int.random(
      in: (Int(durable.position) - 5 * 4_096)..<(Int(durable.position) - 4_096),
      using: &model.generator)
    model.volume.disk.flip(bit: 2, at: position, of: slot)
    do {
      try model.open()
      return nil
    } catch let violation as ModelViolation {
      return violation
    } catch let error as MemQError {
      return ModelViolation(description: "\(error)", error: error)
    }
  }

  @Test func `a full disk's last footer that does not wait for the groups before it`() throws {
    var (told, lost) = (0, 0)
    for seed in 1...30 as ClosedRange<UInt64> {
      // As it ships nothing goes silently: in the footer itself no record stands.
      if let shipped = try self.damagedWhenFull(seed: seed, []) {
        #expect(shipped.error?.code == .logCorrupt, "\(seed): \(shipped)")
        told += 1
      }
      if let found = try self.damagedWhenFull(seed: seed, .sealsUnmarkedWithoutSlot),
        found.error == nil
      {
        lost += 1
      }
    }
    #expect(told > 15 && lost > 3, "\(told) told, \(lost) lost")
  }

  @Test func `a segment that goes before the log says that it is uploaded`() {
    #expect(
      self.isNoticed(within: 50) { $0.volume.configuration.mutations = .freesBeforePositions })
  }

  @Test func `what an opening of a full disk found is damaged, not torn, when it no longer reads`()
    throws
  {
    for seed in 1...20 as ClosedRange<UInt64> {
      var model = VolumeModel(seed: seed, segmentBytes: 64 << 10, slotsMax: 3)
      model.bodyBytesMax = 1_000
      try model.open()
      model.drain()
      for _ in 0..<500 where model.volume.core!.stats.segmentsFree > 0 {
        model.append(0)
        model.drain()
      }
      // Without a pause there is no group that only says what is durable, and no segment for an opening to go on in.
      let ends = model.partitions.map(\.now.end)
      for partition in model.partitions.indices {
        model.append(partition)
        model.drain()
      }
      try #require(model.partitions.map(\.now.end) != ends && model.volume.core!.hasActiveSegment)
      let durable = model.volume.core!.stats.durable
      try model.kill()
      model.drain()
      try #require(!model.volume.core!.hasActiveSegment)
      var disk = model.volume.disk
      let slot = try #require(
        disk.slots.first {
          try SegmentInspector.header($0, from: &disk)?.sequence == durable.segment
        })
      model.volume.kill()
      model.volume.disk.flip(bit: 2, at: Int(durable.position) - 4_000, of: slot)
      #expect(throws: MemQError.self, "seed \(seed)") { try model.open() }
    }
  }

  /// Puts one group's block over another's, as a disk that writes to the wrong place; `reseals` makes its headers what they would
  /// be if their checksums did not cover the position.
  private func misdirected(seed: UInt64, reseals: Bool) throws -> ModelViolation? {
    var model = VolumeModel(seed: seed, partitionCount: 1)
    // Batches of one size: the frame of one fits where another was.
    model.bodyBytesMax = 1
    try model.open()
    model.drain()
    for _ in 0..<8 {
      model.append(0)
      model.drain()
    }
    let end = model.volume.core!.stats.durable
    let source = 4_096 * Int.random(in: 3..<6, using: &model.generator)
    let target = source + 4_096
    let slot = try #require(model.volume.disk.slots.first)
    var block = Array(model.volume.disk.bytes(of: slot)[source..<(source + 4_096)])
    let seal = HeaderSeal(volume: model.volume.identity.volume, segment: end.segment)
    if reseals {
      block.withUnsafeMutableBytes { bytes in
        let frames = UnsafeMutableRawBufferPointer(rebasing: bytes[80...])
        guard
          let (frame, _) = FrameHeader.decode(
            UnsafeRawBufferPointer(frames), at: Int64(source) + 80, seal: seal)
        else { return }
        frame.encode(into: frames, at: Int64(target) + 80, seal: seal)
      }
    }
    model.volume.disk.write(block, to: slot, at: Int64(target))
    do {
      try model.check(0)
      return nil
    } catch let violation as ModelViolation {
      return violation
    }
  }

  @Test func `a frame's checksum without its position`() throws {
    var noticed = 0
    for seed in 1...20 as ClosedRange<UInt64> {
      if let shipped = try self.misdirected(seed: seed, reseals: false) {
        #expect(shipped.error?.code == .logCorrupt)
      }
      if let found = try self.misdirected(seed: seed, reseals: true), found.error == nil {
        noticed += 1
      }
    }
    #expect(noticed > 2)
  }
}
