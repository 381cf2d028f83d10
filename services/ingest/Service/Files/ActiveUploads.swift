// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Synchronization

/// The puts this process works on at the moment: each by one stream or one finisher.
final class ActiveUploads: Sendable {
  private let ids = Mutex<Set<UploadID>>([])
  private let limit: Int

  init(limit: Int) { self.limit = limit }

  var count: Int { self.ids.withLock { $0.count } }

  /// - Throws: `.uploadInProgress`, `.resourceExhausted`.
  func begin(_ id: UploadID) throws(MemQError) {
    let error: MemQError? = self.ids.withLock { ids in
      guard !ids.contains(id) else {
        return MemQError(.uploadInProgress, "another stream works on this put", subject: "\(id)")
      }
      guard ids.count < self.limit else {
        return MemQError(
          .resourceExhausted, "too many puts at a time", limit: Int64(self.limit),
          actual: Int64(ids.count))
      }
      ids.insert(id)
      return nil
    }
    if let error { throw error }
  }

  func end(_ id: UploadID) { _ = self.ids.withLock { $0.remove(id) } }
}
