// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQRecords

/// One gathered write: a group commit, with what must stand at other places of the same segment.
public struct GroupWrite: Sendable {
  public enum Piece: Hashable, Sendable {
    /// A range of `headerBytes`.
    case bytes(Range<Int>)
    /// The stamped batch the driver keeps under this name.
    case payload(PayloadID, byteCount: Int)
    case zeros(Int)

    public var byteCount: Int {
      switch self {
      case .bytes(let range): range.count
      case .payload(_, let byteCount): byteCount
      case .zeros(let count): count
      }
    }
  }

  /// Pieces that stand one after the other from a position.
  public struct Part: Sendable {
    public var position: Int64
    public var pieces: [Piece]
    public var byteCount: Int { self.pieces.reduce(0) { $0 + $1.byteCount } }
  }

  public var number: GroupNumber
  public var kind: GroupKind
  public var slot: SegmentSlot
  public var segment: SegmentSequence
  /// One, or two when a footer's trailer goes to the segment's last block.
  public var parts: [Part]
  public var headerBytes: [UInt8]
  /// Of all parts.
  public var byteCount: Int
}

/// Lays frames out behind a group header: positions, chain of checksums, padding.
struct GroupBuilder {
  let position: Int64
  let seal: HeaderSeal
  private let prefixBytes: Int
  private var header: [UInt8]
  private var pieces: [GroupWrite.Piece] = []
  private var piecesBytes: Int
  private var frameCount = 0
  private var previous: UInt32
  private let groupPrevious: UInt32

  /// - Parameters:
  ///   - position: of the group header.
  ///   - segmentHeader: the block right before the group, when this is the segment's first.
  ///   - frames: how many frames are expected, and the core's own payload bytes: only saves reallocation.
  init(
    at position: Int64, seal: HeaderSeal, previousChecksum: UInt32, segmentHeader: [UInt8] = [],
    frames: Int, payloadBytes: Int = 0
  ) {
    self.position = position
    self.seal = seal
    self.prefixBytes = segmentHeader.count
    self.header = segmentHeader
    self.header.reserveCapacity(
      segmentHeader.count + GroupHeader.byteCount + frames * FrameHeader.byteCount
        + payloadBytes + LogFormat.blockBytes)
    self.header.append(contentsOf: repeatElement(0, count: GroupHeader.byteCount))
    self.piecesBytes = self.header.count
    self.pieces.append(.bytes(0..<self.header.count))
    self.previous = previousChecksum
    self.groupPrevious = previousChecksum
  }

  /// Bytes of the group so far, with its header.
  var contentBytes: Int { self.piecesBytes - self.prefixBytes }

  /// Where the next frame's header will stand.
  var nextPosition: Int64 { self.position + Int64(self.contentBytes) }

  /// Adds a frame whose payload the driver keeps.
  mutating func add(_ frame: FrameHeader, payload: PayloadID) {
    self.addHeader(frame)
    self.pieces.append(.payload(payload, byteCount: frame.payloadBytes))
    self.piecesBytes += frame.payloadBytes
  }

  /// Adds a frame with the core's own payload.
  mutating func add(_ frame: FrameHeader, payload: [UInt8]) {
    var frame = frame
    frame.payloadBytes = payload.count
    frame.payloadChecksum = payload.withUnsafeBytes { CRC32C.checksum($0) }
    self.addHeader(frame)
    let start = self.header.count
    self.header.append(contentsOf: payload)
    self.addBytes(start..<self.header.count)
  }

  /// Adds a frame as it stands elsewhere, with the payload its checksum was made for.
  mutating func add(_ frame: FrameHeader, copying payload: UnsafeRawBufferPointer) {
    self.addHeader(frame)
    let start = self.header.count
    self.header.append(contentsOf: payload)
    self.addBytes(start..<self.header.count)
  }

  private mutating func addHeader(_ frame: FrameHeader) {
    var frame = frame
    frame.previousChecksum = self.previous
    let position = self.nextPosition
    let start = self.header.count
    self.header.append(contentsOf: repeatElement(0, count: FrameHeader.byteCount))
    let seal = self.seal
    self.previous = self.header.withUnsafeMutableBytes {
      frame.encode(into: $0.part(start..<$0.count), at: position, seal: seal)
    }
    self.frameCount += 1
    self.addBytes(start..<self.header.count)
  }

  private mutating func addBytes(_ range: Range<Int>) {
    self.piecesBytes += range.count
    if case .bytes(let last)? = self.pieces.last, last.upperBound == range.lowerBound {
      self.pieces[self.pieces.count - 1] = .bytes(last.lowerBound..<range.upperBound)
    } else {
      self.pieces.append(.bytes(range))
    }
  }

  /// Pads, writes the group header and returns the write with the header's checksum.
  consuming func finish(
    kind: GroupKind, number: GroupNumber, slot: SegmentSlot, durable: LogPlace, openCount: UInt64,
    wall: Timestamp
  ) -> (write: GroupWrite, checksum: UInt32) {
    let content = self.contentBytes
    let whole = LogFormat.blocks(content)
    if whole > content { self.pieces.append(.zeros(whole - content)) }
    let header = GroupHeader(
      kind: kind, byteCount: whole, contentBytes: content, frameCount: self.frameCount,
      number: number, segment: self.seal.segment, durable: durable, writeTime: wall,
      openCount: openCount, lastFrameChecksum: self.previous, previousChecksum: self.groupPrevious)
    let (position, seal, prefix) = (self.position, self.seal, self.prefixBytes)
    let checksum = self.header.withUnsafeMutableBytes {
      header.encode(into: $0.part(prefix..<$0.count), at: position, seal: seal)
    }
    let part = GroupWrite.Part(position: position - Int64(prefix), pieces: self.pieces)
    let write = GroupWrite(
      number: number, kind: kind, slot: slot, segment: seal.segment, parts: [part],
      headerBytes: self.header, byteCount: prefix + whole)
    return (write, checksum)
  }
}

extension GroupWrite {
  /// Adds a block of its own at another place of the segment.
  mutating func add(block: [UInt8], at position: Int64) {
    let start = self.headerBytes.count
    self.headerBytes += block
    self.parts.append(Part(position: position, pieces: [.bytes(start..<self.headerBytes.count)]))
    self.byteCount += block.count
  }
}
