// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQModel

// After an unclean election the log may lack records that were read, and have others under their offsets. Each fetch names the epoch of the
// record before its offset, so the server can tell. KIP-320.
extension Consumer {
  /// The log does not have what was fetched of a partition: goes back to where both agree.
  ///
  /// - Throws: `.logTruncated` with ``Reset/fail``, when something of it was handed out.
  func truncated(
    _ error: MemQError, _ partition: PartitionIndex, _ header: Memq_V1_FetchResponse
  ) async throws(MemQError) {
    guard let position = self.fetchPositions[partition], header.hasTruncation else { throw error }
    var trail = self.trails[partition] ?? EpochTrail(nil, before: position)
    let common = trail.part(LogTruncation(header.truncation), at: position)
    // What was fetched and not handed out is asked for again.
    self.ready.removeAll { $0.records.partition == partition }
    self.readyBytes = self.ready.reduce(0) { $0 + $1.bytes }
    let delivered = self.deliveredPositions[partition] ?? position
    trail.cut(to: delivered)
    self.trails[partition] = trail
    guard common < delivered else { return self.fetchPositions[partition] = delivered }

    let loss = TruncatedPartition(partition: partition, read: delivered, next: common)
    guard self.configuration.reset != .fail else {
      throw MemQError(
        .logTruncated,
        "the log lost records that were handed out: from the limit on it has another history",
        subject: "\(self.topic)/\(partition)", limit: common.rawValue, actual: delivered.rawValue)
    }
    self.truncationCount += 1
    self.logger.error(
      "The log lost records that were handed out: going on where both histories agree",
      metadata: [
        "topic": "\(self.topic)", "partition": "\(partition)", "offset": "\(delivered)",
        "next": "\(common)",
      ])
    self.goBack(partition, to: common)
    await self.configuration.onTruncation?(loss)
  }

  private func goBack(_ partition: PartitionIndex, to offset: Offset) {
    let end = self.end(of: partition)
    self.fetchPositions[partition] = end < .max && offset >= end ? nil : offset
    self.deliveredPositions[partition] = offset
    self.truncatedPartitions.insert(partition)
    if self.unmarked?.partition == partition { self.unmarked = nil }
    guard self.membership != nil else { return }
    self.assignment.goBack(partition, to: offset)
    // The group goes on there, too.
    if let known = self.consumed[partition] ?? self.committed[partition], known > offset {
      self.consumed[partition] = offset
    }
    self.assignment.marked()
  }
}
