// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel

/// Rules for what a client says of consumer groups, before metadata is asked.
enum GroupRules {
  static let offsetsMax = 10_000
  /// How long a heartbeat is held.
  static let heartbeatWaitMaxMilliseconds: Int32 = 30_000
  static let commitMetadataBytesMax = 1_024

  /// - Throws: `.groupNameInvalid`: 1–255 bytes without control characters.
  static func check(name: String) throws(MemQError) {
    let bytes = name.utf8
    guard !bytes.isEmpty, bytes.count <= Limits.groupNameBytesMax,
      !bytes.contains(where: { $0 < 0x20 || $0 == 0x7F })
    else {
      throw MemQError(
        .groupNameInvalid, "a group's name has 1 to 255 bytes of printable characters",
        subject: name, limit: Int64(Limits.groupNameBytesMax), actual: Int64(bytes.count))
    }
  }

  /// - Throws: `.invalidArgument`.
  static func check(sessionTimeout milliseconds: Int32) throws(MemQError) {
    guard milliseconds == 0 || (1_000...600_000).contains(milliseconds) else {
      throw MemQError(
        .invalidArgument, "a session timeout is 1,000 to 600,000 ms, or 0 for the default",
        subject: "session_timeout_ms", limit: milliseconds < 1_000 ? 1_000 : 600_000,
        actual: Int64(milliseconds))
    }
  }

  /// - Throws: `.invalidArgument`.
  static func check(offsets: [Memq_V1_GroupOffset]) throws(MemQError) {
    guard offsets.count <= Self.offsetsMax else {
      throw MemQError(
        .invalidArgument, "a commit has up to 10,000 offsets", subject: "offsets",
        limit: Int64(Self.offsetsMax), actual: Int64(offsets.count))
    }
    for offset in offsets {
      guard offset.offset >= 0 else {
        throw MemQError(
          .invalidArgument, "an offset is not negative", subject: "offset", limit: 0,
          actual: offset.offset)
      }
      guard offset.metadata.utf8.count <= Self.commitMetadataBytesMax else {
        throw MemQError(
          .invalidArgument, "an offset's metadata has up to 1,024 bytes", subject: "metadata",
          limit: Int64(Self.commitMetadataBytesMax), actual: Int64(offset.metadata.utf8.count))
      }
    }
  }
}
