// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQLog
public import MemQModel
public import MemQTestSupport

/// Segment files in memory that keep, at a crash, what was synced and a seeded share of the rest.
///
/// Writes become visible at once and durable only by `endSync`. A crash decides for each 512-byte sector of each write since
/// then whether the disk has it: nothing, everything, a prefix, a suffix, any mixture, or any mixture in another order, so
/// that of two writes to one place the first may be the one that is left. A file whose name was not synced may be gone.
public struct CrashableDisk: SegmentSource, Sendable {
  /// What a disk writes as one.
  public static let sectorBytes = 512

  struct Write: Sendable {
    let number: UInt64
    let start: Int
    let bytes: [UInt8]
  }

  struct File: Sendable {
    var visible: [UInt8]
    var durable: [UInt8]
    /// Not synced, in the order of writing.
    var writes: [Write] = []
    var isNameDurable = false
    var isLost = false
  }

  public let segmentBytes: Int
  var files: [File] = []
  private var writes: UInt64 = 0
  /// Syncs report success and make nothing durable: for showing that tests notice.
  public var skipsSyncs = false
  /// The same of the folder's syncs.
  public var skipsFolderSyncs = false

  public init(segmentBytes: Int) { self.segmentBytes = segmentBytes }

  public var slots: [SegmentSlot] {
    self.files.indices.filter { !self.files[$0].isLost }.map { SegmentSlot(UInt32($0)) }
  }

  /// Makes a file; its name is durable after `syncFolder`.
  public mutating func allocate(_ slot: SegmentSlot) {
    let index = Int(slot.rawValue)
    let blank = [UInt8](repeating: 0, count: self.segmentBytes)
    precondition(index == self.files.count || self.files[index].isLost)
    let file = File(visible: blank, durable: blank)
    if index == self.files.count { self.files.append(file) } else { self.files[index] = file }
  }

  public mutating func syncFolder() {
    guard !self.skipsFolderSyncs else { return }
    for index in self.files.indices { self.files[index].isNameDurable = true }
  }

  public mutating func write(_ bytes: [UInt8], to slot: SegmentSlot, at position: Int64) {
    let start = Int(position)
    precondition(start + bytes.count <= self.segmentBytes)
    self.writes += 1
    let index = Int(slot.rawValue)
    self.files[index].visible.replaceSubrange(start..<(start + bytes.count), with: bytes)
    guard !bytes.isEmpty else { return }
    self.files[index].writes.append(Write(number: self.writes, start: start, bytes: bytes))
  }

  /// Begins a sync of everything written to the file so far; returns what `endSync` takes.
  public func beginSync(_ slot: SegmentSlot) -> UInt64 { self.writes }

  public mutating func endSync(_ slot: SegmentSlot, begunAt number: UInt64) {
    guard !self.skipsSyncs else { return }
    let index = Int(slot.rawValue)
    for write in self.files[index].writes where write.number <= number {
      self.keep(write, write.start..<(write.start + write.bytes.count), of: index)
    }
    self.files[index].writes.removeAll { $0.number <= number }
  }

  private mutating func keep(_ write: Write, _ range: Range<Int>, of file: Int) {
    let part = (range.lowerBound - write.start)..<(range.upperBound - write.start)
    self.files[file].durable.replaceSubrange(range, with: write.bytes[part])
  }

  /// The power goes. What was not synced is kept sector by sector as `generator` says.
  public mutating func crash(_ generator: inout SeededGenerator) {
    for index in self.files.indices where !self.files[index].isLost {
      if !self.files[index].isNameDurable, generator.oneIn(2) {
        self.files[index].isLost = true
        continue
      }
      for (write, range) in Self.kept(self.files[index].writes, &generator) {
        self.keep(write, range, of: index)
      }
      self.files[index].visible = self.files[index].durable
      self.files[index].writes = []
      self.files[index].isNameDurable = true
    }
  }

  private static func kept(
    _ writes: [Write], _ generator: inout SeededGenerator
  ) -> [(write: Write, range: Range<Int>)] {
    var sectors: [(write: Write, range: Range<Int>)] = []
    for write in writes {
      let end = write.start + write.bytes.count
      for start in stride(
        from: write.start / Self.sectorBytes * Self.sectorBytes, to: end, by: Self.sectorBytes)
      {
        sectors.append((write, max(start, write.start)..<min(start + Self.sectorBytes, end)))
      }
    }
    let cut = sectors.isEmpty ? 0 : Int.random(in: 0...sectors.count, using: &generator)
    switch Int.random(in: 0..<7, using: &generator) {
    case 0: return []
    case 1: return sectors
    case 2: return Array(sectors.prefix(cut))
    case 3: return Array(sectors.suffix(cut))
    case 4: return sectors.shuffled(using: &generator).suffix(cut)
    default: return sectors.filter { _ in Bool.random(using: &generator) }
    }
  }

  /// What a driver does before it trusts what it reads.
  public mutating func syncAll() {
    for index in self.files.indices {
      self.files[index].durable = self.files[index].visible
      self.files[index].writes = []
    }
    self.syncFolder()
  }

  /// Flips one bit, durably.
  public mutating func flip(bit: Int, at position: Int, of slot: SegmentSlot) {
    let index = Int(slot.rawValue)
    self.files[index].visible[position] ^= 1 << UInt8(bit)
    self.files[index].durable[position] ^= 1 << UInt8(bit)
  }

  public func bytes(of slot: SegmentSlot) -> [UInt8] { self.files[Int(slot.rawValue)].visible }

  public mutating func read(
    _ slot: SegmentSlot, at position: Int64, into bytes: UnsafeMutableRawBufferPointer
  ) throws(MemQError) {
    let start = Int(position)
    self.files[Int(slot.rawValue)].visible[start..<(start + bytes.count)].withUnsafeBytes {
      bytes.copyMemory(from: $0)
    }
  }
}
