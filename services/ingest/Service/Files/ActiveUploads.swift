// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Synchronization

/// The puts this process works on at the moment: each by one stream or one finisher.
final class ActiveUploads: Sendable {
  /// Holders by put.
  private let ids = Mutex<[UploadID: Int]>([:])
  private let limit: Int

  init(limit: Int) { self.limit = limit }

  var count: Int { self.ids.withLock { $0.count } }

  /// - Throws: `.uploadInProgress`, `.resourceExhausted`.
  func begin(_ id: UploadID) throws(MemQError) {
    let error: MemQError? = self.ids.withLock { ids in
      guard ids[id] == nil else {
        return MemQError(.uploadInProgress, "another stream works on this put", subject: "\(id)")
      }
      guard ids.count < self.limit else {
        return MemQError(
          .resourceExhausted, "too many puts at a time", limit: Int64(self.limit),
          actual: Int64(ids.count))
      }
      ids[id] = 1
      return nil
    }
    if let error { throw error }
  }

  /// One more part of the process works on a put that is in work.
  func hold(_ id: UploadID) { self.ids.withLock { $0[id, default: 0] += 1 } }

  func end(_ id: UploadID) {
    self.ids.withLock { ids in
      guard let holders = ids[id] else { return }
      ids[id] = holders > 1 ? holders - 1 : nil
    }
  }
}
