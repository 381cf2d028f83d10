// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What a put has said and sent so far, and whether the next thing fits. Knows nothing of bytes' content.
///
///     start ──▶ chunks (without a gap, from `begin`) ──▶ finish
struct PutProgress: Equatable {
  /// −1: not declared.
  let declaredSize: Int64
  /// Place of the next byte.
  private(set) var offset: Int64

  /// - Parameter begin: durable bytes: where the client was told to begin.
  init(declaredSize: Int64, begin: Int64) {
    self.declaredSize = declaredSize
    self.offset = begin
  }

  /// Takes a chunk's place.
  ///
  /// - Throws: `.uploadOffsetMismatch`, `.messageTooLarge`, `.fileTooLarge`, `.invalidArgument` for an empty chunk.
  mutating func chunk(at place: Int64, byteCount: Int) throws(MemQError) {
    guard place == self.offset else {
      throw MemQError(
        .uploadOffsetMismatch, "a chunk does not follow the one before", limit: self.offset,
        actual: place)
    }
    guard byteCount > 0 else {
      throw MemQError(.invalidArgument, "a chunk has at least one byte", subject: "chunk")
    }
    guard byteCount <= Limits.fileChunkBytesMax else {
      throw MemQError(
        .messageTooLarge, "a chunk has up to 1 MiB", limit: Int64(Limits.fileChunkBytesMax),
        actual: Int64(byteCount))
    }
    let end = place + Int64(byteCount)
    let limit = self.declaredSize >= 0 ? self.declaredSize : Limits.fileBytesMax
    guard end <= limit else {
      throw MemQError(
        .fileTooLarge,
        self.declaredSize >= 0
          ? "more bytes come than were declared" : "a file has up to 5 TiB",
        limit: limit, actual: end)
    }
    self.offset = end
  }

  /// - Throws: `.fileIncomplete`.
  func finish() throws(MemQError) {
    guard self.declaredSize < 0 || self.offset == self.declaredSize else {
      throw MemQError(
        .fileIncomplete, "the put ends before its declared size", limit: self.declaredSize,
        actual: self.offset)
    }
  }
}
