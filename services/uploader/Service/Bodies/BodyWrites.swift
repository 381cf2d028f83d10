// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQModel
import MemQObjectStore
import MemQRPC
import MemQSystem
import Metrics
import Synchronization

/// File bodies on their way into the store.
///
/// A body has one writer: a newer call for the same key ends the older one, whose connection may be gone without our
/// knowing. Memory per body is bounded by what is gathered for one write and the call's flow-control window.
final class BodyWrites: Sendable {
  typealias Requests = TypedReader<Hot<Memq_V1_WriteBodyRequest>>
  typealias Replies = TypedWriter<Memq_V1_WriteBodyResponse>

  private struct State {
    var writers: [String: (number: UInt64, task: Task<Outcome<Void>, Never>)] = [:]
    var lastNumber: UInt64 = 0
    var bodies: Int64 = 0
    var byteCount: Int64 = 0
  }

  private let context: UploaderContext
  private let state = Mutex(State())

  init(context: UploaderContext) { self.context = context }

  /// Bodies made whole since the start, and bytes written.
  var counts: (bodies: Int64, byteCount: Int64) {
    self.state.withLock { ($0.bodies, $0.byteCount) }
  }

  func write(_ requests: Requests, _ replies: Replies) async throws(MemQError) {
    guard let first = try await requests.next(), case .start(let start)? = first.header.part else {
      throw MemQError(.invalidArgument, "the first message of a body is its start")
    }
    let key = try Self.bodyKey(start.bodyKey)
    let number = try self.enter(key)
    let older = self.state.withLock { $0.writers.removeValue(forKey: key.text)?.task }
    older?.cancel()
    let task = Task {
      // Its writer lets go of the body before ours opens it.
      _ = await older?.value
      return await Outcome { () async throws(MemQError) in
        try await self.run(key, from: start.offset, requests, replies)
      }
    }
    self.state.withLock { $0.writers[key.text] = (number, task) }
    let result = await withTaskCancellationHandler {
      await task.value
    } onCancel: {
      task.cancel()
    }
    self.state.withLock {
      if $0.writers[key.text]?.number == number { $0.writers[key.text] = nil }
    }
    try result.get()
  }

  /// Keys of bodies only: nobody deletes or writes records' objects this way.
  static func bodyKey(_ text: String) throws(MemQError) -> ObjectKey {
    guard text.hasPrefix("bodies/") else {
      throw MemQError(.invalidArgument, "a body's key begins with bodies/", subject: text)
    }
    return try ObjectKey(text)
  }

  private func enter(_ key: ObjectKey) throws(MemQError) -> UInt64 {
    let limit = self.context.configuration.bodiesMax
    let number: UInt64? = self.state.withLock { state in
      guard state.writers.count < limit || state.writers[key.text] != nil else { return nil }
      state.lastNumber += 1
      return state.lastNumber
    }
    guard let number else {
      throw MemQError(
        .resourceExhausted, "this uploader writes as many bodies as it may; try again",
        subject: key.text, limit: Int64(limit), actual: Int64(limit) + 1)
    }
    return number
  }

  private func run(
    _ key: ObjectKey, from offset: Int64, _ requests: Requests, _ replies: Replies
  ) async throws(MemQError) {
    let timeout = self.context.configuration.storeTimeout
    let writer = try await self.context.store.openBody(key, from: offset, timeout: timeout)
    let body = BodyWrite(writer: writer, offset: offset, timeout: timeout)
    let result = await Outcome { () async throws(MemQError) in
      try await body.run(requests, replies)
    }
    await writer.close()
    let written = body.byteCount - offset
    let isWhole = (try? result.get()) != nil
    self.state.withLock {
      $0.byteCount += written
      $0.bodies += isWhole ? 1 : 0
    }
    self.context.metrics.bodyBytes.increment(by: written)
    if isWhole { self.context.metrics.bodies.increment() }
    try result.get()
  }

  /// Deletes a body, finished or not; a writer of it is ended first.
  func delete(_ key: ObjectKey) async throws(MemQError) {
    let writer = self.state.withLock { $0.writers.removeValue(forKey: key.text)?.task }
    writer?.cancel()
    _ = await writer?.value
    try await self.context.store.delete(key, timeout: self.context.configuration.storeTimeout)
  }

  /// Lets bodies under way end until the deadline; what is durable of the others is taken up elsewhere.
  func drain(deadline: Duration) async {
    let end = self.context.clock.monotonic + deadline
    while self.context.clock.monotonic < end {
      guard self.state.withLock({ !$0.writers.isEmpty }),
        (try? await Task.sleep(for: .milliseconds(20))) != nil
      else { break }
    }
    let left = self.state.withLock { state in state.writers.values.map(\.task) }
    for task in left { task.cancel() }
    for task in left { _ = await task.value }
  }
}
