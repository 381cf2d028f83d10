// Part of MemQ. SPDX-License-Identifier: Apache-2.0

package import MemQModel

/// The decoders behind the checksums, for fuzzers: what stands in a frame that verifies can still be anything.
package enum LogParts {
  /// Decodes a footer's parts and encodes them again.
  package static func footer(_ parts: [[UInt8]]) throws(MemQError) -> (Footer, parts: [[UInt8]]) {
    let footer = try Footer(parts: parts)
    return (footer, footer.encoded())
  }

  /// Decodes a checkpoint's parts and encodes them again.
  package static func checkpoint(_ parts: [[UInt8]]) throws(MemQError) -> [[UInt8]] {
    try Checkpoint(parts: parts).encoded()
  }

  /// Replays one frame with any payload on a log that is open.
  package static func replay(_ header: FrameHeader, _ payload: [UInt8]) throws(MemQError) {
    var state = RecoveryState()
    var open = header
    open.type = .partitionOpen
    let none: [UInt8] = [0, 0, 0, 0]
    try Self.apply(open, none, to: &state)
    try Self.apply(header, payload, to: &state)
  }

  private static func apply(
    _ header: FrameHeader, _ payload: [UInt8], to state: inout RecoveryState
  ) throws(MemQError) {
    let frame = WalkedFrame(
      header: header, checksum: 0, position: LogFormat.firstGroupPosition,
      payload: 0..<payload.count)
    let result = payload.withUnsafeBytes { bytes in
      Result { () throws(MemQError) in
        try state.apply(frame, bytes, in: SegmentSequence(1), kind: nil)
      }
    }
    try result.get()
  }

  /// Whether the bytes are a whole group at that place.
  package static func holds(
    _ bytes: UnsafeRawBufferPointer, at position: Int64, _ seal: HeaderSeal
  ) -> Bool {
    guard
      let (header, _) = GroupHeader.decode(bytes, at: position, volume: seal.volume),
      header.byteCount == bytes.count
    else { return false }
    let frames = FrameWalk.group(
      in: bytes, header: header, position: position, seal: seal,
      previousChecksum: header.previousChecksum)
    if case .success = frames { return true }
    return false
  }
}
