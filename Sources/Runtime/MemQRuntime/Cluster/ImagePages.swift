// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQAPI
public import MemQMetadata
public import MemQModel
import SwiftProtobuf

/// A whole image as messages of bounded size, made one by one: neither a message's limit nor the memory of a whole image in messages
/// bounds how many partitions a cluster may have.
public struct ImagePages: Sequence, IteratorProtocol {
  /// By estimate: one message's limit is 16 MiB, and a page is all that is made at a time.
  public static let pageBytesMax = 1 << 20

  private typealias Entry = (bytes: Int, add: (inout Memq_V1_ImageUpdate) -> Void)

  private let head: Memq_V1_ImageUpdate
  private let pageBytesMax: Int
  private var rest: [AnyIterator<Entry>]
  private var isOver = false

  public init(_ image: ClusterImage, pageBytesMax: Int = ImagePages.pageBytesMax) {
    func entries<S: Sequence>(
      _ values: S, _ bytes: @escaping (S.Element) -> Int,
      _ add: @escaping (inout Memq_V1_ImageUpdate, S.Element) -> Void
    ) -> AnyIterator<Entry> {
      AnyIterator(values.lazy.map { value in (bytes(value), { add(&$0, value) }) }.makeIterator())
    }
    self.head = image.head
    self.pageBytesMax = pageBytesMax
    // Topics stand before their partitions.
    self.rest = [
      entries(image.nodes.values, { 512 + 128 * $0.volumes.count }) { $0.nodes.append($1.wire) },
      entries(image.topics.values, { 512 + 64 * $0.given.count }) { $0.topics.append($1.wire) },
      entries(image.uploadGroups.values, { _ in 64 }) { $0.uploadGroups.append($1.wire) },
      entries(image.partitions.values, { 64 + 48 * $0.replicas.count }) {
        $0.partitions.append($1.wire)
      },
    ]
  }

  public mutating func next() -> Memq_V1_ImageUpdate? {
    guard !self.isOver else { return nil }
    var page = self.head
    var bytes = 0
    while bytes < self.pageBytesMax {
      guard let entry = self.nextEntry() else {
        self.isOver = true
        return page
      }
      entry.add(&page)
      bytes += entry.bytes
    }
    page.more = true
    return page
  }

  private func nextEntry() -> Entry? {
    for entries in self.rest {
      if let entry = entries.next() { return entry }
    }
    return nil
  }
}

/// Puts a whole image together from its messages.
public struct ImageAssembly {
  private var image: ClusterImage?

  public init() {}

  /// Whether the begin of a whole image is there and its end is awaited.
  public var isUnfinished: Bool { self.image != nil }

  /// Takes a message of a whole image.
  ///
  /// - Returns: the image, with its last message.
  /// - Throws: `.invalidArgument` for a field that cannot be; `.corruptMessage` for a message of another revision in between.
  public mutating func take(_ page: Memq_V1_ImageUpdate) throws(MemQError) -> ClusterImage? {
    var next: ClusterImage
    if let image = self.image { next = image } else { next = try ClusterImage(head: page) }
    // The only reference: what is taken in is not copied.
    self.image = nil
    guard page.full, page.revision == next.revision.rawValue,
      page.incarnation == next.incarnation.rawValue
    else {
      throw MemQError(
        .corruptMessage, "an image was not told to its end", limit: next.revision.rawValue,
        actual: page.revision)
    }
    try next.take(page)
    guard page.more else { return next }
    self.image = next
    return nil
  }
}
