// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQRecords

/// A verified frame and where its payload stands in the bytes that were walked.
public struct WalkedFrame: Hashable, Sendable {
  public var header: FrameHeader
  public var checksum: UInt32
  /// Of the frame's header in its segment.
  public var position: Int64
  /// Of the payload, in the bytes walked.
  public var payload: Range<Int>
}

/// Reads frames out of bytes of a segment and believes none that does not verify.
public enum FrameWalk {
  /// The live batches of a run, verified to the last byte.
  ///
  /// - Parameters:
  ///   - bytes: exactly the run's.
  ///   - from: batches that end at or below it are passed over.
  ///   - below: batches that end above it are left out.
  /// - Throws: `.logCorrupt` with the place.
  public static func batches(
    in bytes: UnsafeRawBufferPointer, run: RunEntry, log: LogID, seal: HeaderSeal, from: Offset,
    below: Offset
  ) throws(MemQError) -> [WalkedFrame] {
    let (frames, damage) = self.wholeBatches(
      in: bytes, run: run, log: log, seal: seal, from: from, below: below)
    if let damage { throw damage }
    return frames
  }

  /// As `batches`, with those before the damage.
  public static func wholeBatches(
    in bytes: UnsafeRawBufferPointer, run: RunEntry, log: LogID, seal: HeaderSeal, from: Offset,
    below: Offset
  ) -> (frames: [WalkedFrame], damage: MemQError?) {
    var frames: [WalkedFrame] = []
    do throws(MemQError) {
      try self.forEachBatch(in: bytes, run: run, log: log, seal: seal, from: from, below: below) {
        frames.append($0)
        return true
      }
      return (frames, nil)
    } catch {
      return (frames, error)
    }
  }

  /// As `batches`, one after the other until `body` says false: those before damage are handed out.
  public static func forEachBatch(
    in bytes: UnsafeRawBufferPointer, run: RunEntry, log: LogID, seal: HeaderSeal, from: Offset,
    below: Offset, _ body: (WalkedFrame) -> Bool
  ) throws(MemQError) {
    var offset = 0
    let below = min(below, run.endOffset)
    while offset < bytes.count {
      let position = run.position + Int64(offset)
      let place = LogPlace(seal.segment, position)
      guard let frame = self.frame(in: bytes, at: offset, position: position, seal: seal),
        frame.header.type.isBatch, frame.header.log == log
      else { throw .corrupt(place, "a batch's frame is damaged") }
      offset = frame.payload.upperBound
      if frame.header.endOffset <= from { continue }
      if frame.header.endOffset > below { break }
      guard frame.header.verifies(bytes.part(frame.payload)) else {
        throw .corrupt(place, "a record batch is damaged")
      }
      guard body(frame) else { return }
    }
  }

  /// The frame whose header stands at `offset`; nil unless the header verifies and the payload is within `bytes`.
  static func frame(
    in bytes: UnsafeRawBufferPointer, at offset: Int, position: Int64, seal: HeaderSeal
  ) -> WalkedFrame? {
    let payload = offset + FrameHeader.byteCount
    guard payload <= bytes.count,
      let (header, checksum) = FrameHeader.decode(
        bytes.part(offset..<payload), at: position, seal: seal),
      header.payloadBytes <= bytes.count - payload
    else { return nil }
    return WalkedFrame(
      header: header, checksum: checksum, position: position,
      payload: payload..<(payload + header.payloadBytes))
  }

  /// All frames of a group, or where it is damaged.
  ///
  /// - Parameters:
  ///   - bytes: the whole group, from its header.
  ///   - previousChecksum: what the group before, or the segment header, ended with.
  static func group(
    in bytes: UnsafeRawBufferPointer, header: GroupHeader, position: Int64, seal: HeaderSeal,
    previousChecksum: UInt32
  ) -> Result<[WalkedFrame], Damage> {
    guard header.segment == seal.segment, header.previousChecksum == previousChecksum,
      bytes.count == header.byteCount
    else {
      return .failure(Damage(position: position, what: "a group does not follow the one before"))
    }
    var frames: [WalkedFrame] = []
    frames.reserveCapacity(min(header.frameCount, header.contentBytes / FrameHeader.byteCount))
    var offset = GroupHeader.byteCount
    var previous = previousChecksum
    while offset < header.contentBytes {
      let at = position + Int64(offset)
      guard
        let frame = self.frame(
          in: bytes.part(0..<header.contentBytes), at: offset, position: at, seal: seal),
        frame.header.previousChecksum == previous
      else { return .failure(Damage(position: at, what: "a frame is damaged")) }
      guard frame.header.verifies(bytes.part(frame.payload)) else {
        return .failure(Damage(position: at, what: "a frame's payload is damaged"))
      }
      previous = frame.checksum
      offset = frame.payload.upperBound
      frames.append(frame)
    }
    guard frames.count == header.frameCount, previous == header.lastFrameChecksum else {
      return .failure(Damage(position: position, what: "a group's frames are not those it names"))
    }
    guard bytes.part(header.contentBytes..<header.byteCount).isZero else {
      return .failure(
        Damage(
          position: position + Int64(header.contentBytes), what: "a group's padding is damaged"))
    }
    return .success(frames)
  }

  struct Damage: Error, Hashable {
    var position: Int64
    var what: String
  }
}
