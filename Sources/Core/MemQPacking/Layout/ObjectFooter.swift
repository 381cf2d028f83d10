// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQRecords

/// An object's index: who made it and where each partition's run stands. Read alone, by one ranged read of the
/// object's last bytes.
public struct ObjectFooter: Hashable, Sendable {
  public let identity: ObjectIdentity
  /// By partition; a partition has one run.
  public let runs: [ObjectRun]
  /// Bytes of the whole object.
  public let objectByteCount: Int64
  /// Bytes from the footer's start to the object's end.
  public let footerByteCount: Int64

  public var minTimestamp: Timestamp { self.runs.map(\.minTimestamp).min() ?? .none }
  public var maxTimestamp: Timestamp { self.runs.map(\.maxTimestamp).max() ?? .none }

  /// The partition's run; nil when the object has none.
  public func run(of partition: TopicPartition) -> ObjectRun? {
    var low = 0
    var high = self.runs.count
    while low < high {
      let middle = (low + high) / 2
      if self.runs[middle].partition < partition { low = middle + 1 } else { high = middle }
    }
    return low < self.runs.count && self.runs[low].partition == partition ? self.runs[low] : nil
  }

  /// Footer and trailer for runs whose positions are set.
  static func encode(_ identity: ObjectIdentity, _ runs: [ObjectRun]) -> [UInt8] {
    var footer = ByteWriter()
    identity.write(into: &footer)
    footer.list(runs) { writer, run in run.write(into: &writer) }
    let position = runs.last?.endPosition ?? Int64(ObjectLayout.headerByteCount)
    let byteCount = footer.bytes.count
    var trailer = ByteWriter()
    trailer.integer(position)
    trailer.integer(UInt32(byteCount))
    trailer.integer(CRC32C.checksum(footer.bytes))
    trailer.integer(position + Int64(byteCount + ObjectLayout.trailerByteCount))
    trailer.integer(ObjectLayout.version)
    trailer.integer(UInt16(0))
    trailer.integer(CRC32C.checksum(trailer.bytes))
    trailer.raw(ObjectLayout.trailerMagic)
    return footer.bytes + trailer.bytes
  }

  /// Reads and checks an object's last bytes.
  ///
  /// - Parameters:
  ///   - tail: from the footer's start to the object's end, exactly.
  ///   - objectByteCount: the size the store (or metadata) states.
  /// - Throws: `.objectCorrupt`; `.feature` for a newer version.
  public init(decodingTail tail: [UInt8], objectByteCount: Int64) throws(MemQError) {
    do {
      try self.init(checking: tail, objectByteCount)
    } catch {
      guard error.code == .corruptMessage else { throw error }
      // A field that runs over the footer's end.
      throw MemQError(
        .objectCorrupt, "the footer is malformed: \(error.message)", limit: error.limit,
        actual: error.actual)
    }
  }

  /// Where the footer begins, by the object's last bytes: for readers that know nothing but the object.
  ///
  /// - Parameter trailer: the object's last `ObjectLayout.trailerByteCount` bytes.
  /// - Returns: bytes from the footer's start to the object's end.
  public static func footerByteCount(
    inTrailer trailer: [UInt8], objectByteCount: Int64
  ) throws(MemQError) -> Int64 {
    Int64(try Trailer(trailer, objectByteCount).footerByteCount + ObjectLayout.trailerByteCount)
  }

  private init(checking tail: [UInt8], _ objectByteCount: Int64) throws(MemQError) {
    guard tail.count >= ObjectLayout.trailerByteCount else {
      throw corrupt("the trailer is cut", limit: ObjectLayout.trailerByteCount, actual: tail.count)
    }
    let trailer = try Trailer(
      Array(tail.suffix(ObjectLayout.trailerByteCount)), objectByteCount)
    let footer = Array(tail.dropLast(ObjectLayout.trailerByteCount))
    guard footer.count == trailer.footerByteCount else {
      throw corrupt(
        "the footer's length is not what was read", limit: trailer.footerByteCount,
        actual: footer.count)
    }
    guard CRC32C.checksum(footer) == trailer.footerCRC else {
      throw corrupt("the footer's CRC-32C is wrong")
    }
    var reader = ByteReader(footer)
    self.identity = try ObjectIdentity(from: &reader)
    self.runs = try reader.list { reader throws(MemQError) in try ObjectRun(from: &reader) }
    try reader.finish()
    self.objectByteCount = objectByteCount
    self.footerByteCount = Int64(tail.count)
    try self.check(footerPosition: trailer.footerPosition)
  }

  /// Runs fill the object from header to footer, in partition order, each cut into blocks without a gap.
  private func check(footerPosition: Int64) throws(MemQError) {
    guard self.runs.count <= Limits.partitionsPerUploadGroupMax else {
      throw corrupt(
        "too many runs", limit: Limits.partitionsPerUploadGroupMax, actual: self.runs.count)
    }
    var position = Int64(ObjectLayout.headerByteCount)
    var before: TopicPartition?
    for run in self.runs {
      guard before.map({ $0 < run.partition }) ?? true else {
        throw corrupt("the runs are not in the order of their partitions")
      }
      guard run.position == position, run.byteCount > 0, run.byteCount <= footerPosition - position
      else { throw corrupt("run \(run.partition) does not stand where the one before ends") }
      try run.check()
      position = run.endPosition
      before = run.partition
    }
    guard position == footerPosition else { throw corrupt("bytes between the runs and the footer") }
  }
}

extension ObjectRun {
  fileprivate func check() throws(MemQError) {
    guard self.baseOffset >= .zero, self.baseOffset < self.endOffset else {
      throw corrupt("run \(self.partition) has no offsets")
    }
    guard let first = self.blocks.first, first.baseOffset == self.baseOffset else {
      throw corrupt("run \(self.partition) does not begin with its first block")
    }
    var bytes: Int64 = 0
    var before = Offset(-1)
    for block in self.blocks {
      guard block.byteCount > 0, before < block.baseOffset, block.baseOffset < self.endOffset else {
        throw corrupt("the blocks of run \(self.partition) are out of order")
      }
      bytes += Int64(block.byteCount)
      before = block.baseOffset
    }
    guard bytes == self.byteCount else {
      throw corrupt("the blocks of run \(self.partition) are not as long as the run")
    }
    guard let epoch = self.epochStarts.first, epoch.start <= self.baseOffset else {
      throw corrupt("run \(self.partition) has no leader epoch at its start")
    }
    for (left, right) in zip(self.epochStarts, self.epochStarts.dropFirst()) {
      guard left.epoch < right.epoch, left.start < right.start, right.start < self.endOffset else {
        throw corrupt("the leader epochs of run \(self.partition) are out of order")
      }
    }
  }
}

/// The last 40 bytes.
private struct Trailer {
  let footerPosition: Int64
  let footerByteCount: Int
  let footerCRC: UInt32

  init(_ bytes: [UInt8], _ objectByteCount: Int64) throws(MemQError) {
    guard bytes.count == ObjectLayout.trailerByteCount else {
      throw corrupt("the trailer is cut", limit: ObjectLayout.trailerByteCount, actual: bytes.count)
    }
    guard bytes.suffix(8).elementsEqual(ObjectLayout.trailerMagic) else {
      throw corrupt("the trailer's magic is wrong: not an object, or cut")
    }
    var reader = ByteReader(bytes)
    self.footerPosition = try reader.integer()
    self.footerByteCount = Int(try reader.integer(UInt32.self))
    self.footerCRC = try reader.integer()
    let stated: Int64 = try reader.integer()
    let version: UInt16 = try reader.integer()
    let flags: UInt16 = try reader.integer()
    let crc: UInt32 = try reader.integer()
    guard CRC32C.checksum(bytes.prefix(28)) == crc else {
      throw corrupt("the trailer's CRC-32C is wrong")
    }
    try ObjectLayout.checkVersion(version, flags: flags)
    guard stated == objectByteCount else {
      throw MemQError(
        .objectCorrupt, "the object is not as long as it says", limit: stated,
        actual: objectByteCount)
    }
    let end = self.footerPosition.addingReportingOverflow(
      Int64(self.footerByteCount + ObjectLayout.trailerByteCount))
    guard self.footerPosition >= ObjectLayout.headerByteCount, !end.overflow,
      end.partialValue == objectByteCount,
      self.footerByteCount + ObjectLayout.trailerByteCount <= ObjectLayout.footerByteCountMax
    else { throw corrupt("the footer does not end where the object does") }
  }
}
