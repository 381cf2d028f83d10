// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog
import MemQSystem

extension Volume {
  /// How a volume's bytes get to its disk. Either way they are durable by fdatasync before anything is acknowledged, and reads go
  /// through the page cache.
  public enum WritePath: String, Hashable, Sendable, CaseIterable {
    /// The kernel's page cache: what was just written is read from memory for as long as the kernel keeps it.
    case cached
    /// Past the page cache (O_DIRECT): no memory beyond the volume's own, steady cost, and where memory is dear or cold less of it; who
    /// reads what is older than the tail cache asks the disk.
    case direct
  }
}

/// Memory in which groups are put together for O_DIRECT, which wants whole blocks at aligned addresses. Bounded: one buffer each for
/// the log's writer, the cleaner and a segment that is retired, and no more than these write at a time.
final class StagingBuffers: Sendable {
  /// A default group in one call.
  static let byteCount = 4 << 20
  private static let keptMax = 3
  private let free = Monitor<[StagingMemory]>([])

  func with<R>(_ body: (StagingMemory) throws(FileError) -> R) throws(FileError) -> R {
    let kept = self.free.withLock { $0.popLast() }
    let buffer = if let kept { kept } else { try StagingMemory(Self.byteCount) }
    defer { self.free.withLock { if $0.count < Self.keptMax { $0.append(buffer) } } }
    return try body(buffer)
  }
}

/// A segment file that is written past the page cache. Reads and syncs go by the plain descriptor: the kernel drops what its cache
/// holds of a range that is written directly, and fdatasync flushes the disk's own cache whoever wrote.
final class DirectFile: SegmentFile {
  private let plain: File
  private let buffers: StagingBuffers
  /// Opened by the first write: most files are only read.
  private let direct = Monitor<DirectDescriptor?>(nil)

  init(_ path: String, _ buffers: StagingBuffers) throws(FileError) {
    self.plain = try File(path, .readWrite)
    self.buffers = buffers
  }

  func byteCount() throws(FileError) -> Int64 { try self.plain.byteCount() }

  func write(
    gathered pieces: UnsafeMutableBufferPointer<FilePiece>, at position: Int64
  ) throws(FileError) {
    let byteCount = pieces.reduce(Int64(0)) { $0 + Int64($1.byteCount) }
    let block = Int64(LogFormat.blockBytes)
    guard position % block == 0, byteCount % block == 0 else {
      return try self.plain.write(gathered: pieces, at: position)
    }
    let direct = try self.opened()
    try self.buffers.with { (staging) throws(FileError) in
      try direct.write(pieces, at: position, staging: staging)
    }
  }

  func prepareToWrite() throws(FileError) { _ = try self.opened() }

  private func opened() throws(FileError) -> DirectDescriptor {
    let path = self.plain.path
    return try self.direct.withLock { (direct) throws(FileError) in
      if let direct { return direct }
      let opened = try DirectDescriptor(path)
      direct = opened
      return opened
    }
  }

  func syncData() throws(FileError) { try self.plain.syncData() }

  func read(
    into bytes: UnsafeMutableRawBufferPointer, at position: Int64
  ) throws(FileError) -> Int {
    try self.plain.read(into: bytes, at: position)
  }

  func dropCache() { self.plain.dropCache() }
  func advise(readsAhead: Bool) { self.plain.advise(readsAhead: readsAhead) }
}
