// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQLog
public import MemQModel
public import MemQTestSupport

/// Segment files in memory that keep, at a crash, what was synced and a seeded share of the rest.
///
/// Writes become visible at once and durable only by `endSync`. A crash decides for each 512-byte sector written
/// since then whether the disk has it: nothing, everything, a prefix, a suffix or any mixture.
public struct CrashableDisk: SegmentSource, Sendable {
  /// What a disk writes as one.
  public static let sectorBytes = 512

  struct File: Sendable {
    var visible: [UInt8]
    var durable: [UInt8]
    /// Sectors written and not synced, in the order of writing, with the number of the write.
    var dirty: [(sector: Int, write: UInt64)] = []
  }

  public let segmentBytes: Int
  var files: [File] = []
  private var writes: UInt64 = 0
  /// Syncs report success and make nothing durable: for showing that tests notice.
  public var skipsSyncs = false

  public init(segmentBytes: Int) { self.segmentBytes = segmentBytes }

  public var slots: [SegmentSlot] { self.files.indices.map { SegmentSlot(UInt32($0)) } }

  public mutating func allocate(_ slot: SegmentSlot) {
    precondition(Int(slot.rawValue) == self.files.count)
    let blank = [UInt8](repeating: 0, count: self.segmentBytes)
    self.files.append(File(visible: blank, durable: blank))
  }

  public mutating func write(_ bytes: [UInt8], to slot: SegmentSlot, at position: Int64) {
    let start = Int(position)
    precondition(start + bytes.count <= self.segmentBytes)
    self.writes += 1
    let index = Int(slot.rawValue)
    self.files[index].visible.replaceSubrange(start..<(start + bytes.count), with: bytes)
    guard !bytes.isEmpty else { return }
    for sector in (start / Self.sectorBytes)...((start + bytes.count - 1) / Self.sectorBytes) {
      self.files[index].dirty.append((sector, self.writes))
    }
  }

  /// Begins a sync of everything written to the file so far; returns what `endSync` takes.
  public func beginSync(_ slot: SegmentSlot) -> UInt64 { self.writes }

  public mutating func endSync(_ slot: SegmentSlot, begunAt write: UInt64) {
    guard !self.skipsSyncs else { return }
    let index = Int(slot.rawValue)
    for entry in self.files[index].dirty where entry.write <= write {
      self.keep(entry.sector, of: index)
    }
    self.files[index].dirty.removeAll { $0.write <= write }
  }

  private mutating func keep(_ sector: Int, of file: Int) {
    let range = (sector * Self.sectorBytes)..<((sector + 1) * Self.sectorBytes)
    self.files[file].durable.replaceSubrange(range, with: self.files[file].visible[range])
  }

  /// The power goes. What was not synced is kept sector by sector as `generator` says.
  public mutating func crash(_ generator: inout SeededGenerator) {
    for index in self.files.indices {
      let dirty = self.files[index].dirty
      let cut = dirty.isEmpty ? 0 : Int.random(in: 0...dirty.count, using: &generator)
      switch Int.random(in: 0..<6, using: &generator) {
      case 0: break
      case 1: for entry in dirty { self.keep(entry.sector, of: index) }
      case 2: for entry in dirty.prefix(cut) { self.keep(entry.sector, of: index) }
      case 3: for entry in dirty.suffix(cut) { self.keep(entry.sector, of: index) }
      default:
        for entry in dirty where Bool.random(using: &generator) {
          self.keep(entry.sector, of: index)
        }
      }
      self.files[index].visible = self.files[index].durable
      self.files[index].dirty = []
    }
  }

  /// The process ends, the machine does not: everything written stays visible, and not yet durable.
  public mutating func killProcess() {}

  /// What a driver does before it trusts what it reads.
  public mutating func syncAll() {
    for index in self.files.indices {
      self.files[index].durable = self.files[index].visible
      self.files[index].dirty = []
    }
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
