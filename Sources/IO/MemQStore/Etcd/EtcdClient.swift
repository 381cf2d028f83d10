// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQModel
import MemQRPC
import MemQSystem
import NIOCore
import SwiftProtobuf
import Synchronization

/// What became of one attempt that did not succeed.
enum EtcdFailure: Error {
  /// etcd said no: nothing was done, and asking again changes nothing.
  case refused(MemQError)
  /// Nothing was done; later, or elsewhere, it may work.
  case busy(MemQError)
  /// It may have been done.
  case unknown(MemQError)

  var error: MemQError {
    switch self {
    case .refused(let error), .busy(let error), .unknown(let error): error
    }
  }
}

/// Calls to the members of an etcd: one of them at a time, the next when it fails; with a user's token when there is a user.
final class EtcdClient: Sendable {
  private struct State {
    var current: Int
    var token: String?
    var isClosed = false
    /// Since when nobody has answered.
    var failures = 0
  }

  private let configuration: EtcdStore.Configuration
  private let channels: [RPCNetworkChannel]
  private let logger: Logger
  private let state: Mutex<State>

  init(_ configuration: EtcdStore.Configuration, group: any EventLoopGroup, logger: Logger) {
    var channel = RPCNetworkChannel.Configuration()
    channel.tls = configuration.tls
    channel.connectTimeout = configuration.attemptTimeout
    channel.backoffInitial = configuration.backoff.lowerBound
    channel.backoffMax = configuration.backoff.upperBound
    // A member that stands still is noticed; etcd takes a PING each 5 s at most.
    channel.connection.keepaliveInterval = .seconds(6)
    channel.connection.keepaliveTimeout = .seconds(3)
    self.channels = configuration.endpoints.map {
      RPCNetworkChannel(target: $0, group: group, configuration: channel, logger: logger)
    }
    self.configuration = configuration
    self.logger = logger
    let first = SystemEntropy().next() % UInt64(self.channels.count)
    self.state = Mutex(State(current: Int(first)))
  }

  var isClosed: Bool { self.state.withLock { $0.isClosed } }

  func close() async {
    self.state.withLock { $0.isClosed = true }
    for channel in self.channels { await channel.close(deadline: .zero) }
  }

  static let closed = MemQError(.unavailable, "the store is closed")

  // MARK: One attempt

  func attempt<Q, R>(
    _ method: Method<Q, R>, _ request: Q, timeout: Duration
  ) async throws(EtcdFailure) -> R {
    let (index, token, isClosed) = self.state.withLock { ($0.current, $0.token, $0.isClosed) }
    guard !isClosed else { throw .refused(Self.closed) }
    do throws(EtcdFailure) {
      let token = try await self.token(token, from: index, timeout)
      return try await self.send(method, request, to: index, token, timeout)
    } catch {
      if case .refused = error { throw error }
      self.failed(index, error.error)
      throw error
    }
  }

  private func send<Q, R>(
    _ method: Method<Q, R>, _ request: Q, to index: Int, _ token: String?, _ timeout: Duration
  ) async throws(EtcdFailure) -> R {
    var options = self.options(token)
    options.timeout = timeout
    do {
      let answer = try await self.channels[index].unary(method.rpc, request.encoded(), options)
      self.succeeded()
      return try R(decoding: answer)
    } catch let status as RPCStatus {
      throw self.failure(status, of: index)
    } catch {
      throw .unknown(MemQError(anyRPC: error))
    }
  }

  private func options(_ token: String?) -> RPCCallOptions {
    // With it a member that has no leader says so at once.
    var metadata = RPCMetadata([("hasleader", "true")])
    if let token { metadata.add("token", token) }
    var options = RPCCallOptions(
      metadata: metadata, maxMessageBytes: self.configuration.messageBytesMax)
    // A store's operation has its own deadline, whoever asks for it.
    options.inherits = false
    return options
  }

  // MARK: Users

  private func token(
    _ known: String?, from index: Int, _ timeout: Duration
  ) async throws(EtcdFailure) -> String? {
    guard let user = self.configuration.user, known == nil else { return known }
    let request = EtcdAuthenticateRequest.with {
      $0.name = user
      $0.password = self.configuration.password ?? ""
    }
    do throws(EtcdFailure) {
      let answer = try await self.send(EtcdMethods.authenticate, request, to: index, nil, timeout)
      self.state.withLock { $0.token = answer.token }
      return answer.token
    } catch {
      // What the call was made for was not even sent.
      guard case .unknown(let reason) = error else { throw error }
      throw .busy(reason)
    }
  }

  // MARK: Failures

  private func failure(_ status: RPCStatus, of index: Int) -> EtcdFailure {
    let name = self.configuration.endpoints[index]
    func error(_ code: ErrorCode) -> MemQError {
      MemQError(code, "etcd: \(status.message)", subject: name)
    }
    switch status.code {
    case .unauthenticated:
      // The token has run out, or the member was restarted and knows it no more.
      self.state.withLock { $0.token = nil }
      return .busy(error(.unavailable))
    case .invalidArgument:
      if status.message.contains("auth store is old") {
        self.state.withLock { $0.token = nil }
        return .busy(error(.unavailable))
      }
      if status.message.contains("too large") || status.message.contains("too many operations") {
        return .refused(error(.transactionTooLarge))
      }
      if ["authentication failed", "user name"].contains(where: { status.message.contains($0) }) {
        return .refused(error(.configurationInvalid))
      }
      return .refused(error(.internalError))
    case .permissionDenied, .unimplemented: return .refused(error(.configurationInvalid))
    case .failedPrecondition:
      if status.message.contains("lease already exists") { return .refused(error(.leaseLost)) }
      return .refused(error(.configurationInvalid))
    case .outOfRange: return .refused(error(.revisionCompacted))
    case .notFound: return .refused(error(.leaseLost))
    case .resourceExhausted:
      if status.trailers[first: RPCStatus.limitTrailer] != nil {
        return .refused(MemQError(status))
      }
      return .busy(error(.resourceExhausted))
    case .cancelled: return .unknown(MemQError(.cancelled, "the call to etcd was cancelled"))
    default: return .unknown(error(.unavailable))
    }
  }

  private func succeeded() {
    let failures = self.state.withLock { state in
      defer { state.failures = 0 }
      return state.failures
    }
    if failures >= self.channels.count {
      self.logger.notice("etcd answers again", metadata: ["failures": "\(failures)"])
    }
  }

  /// The next member is asked from now on, unless somebody else has found that already.
  func failed(_ index: Int, _ error: MemQError) {
    guard error.code != .cancelled else { return }
    let (isClosed, failures) = self.state.withLock { state in
      if state.current == index { state.current = (index + 1) % self.channels.count }
      state.failures += 1
      return (state.isClosed, state.failures)
    }
    // Once per outage, when all of them were asked.
    guard !isClosed, failures == self.channels.count else { return }
    self.logger.warning("etcd does not answer; it is asked again", metadata: ["error": "\(error)"])
  }

  /// A stream broke off. When the member did not know the token, which one that was restarted does not, it may say so in the stream or just
  /// end it; and who only listens makes no call that would tell. So the next stream begins with a new token.
  func streamFailed(_ index: Int, _ error: MemQError) {
    guard error.code != .cancelled else { return }
    self.state.withLock { $0.token = nil }
    self.failed(index, error)
  }

  // MARK: Whole operations

  /// Attempts of a call that may run twice, until one succeeds or is refused.
  ///
  /// - Throws: what etcd refused it with; `.unavailable`, `.resourceExhausted` or `.cancelled`.
  func call<Q, R>(
    _ method: Method<Q, R>, _ request: Q, within limit: Duration? = nil
  ) async throws(MemQError) -> R {
    var pace = EtcdPace(self.configuration, limit ?? self.configuration.operationTimeout)
    while true {
      do throws(EtcdFailure) {
        return try await self.attempt(method, request, timeout: pace.attemptTimeout)
      } catch {
        if case .refused(let reason) = error { throw reason }
        guard !Task.isCancelled else {
          throw MemQError(.cancelled, "the call to etcd was cancelled")
        }
        guard !self.isClosed else { throw Self.closed }
        guard await pace.wait() else { throw error.error }
      }
    }
  }

  /// A stream to the member in use, and which one that is.
  func open<Q, R>(_ method: Method<Q, R>) async throws(MemQError) -> (TypedStream<Q, R>, Int) {
    let (index, known, isClosed) = self.state.withLock { ($0.current, $0.token, $0.isClosed) }
    guard !isClosed else { throw Self.closed }
    do throws(EtcdFailure) {
      let token = try await self.token(known, from: index, self.configuration.attemptTimeout)
      do throws(MemQError) {
        return (try await self.channels[index].open(method, self.options(token)), index)
      } catch {
        throw .unknown(error)
      }
    } catch {
      self.failed(index, error.error)
      throw error.error
    }
  }
}

/// The attempts of one operation: how long each may take, and the waits between them.
struct EtcdPace {
  private let deadline: ContinuousClock.Instant
  private let attempt: Duration
  private let backoffMax: Duration
  private var backoff: Duration

  init(_ configuration: EtcdStore.Configuration, _ limit: Duration) {
    self.deadline = .now + limit
    self.attempt = configuration.attemptTimeout
    self.backoff = configuration.backoff.lowerBound
    self.backoffMax = configuration.backoff.upperBound
  }

  /// At least a little: an operation that is late asks once more.
  var attemptTimeout: Duration {
    max(min(self.attempt, self.deadline - .now), .milliseconds(10))
  }

  /// Waits before the next attempt, ± 20 %. False: the time is over, or the task was cancelled.
  mutating func wait() async -> Bool {
    let wait = self.backoff * (Double(SystemEntropy().next() % 1_000) / 1_000 * 0.4 + 0.8)
    self.backoff = min(self.backoff * 2, self.backoffMax)
    guard .now + wait < self.deadline else { return false }
    do {
      try await Task.sleep(for: wait)
      return true
    } catch {
      return false
    }
  }
}
