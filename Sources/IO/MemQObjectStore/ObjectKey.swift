// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A key that every store takes and that is a safe relative path in a folder.
///
/// 1–900 bytes of `a-z A-Z 0-9 . _ -`, in parts of 1–200 bytes between slashes; no part begins with a dot.
public struct ObjectKey: Hashable, Sendable, Comparable, CustomStringConvertible {
  /// S3 takes 1,024; the rest is for the prefix of a bucket that is shared.
  public static let bytesMax = 900
  /// A folder's file names have at most 255 bytes; the rest is for suffixes.
  public static let partBytesMax = 200

  public let text: String

  /// - Throws: `.invalidArgument`.
  public init(_ text: String) throws(MemQError) {
    try Self.check(text, isPrefix: false)
    self.text = text
  }

  /// Checks a prefix for `list`: a key, or the start of one, or empty.
  static func check(_ text: String, isPrefix: Bool) throws(MemQError) {
    func refuse(_ message: String) -> MemQError {
      MemQError(.invalidArgument, "not an object key: \(message)", subject: text)
    }
    guard text.utf8.count <= Self.bytesMax else {
      throw MemQError(
        .invalidArgument, "the object key is too long", subject: text, limit: Int64(Self.bytesMax),
        actual: Int64(text.utf8.count))
    }
    if isPrefix && text.isEmpty { return }
    let parts = text.split(separator: "/", omittingEmptySubsequences: false)
    for (index, part) in parts.enumerated() {
      if isPrefix && index == parts.count - 1 && part.isEmpty { continue }
      guard !part.isEmpty, part.utf8.count <= Self.partBytesMax else {
        throw refuse("a part has 1-\(Self.partBytesMax) bytes")
      }
      guard part.utf8.first != UInt8(ascii: ".") else { throw refuse("a part begins with a dot") }
      guard part.utf8.allSatisfy(Self.allows) else {
        throw refuse("only a-z A-Z 0-9 . _ - and / are allowed")
      }
    }
  }

  private static func allows(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "_"),
      UInt8(ascii: "-"):
      true
    default: false
    }
  }

  public var description: String { self.text }
  public static func < (a: Self, b: Self) -> Bool { a.text < b.text }
}

extension ObjectKey {
  private init(trusted text: String) { self.text = text }

  /// Where an upload group's objects stand.
  public static func objectPrefix(group: Int32) -> String {
    let digits = String(group)
    return "objects/" + String(repeating: "0", count: max(0, 8 - digits.count)) + digits + "/"
  }

  /// The key of an object that holds records.
  public static func object(_ id: ObjectID, group: Int32) -> ObjectKey {
    ObjectKey(trusted: Self.objectPrefix(group: group) + id.description)
  }

  /// The key of a file's body.
  public static func body(_ upload: UploadID, topic: TopicID) -> ObjectKey {
    ObjectKey(trusted: "bodies/\(topic)/\(upload)")
  }
}
