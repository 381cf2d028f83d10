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
  /// Commits that wait.
  private static let waitingMax = 20_000
  /// Commits of one write: bounds what is lost and asked again at a conflict.
  private static let perWriteMax = 2_000
  /// Offsets of one write, but at least one commit.
  private static let offsetsPerWriteMax = 20_000

  private struct Waiting {
    var request: OffsetCommitRequest
    var continuation: CheckedContinuation<MemQError?, Never>
  }

  private let runner: CommandRunner
  private let clock: any MemQClock
  private let metrics: MetadataMetrics
  private var waiting: [Waiting] = []
  private var isWriting = false
  private var lastBegun: MonotonicInstant?

  init(runner: CommandRunner, clock: any MemQClock, metrics: MetadataMetrics) {
    self.runner = runner
    self.clock = clock
    self.metrics = metrics
  }

  /// - Throws: as `MetadataState.commitOffsets` refuses; `.resourceExhausted`.
  func commit(_ request: OffsetCommitRequest) async throws(MemQError) {
    guard self.waiting.count < Self.waitingMax else {
      throw MemQError(
        .resourceExhausted, "too many commits wait to be written",
        subject: request.session.group, limit: Int64(Self.waitingMax),
        actual: Int64(self.waiting.count + 1))
    }
    let failure = await withCheckedContinuation { continuation in
      self.waiting.append(Waiting(request: request, continuation: continuation))
      guard !self.isWriting else { return }
      self.isWriting = true
      Task { await self.write() }
    }
    if let failure { throw failure }
  }

  private func write() async {
    while !self.waiting.isEmpty {
      if let lastBegun = self.lastBegun {
        let left = Self.interval - (self.clock.monotonic - lastBegun)
        if left > .zero { try? await Task.sleep(for: left) }
      }
      self.lastBegun = self.clock.monotonic
      let batch = self.take()
      let refusals = await self.store(batch.map(\.request))
      for (waiting, refusal) in zip(batch, refusals) {
        waiting.continuation.resume(returning: refusal)
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
    let batch = Array(self.waiting.prefix(count))
    self.waiting.removeFirst(count)
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
