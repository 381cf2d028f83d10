// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQSystem
import SwiftProtobuf
import Synchronization

/// A watch that outlives its connections: it goes on behind the last revision it has told, on whichever member answers.
///
/// The store's revision without a change of the range is told only now and then: members send that unasked every 10 minutes. The answer
/// to being asked may overtake the changes before it in many versions (etcd issue 15220).
final class EtcdWatch: StoreWatch {
  private struct State {
    var position: Revision
    var stream: TypedStream<EtcdWatchRequest, EtcdWatchResponse>?
    var member = 0
    var failures = 0
  }

  private let client: EtcdClient
  private let keys: EtcdKeyspace
  private let range: KeyRange
  private let backoff: ClosedRange<Duration>
  private let logger: Logger
  private let state: Mutex<State>

  init(
    _ client: EtcdClient, _ keys: EtcdKeyspace, _ range: KeyRange, after revision: Revision,
    backoff: ClosedRange<Duration>, logger: Logger
  ) {
    self.client = client
    self.keys = keys
    self.range = range
    self.backoff = backoff
    self.logger = logger
    self.state = Mutex(State(position: revision))
  }

  func next() async throws(MemQError) -> WatchBatch {
    while true {
      do {
        return try await self.read()
      } catch {
        self.state.withLock { $0.stream.take() }?.cancel()
        guard error.code != .revisionCompacted else { throw error }
        guard !self.client.isClosed else { throw EtcdClient.closed }
        guard !Task.isCancelled else { throw MemQError(.cancelled, "the watch was cancelled") }
        await self.rest(after: error)
      }
    }
  }

  private func rest(after error: MemQError) async {
    let (failures, member) = self.state.withLock { state in
      state.failures += 1
      return (state.failures, state.member)
    }
    self.client.streamFailed(member, error)
    self.logger.debug("A watch of etcd broke off", metadata: ["error": "\(error)"])
    let wait = min(self.backoff.lowerBound * (1 << min(failures, 8)), self.backoff.upperBound)
    let spread = Double(SystemEntropy().next() % 1_000) / 1_000 * 0.4 + 0.8
    try? await Task.sleep(for: wait * spread)
  }

  // MARK: Reading

  private func read() async throws(MemQError) -> WatchBatch {
    let position = self.state.withLock { $0.position }
    let stream = try await self.stream(after: position)
    var changes: [StoreChange] = []
    while let response = try await stream.responses.next() {
      try Self.checkEnd(response, position)
      if response.created { continue }
      for event in response.events {
        guard let key = self.keys.storeKey(event.kv.key) else { continue }
        changes.append(
          StoreChange(
            key: key, value: event.type == .delete ? nil : Array(event.kv.value),
            revision: Revision(event.kv.modRevision)))
      }
      if response.fragment { continue }
      // Without events: nothing has happened up to there. With events there may be more of that revision's.
      let through = changes.last?.revision ?? Revision(response.header.revision)
      guard through > position else { continue }
      self.state.withLock {
        $0.position = through
        $0.failures = 0
      }
      return WatchBatch(changes: changes, through: through)
    }
    throw MemQError(.unavailable, "etcd ended the watch")
  }

  private func stream(
    after position: Revision
  ) async throws(MemQError) -> TypedStream<EtcdWatchRequest, EtcdWatchResponse> {
    if let stream = self.state.withLock({ $0.stream }) { return stream }
    let (stream, member) = try await self.client.open(EtcdMethods.watch)
    self.state.withLock { $0.member = member }
    let bounds = self.keys.bounds(self.range)
    try await stream.send(
      .with {
        $0.createRequest = .with {
          $0.key = bounds.lower
          $0.rangeEnd = bounds.upper
          $0.startRevision = position.rawValue + 1
          $0.progressNotify = true
          $0.fragment = true
        }
      })
    guard let created = try await stream.responses.next() else {
      throw MemQError(.unavailable, "etcd ended the watch")
    }
    try Self.checkEnd(created, position)
    try await self.checkHistory(position)
    self.state.withLock { $0.stream = stream }
    return stream
  }

  private static func checkEnd(
    _ response: EtcdWatchResponse, _ position: Revision
  ) throws(MemQError) {
    guard response.canceled || response.compactRevision != 0 else { return }
    guard response.compactRevision != 0 else {
      throw MemQError(.unavailable, "etcd ended the watch: \(response.cancelReason)")
    }
    throw Self.gone(position, "first that is left: \(response.compactRevision)")
  }

  private static func gone(_ position: Revision, _ why: String) -> MemQError {
    MemQError(
      .revisionCompacted,
      "the history after that revision is gone (\(why)); read, then watch from there",
      actual: position.rawValue)
  }

  /// What etcd reads at the position proves two things. It was not compacted past it: a watch that begins with the very
  /// revision of a compaction is taken, but may miss a deletion. And it has come so far: one that was restored from a
  /// backup would keep the watch waiting for the future.
  private func checkHistory(_ position: Revision) async throws(MemQError) {
    guard position > .zero else { return }
    let bounds = self.keys.bounds(self.range)
    do {
      _ = try await self.client.call(
        EtcdMethods.range,
        .with {
          $0.key = bounds.lower
          $0.revision = position.rawValue
          $0.countOnly = true
        })
    } catch {
      guard error.code == .revisionCompacted else { throw error }
      throw Self.gone(position, error.message)
    }
  }
}
