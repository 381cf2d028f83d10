// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQPacking

// What objects know of leader epochs: each run names those of its batches.
extension ObjectReaderCore {
  func truncation(
    _ partition: TopicPartition, group: Int32, forReaderAt offset: Offset, lastEpoch: LeaderEpoch,
    logStart: Offset
  ) async throws(MemQError) -> LogTruncation? {
    // What lies before the log's start is gone, whatever it was.
    guard offset > logStart, offset > .zero,
      let entry = self.entry(group, of: partition, holding: Offset(offset.rawValue - 1)),
      let found = try await self.epochs(group, partition, entry)?.epoch(before: offset),
      found != lastEpoch
    else { return nil }
    let runs = self.entries(group, of: partition)
    guard let last = runs.lastIndex(where: { $0.baseOffset < offset }) else { return nil }
    guard found > lastEpoch else {
      // Another epoch all the way, an earlier one: nothing tells where the reader's began.
      let boundary = try await self.boundary(
        group, partition, runs[...last], above: LeaderEpoch(found.rawValue - 1))
      let resume = max(boundary?.start ?? runs[0].baseOffset, logStart)
      return LogTruncation(
        epoch: found, end: offset, resume: resume, resumeEpoch: boundary?.epochBefore)
    }
    let boundary = try await self.boundary(group, partition, runs[...last], above: lastEpoch)
    let end = max(boundary?.start ?? runs[0].baseOffset, logStart)
    return LogTruncation(
      epoch: boundary?.epochBefore ?? .none, end: end, resume: end,
      resumeEpoch: boundary?.epochBefore)
  }

  private struct Boundary {
    var start: Offset
    /// Nil: no object holds the record before.
    var epochBefore: LeaderEpoch?
  }

  /// The first record of an epoch above `epoch`; the last of `runs` has one. Epochs never fall from run to run.
  private func boundary(
    _ group: Int32, _ partition: TopicPartition, _ runs: ArraySlice<RunIndex.Entry>,
    above epoch: LeaderEpoch
  ) async throws(MemQError) -> Boundary? {
    var low = runs.startIndex
    var high = runs.endIndex - 1
    while low < high {
      let middle = (low + high) / 2
      // One that was collected meanwhile lies below the log start.
      guard let starts = try await self.epochs(group, partition, runs[middle]) else {
        low = middle + 1
        continue
      }
      if starts.last > epoch { high = middle } else { low = middle + 1 }
    }
    guard let starts = try await self.epochs(group, partition, runs[low]),
      let at = starts.entries.firstIndex(where: { $0.epoch > epoch })
    else { return nil }
    let start = max(starts.entries[at].start, runs[low].baseOffset)
    if at > 0 { return Boundary(start: start, epochBefore: starts.entries[at - 1].epoch) }
    guard low > runs.startIndex, runs[low - 1].endOffset == start else {
      return Boundary(start: start, epochBefore: nil)
    }
    let before = try await self.epochs(group, partition, runs[low - 1])
    return Boundary(start: start, epochBefore: before?.last)
  }

  /// The epochs of a run, as far as it is live.
  private struct RunEpochs {
    var entries: [EpochStart]
    var last: LeaderEpoch

    func epoch(before offset: Offset) -> LeaderEpoch? {
      self.entries.last { $0.start < offset }?.epoch
    }
  }

  private func epochs(
    _ group: Int32, _ partition: TopicPartition, _ entry: RunIndex.Entry
  ) async throws(MemQError) -> RunEpochs? {
    guard let object = self.object(group, entry.sequence) else { return nil }
    do throws(MemQError) {
      let starts = try await self.footer(of: object).run(of: partition)?.epochStarts ?? []
      let live = starts.filter { $0.start < entry.endOffset }
      return live.last.map { RunEpochs(entries: live, last: $0.epoch) }
    } catch {
      guard error.code == .objectNotFound else { throw error }
      return nil
    }
  }
}
