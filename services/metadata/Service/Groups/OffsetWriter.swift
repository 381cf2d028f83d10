// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
import MemQMetadata
import MemQModel
import MemQStore
import MemQSystem

/// Stores committed offsets, those of all groups together: a commit that finds nothing under way is written at once, others gather
/// until 100 ms after the write before has begun. Each is answered when it is durable.
actor OffsetWriter {
  /// Writes of this instance begin at least so far apart.
  private static let interval: Duration = .milliseconds(100)
  /// Commits that wait, and what they take in memory; one is taken in any case.
  private static let waitingMax = 20_000
  private static let waitingBytesMax = 64 << 20
  /// Commits of one write: bounds what is lost and asked again at a conflict.
  private static let perWriteMax = 2_000
  /// Offsets of one write, but at least one commit.
  private static let offsetsPerWriteMax = 20_000

  private struct Waiting {
    var id: Int
    var request: OffsetCommitRequest
    var bytes: Int
    /// Nil: who waited for it is gone, and it is not written.
    var continuation: CheckedContinuation<MemQError?, Never>?
  }

  private let runner: CommandRunner
  private let clock: any MemQClock
  private let metrics: MetadataMetrics
  /// By id.
  private var waiting: [Waiting] = []
  private var waitingBytes = 0
  private var nextID = 0
  private var isWriting = false
  private var lastBegun: MonotonicInstant?

  init(runner: CommandRunner, clock: any MemQClock, metrics: MetadataMetrics) {
    self.runner = runner
    self.clock = clock
    self.metrics = metrics
  }

  /// A caller that is cancelled while its commit waits takes it along.
  ///
  /// - Throws: as `MetadataState.commitOffsets` refuses; `.resourceExhausted`, `.cancelled`.
  func commit(_ request: OffsetCommitRequest) async throws(MemQError) {
    let bytes = request.commits.reduce(0) { $0 + 64 + $1.metadata.utf8.count }
    func check(_ actual: Int, _ limit: Int, _ what: String) throws(MemQError) {
      guard !self.waiting.isEmpty, actual > limit else { return }
      throw MemQError(
        .resourceExhausted, "too many \(what) wait to be written", subject: request.session.group,
        limit: Int64(limit), actual: Int64(actual))
    }
    try check(self.waiting.count + 1, Self.waitingMax, "commits")
    try check(self.waitingBytes + bytes, Self.waitingBytesMax, "bytes of commits")
    let id = self.nextID
    self.nextID += 1
    let failure = await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        self.waiting.append(
          Waiting(id: id, request: request, bytes: bytes, continuation: continuation))
        self.waitingBytes += bytes
        guard !self.isWriting else { return }
        self.isWriting = true
        Task { await self.write() }
      }
    } onCancel: {
      Task { await self.giveUp(id) }
    }
    if let failure { throw failure }
  }

  /// One that is being written is not given up.
  private func giveUp(_ id: Int) {
    var (low, high) = (0, self.waiting.count)
    while low < high {
      let middle = (low + high) / 2
      if self.waiting[middle].id < id { low = middle + 1 } else { high = middle }
    }
    guard low < self.waiting.count, self.waiting[low].id == id else { return }
    self.waitingBytes -= self.waiting[low].bytes
    self.waiting[low].bytes = 0
    self.waiting[low].request.commits = []
    self.waiting[low].continuation.take()?.resume(
      returning: MemQError(.cancelled, "who wanted the commit is gone"))
  }

  private func write() async {
    while !self.waiting.isEmpty {
      if let lastBegun = self.lastBegun {
        let left = Self.interval - (self.clock.monotonic - lastBegun)
        if left > .zero { try? await Task.sleep(for: left) }
      }
      self.lastBegun = self.clock.monotonic
      let batch = self.take()
      guard !batch.isEmpty else { continue }
      let refusals = await self.store(batch.map(\.request))
      for (waiting, refusal) in zip(batch, refusals) {
        waiting.continuation?.resume(returning: refusal)
      }
    }
    self.isWriting = false
  }

  private func take() -> [Waiting] {
    var (count, offsets) = (0, 0)
    for next in self.waiting.prefix(Self.perWriteMax) {
      offsets += next.request.commits.count
      guard count == 0 || offsets <= Self.offsetsPerWriteMax else { break }
      count += 1
    }
    let batch = self.waiting.prefix(count).filter { $0.continuation != nil }
    self.waiting.removeFirst(count)
    for taken in batch { self.waitingBytes -= taken.bytes }
    return batch
  }

  /// One answer for each request.
  private func store(_ requests: [OffsetCommitRequest]) async -> [MemQError?] {
    var groups: SortedMap<String, [Int]> = [:]
    for (index, request) in requests.enumerated() {
      groups[request.session.group, default: []].append(index)
    }
    let order = groups.values
    do throws(MemQError) {
      let now = self.clock.wall
      let runner = self.runner
      let refusals = try await runner.run(
        "commit-offsets",
        reading: { (_: Int) throws(MemQError) in
          var batch: [OffsetBatch] = []
          for indices in order {
            let group = indices.map { requests[$0] }
            batch.append(OffsetBatch(group, known: try await Self.known(group, runner)))
          }
          return batch
        }
      ) { (state: MetadataState, batch: [OffsetBatch]) throws(MemQError) in
        state.commitOffsets(batch, at: now)
      }.outcome
      self.metrics.offsetWrites.increment()
      self.metrics.offsetCommits.increment(by: requests.count)
      var answers = [MemQError?](repeating: nil, count: requests.count)
      for (indices, outcomes) in zip(order, refusals) {
        for (index, outcome) in zip(indices, outcomes) { answers[index] = outcome }
      }
      return answers
    } catch {
      return requests.map { _ in error }
    }
  }

  /// What stands under the chunks of commits to one group. Commits that have become illegal meanwhile are left to the core.
  private static func known(
    _ requests: [OffsetCommitRequest], _ runner: CommandRunner
  ) async throws(MemQError) -> SortedMap<OffsetChunkID, Versioned<OffsetChunkRecord>> {
    var chunks: SortedMap<OffsetChunkID, Bool> = [:]
    runner.cell.read { state in
      for request in requests {
        for chunk in (try? state.chunks(of: request.commits)) ?? [] { chunks[chunk] = true }
      }
    }
    let name = requests[0].session.group
    var known: SortedMap<OffsetChunkID, Versioned<OffsetChunkRecord>> = [:]
    var rest = chunks.keys[...]
    while !rest.isEmpty {
      let page = rest.prefix(StoreLimits.keysPerGetMax)
      rest = rest.dropFirst(page.count)
      let entries = try await runner.store.get(
        page.map { .offsets(name, $0.topic, chunk: $0.chunk) })
      for (id, entry) in zip(page, entries) {
        if let entry { known[id] = try Versioned<OffsetChunkRecord>(entry) }
      }
    }
    return known
  }
}
