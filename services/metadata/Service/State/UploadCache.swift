// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQMetadata
import MemQModel
import MemQStore
import Synchronization

/// Puts under way, as they were last written here: a step needs no reading then. What it says is only believed as far as
/// the store's revision confirms it.
final class UploadCache: Sendable {
  private struct State {
    var entries: [UploadID: Versioned<UploadRecord>] = [:]
    var order: Deque<UploadID> = []
    var finishedSweep: StoreKey?
    var barSweep: StoreKey?
    var tombstoneSweep: StoreKey?
  }

  /// A record takes about 1 KiB: 4 MiB.
  private static let entriesMax = 4_096

  private let state = Mutex(State())

  /// Where the sweep over finished puts goes on; nil: at the beginning.
  var finishedSweep: StoreKey? {
    get { self.state.withLock { $0.finishedSweep } }
    set { self.state.withLock { $0.finishedSweep = newValue } }
  }

  /// Where the sweep over barred objects goes on; nil: at the beginning.
  var barSweep: StoreKey? {
    get { self.state.withLock { $0.barSweep } }
    set { self.state.withLock { $0.barSweep = newValue } }
  }

  /// Where the sweep over deleted topics goes on; nil: at the beginning.
  var tombstoneSweep: StoreKey? {
    get { self.state.withLock { $0.tombstoneSweep } }
    set { self.state.withLock { $0.tombstoneSweep = newValue } }
  }

  func find(_ id: UploadID) -> Versioned<UploadRecord>? { self.state.withLock { $0.entries[id] } }

  /// Keeps a put that is under way; forgets one that is over.
  func keep(_ upload: UploadRecord, _ revision: Revision) {
    guard revision > .zero else { return }
    self.state.withLock { state in
      guard upload.state.shelf != .done else {
        state.entries[upload.id] = nil
        return
      }
      if state.entries.updateValue(Versioned(upload, revision), forKey: upload.id) == nil {
        state.order.append(upload.id)
      }
      if state.order.count > Self.entriesMax {
        state.entries[state.order.removeFirst()] = nil
      }
    }
  }

  func forget(_ id: UploadID) { self.state.withLock { $0.entries[id] = nil } }
}

/// Reads puts and files from the store.
struct UploadReading: Sendable {
  private let store: any MetadataStore

  init(_ instance: MetadataInstance) { self.store = instance.store }

  /// A put, on whatever shelf.
  func stored(_ id: UploadID) async throws(MemQError) -> Versioned<UploadRecord>? {
    let keys = UploadShelf.allCases.map { StoreKey.upload(id, $0) }
    for entry in try await self.store.get(keys) {
      if let entry { return try Versioned<UploadRecord>(entry) }
    }
    return nil
  }

  /// The latest version of a file.
  func file(_ topic: TopicID, _ name: String) async throws(MemQError) -> Versioned<FileRecord>? {
    guard let entry = try await self.store.get([.file(topic, name)])[0] else { return nil }
    return try Versioned<FileRecord>(entry)
  }
}
