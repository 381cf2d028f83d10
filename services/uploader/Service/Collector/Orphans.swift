// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQObjectStore
import MemQRPC
import MemQRuntime
import SwiftProtobuf

/// Objects that stand in the store and in no list: their uploader died, or lost its lease, before the announcement.
enum Orphans {
  /// Bars the id, then deletes the bytes: whoever still means to announce it fails. One that is announced stays.
  ///
  /// - Returns: false when it is announced.
  @discardableResult
  static func remove(
    _ id: ObjectID, group: Int32, _ context: UploaderContext
  ) async throws(MemQError) -> Bool {
    let bar = try await context.cluster.metadata.call(
      MetadataMethods.barObject,
      .with {
        $0.objectID = id.wire
        $0.groupID = group
      }, timeout: .seconds(10))
    guard !bar.live else { return false }
    try await context.store.delete(
      .object(id, group: group), timeout: context.configuration.storeTimeout)
    // The bar goes when no lease is left under which the object could be announced; metadata keeps it till then.
    _ = try await context.cluster.metadata.call(
      MetadataMethods.removeObject,
      .with {
        $0.objectID = id.wire
        $0.groupID = group
      }, timeout: .seconds(10))
    return true
  }

  /// Ids of a group's objects in the store, from the list of its keys.
  static func stored(
    _ group: Int32, _ context: UploaderContext
  ) async throws(MemQError) -> [ObjectID] {
    let prefix = ObjectKey.objectPrefix(group: group)
    var ids: [ObjectID] = []
    var after: ObjectKey?
    while true {
      let page = try await context.store.list(
        prefix: prefix, after: after, limit: 1_000, timeout: context.configuration.storeTimeout)
      ids += page.objects.compactMap { ObjectID($0.key.text.dropFirst(prefix.count)) }
      guard page.hasMore, let last = page.objects.last else { return ids }
      after = last.key
    }
  }
}
