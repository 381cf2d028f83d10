// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQRecords

/// Rules for what a client says about a file.
enum FileRules {
  static let attributesMax = 64
  static let attributeBytesMax = 1_024
  static let contentTypeBytesMax = 255

  /// - Throws: `.fileNameInvalid`: 1–1,024 bytes without NUL; no empty, "." or ".." part; not starting with "/".
  static func check(name: String) throws(MemQError) {
    func invalid(_ why: String) -> MemQError {
      MemQError(
        .fileNameInvalid, "a file's name \(why)", subject: name,
        limit: Int64(Limits.fileNameBytesMax), actual: Int64(name.utf8.count))
    }
    let bytes = name.utf8
    guard !bytes.isEmpty, bytes.count <= Limits.fileNameBytesMax else {
      throw invalid("has 1 to 1,024 bytes")
    }
    guard !bytes.contains(0) else { throw invalid("has no NUL") }
    for part in bytes.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false) {
      guard !part.isEmpty else {
        throw invalid("has no empty part and does not begin or end with \"/\"")
      }
      guard !part.elementsEqual(".".utf8), !part.elementsEqual("..".utf8) else {
        throw invalid("has no part \".\" or \"..\"")
      }
    }
  }

  /// - Throws: `.invalidArgument`.
  static func check(contentType: String, attributes: [String: String]) throws(MemQError) {
    guard contentType.utf8.count <= Self.contentTypeBytesMax else {
      throw MemQError(
        .invalidArgument, "a content type has up to 255 bytes", subject: "content_type",
        limit: Int64(Self.contentTypeBytesMax), actual: Int64(contentType.utf8.count))
    }
    guard contentType != QuarantinedRecords.contentType else {
      throw MemQError(
        .invalidArgument, "the content type is reserved: \(contentType)", subject: "content_type")
    }
    guard attributes.count <= Self.attributesMax else {
      throw MemQError(
        .invalidArgument, "a file has up to 64 attributes", subject: "attributes",
        limit: Int64(Self.attributesMax), actual: Int64(attributes.count))
    }
    let longest = attributes.lazy.map { $0.key.utf8.count + $0.value.utf8.count }.max() ?? 0
    guard longest <= Self.attributeBytesMax else {
      throw MemQError(
        .invalidArgument, "an attribute has up to 1,024 bytes, name and value together",
        subject: "attributes", limit: Int64(Self.attributeBytesMax), actual: Int64(longest))
    }
  }

  /// - Throws: `.fileTooLarge`, `.invalidArgument`.
  static func check(declaredSize size: Int64) throws(MemQError) {
    guard size >= -1 else {
      throw MemQError(
        .invalidArgument, "a size is 0 or more, or -1 when it is not known", subject: "size",
        limit: -1, actual: size)
    }
    guard size <= Limits.fileBytesMax else {
      throw MemQError(
        .fileTooLarge, "a file has up to 5 TiB", limit: Limits.fileBytesMax, actual: size)
    }
  }

  /// Where a file's records go: by its name, so that the versions of a name keep their order.
  static func partition(of name: String, among count: Int) -> PartitionIndex {
    var name = name
    return name.withUTF8 {
      KeyHash.partition(of: UnsafeRawBufferPointer($0), among: count)
    }
  }
}
