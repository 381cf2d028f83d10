// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQModel
import MemQRPC
import Synchronization

/// The addresses of a client, the one in use, and the channels to it.
final class Servers: Sendable {
  private struct Key: Hashable {
    var address: String
    var lane: MemQClient.Lane
  }

  private struct State {
    var current = 0
    var channels: [Key: any RPCChannel] = [:]
    /// A server has answered once.
    var wasReached = false
  }

  private let addresses: [String]
  private let connectTimeout: Duration
  private let logger: Logger
  private let connect: @Sendable (String, MemQClient.Lane) -> any RPCChannel
  private let state = Mutex(State())

  init(
    _ addresses: [String], connectTimeout: Duration, logger: Logger,
    connect: @escaping @Sendable (String, MemQClient.Lane) -> any RPCChannel
  ) {
    self.addresses = addresses
    self.connectTimeout = connectTimeout
    self.logger = logger
    self.connect = connect
  }

  var address: String { self.state.withLock { self.addresses[$0.current] } }

  /// The channel of a lane to the address in use.
  func channel(_ lane: MemQClient.Lane) -> (address: String, channel: any RPCChannel) {
    self.state.withLock { state in
      let address = self.addresses[state.current]
      let key = Key(address: address, lane: lane)
      if let channel = state.channels[key] { return (address, channel) }
      let channel = self.connect(address, lane)
      state.channels[key] = channel
      return (address, channel)
    }
  }

  /// `address` did not answer: the next one is used from now on, unless somebody has moved on already.
  func failed(_ address: String) {
    self.state.withLock { state in
      guard self.addresses[state.current] == address else { return }
      state.current = (state.current + 1) % self.addresses.count
    }
  }

  /// Waits for a server that answers and serves, once in the client's life.
  func reach() async throws(MemQError) {
    guard !self.state.withLock({ $0.wasReached }) else { return }
    let deadline = ContinuousClock.now + self.connectTimeout
    var backoff = Backoff()
    while true {
      let (address, channel) = self.channel(.control)
      do {
        let status = try await channel.health(timeout: .seconds(5))
        if status == .serving || ContinuousClock.now >= deadline { break }
      } catch {
        let error = MemQError(anyRPC: error)
        guard Self.isAbsence(error) else {
          // It answers; that it has no health service does not matter.
          if error.code == .cancelled { throw error }
          break
        }
        self.failed(address)
        if ContinuousClock.now >= deadline { throw Self.naming(error, address) }
      }
      try await backoff.wait(until: deadline)
    }
    self.state.withLock { $0.wasReached = true }
  }

  /// A control call.
  ///
  /// - Parameter retryFor: how long to repeat it while it fails with a retriable error; nil: never. Only for calls that
  ///   may take effect twice without harm.
  func call<Q, R>(
    _ method: Method<Q, R>, _ request: Q, timeout: Duration, retryFor: Duration? = nil,
    lane: MemQClient.Lane = .control
  ) async throws(MemQError) -> R {
    try await self.reach()
    let deadline = ContinuousClock.now + (retryFor ?? .zero)
    var backoff = Backoff()
    while true {
      let (address, channel) = self.channel(lane)
      do {
        return try await channel.call(method, request, timeout: timeout)
      } catch {
        if Self.isAbsence(error) { self.failed(address) }
        guard retryFor != nil, error.isRetriable, ContinuousClock.now < deadline else {
          throw Self.naming(error, address)
        }
        try await backoff.wait(until: deadline)
      }
    }
  }

  func close() async {
    let channels = self.state.withLock { state in
      defer { state.channels = [:] }
      return Array(state.channels.values)
    }
    await withTaskGroup(of: Void.self) { group in
      for channel in channels { group.addTask { await channel.close(deadline: .seconds(1)) } }
    }
  }

  /// The server is not there, or about to leave: another one may be.
  static func isAbsence(_ error: MemQError) -> Bool {
    error.code == .unavailable || error.code == .shuttingDown || error.code == .deadlineExceeded
  }

  /// An error without a subject that says nobody answered gets the address and the next step.
  static func naming(_ error: MemQError, _ address: String) -> MemQError {
    // What names the address says more than that nobody answers: it has another protocol, or another certificate.
    let prefix = "cannot connect to \(address)"
    let isAbsence = error.message.hasPrefix(prefix)
    guard error.code == .unavailable, error.subject.isEmpty,
      isAbsence || !error.message.contains(address)
    else { return error }
    var named = error
    named.subject = address
    // The subject says where.
    if isAbsence { named.message = "cannot connect" + named.message.dropFirst(prefix.count) }
    named.message += "; start one there (memq serve), or name another (--server, MEMQ_SERVER)"
    return named
  }
}
