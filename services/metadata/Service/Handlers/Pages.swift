// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQStore
import SwiftProtobuf

/// Encoded bytes of one page of a list. Many gRPC clients take messages of up to 4 MiB unless told otherwise.
let pageBytesMax = 3 << 20

/// Entries read from the store at a time: large ones, with all their attributes, fill a page long before its limit.
private let entriesPerRead = 100

/// A page while it is filled: bounded by count and by encoded bytes, but never empty while there is something.
struct PageFill<Entry: SwiftProtobuf.Message> {
  let limit: Int
  private(set) var entries: [Entry] = []
  private var byteCount = 0

  init(limit: Int) { self.limit = limit }

  var isFull: Bool { self.entries.count == self.limit }

  /// False: it belongs to the next page.
  mutating func add(_ entry: Entry) -> Bool {
    guard !self.isFull else { return false }
    // Tag and length of the entry within its page: up to 6 bytes.
    let size = ((try? entry.serializedBytes() as [UInt8])?.count ?? 0) + 6
    guard self.entries.isEmpty || self.byteCount + size <= pageBytesMax else { return false }
    self.byteCount += size
    self.entries.append(entry)
    return true
  }
}

/// The beginning of `all` that fits one page.
func boundedPage<Element, Entry: SwiftProtobuf.Message>(
  _ all: some Sequence<Element>, limit: Int, _ wire: (Element) -> Entry
) -> (entries: [Entry], hasMore: Bool) {
  var fill = PageFill<Entry>(limit: limit)
  for element in all {
    guard fill.add(wire(element)) else { return (fill.entries, true) }
  }
  return (fill.entries, false)
}

extension MetadataStore {
  /// What lies in `range` from its beginning, as much as fits one page.
  func page<Entry: SwiftProtobuf.Message>(
    _ range: KeyRange, limit: Int, _ wire: (StoredEntry) throws(MemQError) -> Entry
  ) async throws(MemQError) -> (entries: [Entry], hasMore: Bool) {
    var fill = PageFill<Entry>(limit: limit)
    var rest = range
    while true {
      let read = try await self.range(rest, limit: entriesPerRead)
      for entry in read.entries {
        guard fill.add(try wire(entry)) else { return (fill.entries, true) }
      }
      guard read.hasMore, let last = read.entries.last else { return (fill.entries, false) }
      rest = rest.after(last.key)
    }
  }
}

/// A page's size as asked for.
///
/// - Throws: `.invalidArgument` above `max`.
func pageSize(_ asked: Int32, default size: Int, max: Int) throws(MemQError) -> Int {
  guard asked >= 0, asked <= max else {
    throw MemQError(
      .invalidArgument, "a page is not so large", subject: "limit", limit: Int64(max),
      actual: Int64(asked))
  }
  return asked == 0 ? size : Int(asked)
}
