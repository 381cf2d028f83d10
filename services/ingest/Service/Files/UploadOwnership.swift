// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Who may drive a put: one at a time, over all ingests.
enum UploadOwnership {
  /// A driver that has not moved its put for this long has lost its client: an ingest gives a silent stream up after half of it.
  static let silence: Duration = .seconds(120)

  /// Whether a put that names `driver` may be taken over by `me`.
  ///
  /// - Parameters:
  ///   - isDrivenHere: this process works on it at the moment.
  ///   - isLive: whether a node is registered and not fenced.
  ///   - idle: time since its last change.
  static func mayTake(
    driver: NodeID?, me: NodeID, isDrivenHere: Bool, idle: Duration, isLive: (NodeID) -> Bool
  ) -> Bool {
    guard !isDrivenHere else { return false }
    guard let driver, driver != me else { return true }
    return !isLive(driver) || idle > Self.silence
  }
}
