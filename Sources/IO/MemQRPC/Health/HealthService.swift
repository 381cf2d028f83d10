// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore
import Synchronization

/// `grpc.health.v1.Health`: says whether services serve, to whoever asks or watches.
///
/// The name "" stands for the whole server. Unknown services: `Check` fails with `NOT_FOUND`, `Watch` says
/// `SERVICE_UNKNOWN` and goes on watching, as the protocol wants.
public final class HealthService: Sendable {
  public enum Status: Int, Sendable {
    case unknown = 0
    case serving = 1
    case notServing = 2
    /// Only ever an answer of `Watch`.
    case serviceUnknown = 3
  }

  public static let check = RPCMethod(
    service: "grpc.health.v1.Health", name: "Check", kind: .unary)
  public static let watch = RPCMethod(
    service: "grpc.health.v1.Health", name: "Watch", kind: .serverStreaming)

  private struct State {
    var statuses: [String: Status] = [:]
    var watchers: [Int: Watcher] = [:]
    var nextWatcher = 0
    var isShutDown = false
  }

  private let state = Mutex(State())

  /// - Parameter server: the status of the whole server to begin with.
  public init(server: Status = .serving) {
    self.state.withLock { $0.statuses[""] = server }
  }

  /// Sets the status of `service` ("" = the server) and tells those who watch it.
  public func set(_ service: String, _ status: Status) {
    let watchers = self.state.withLock { state -> [Watcher] in
      guard !state.isShutDown else { return [] }
      state.statuses[service] = status
      return state.watchers.values.filter { $0.service == service }
    }
    for watcher in watchers { watcher.changed() }
  }

  /// Everything stops serving, for good: the first step of a graceful stop.
  public func shutdown() {
    let watchers = self.state.withLock { state -> [Watcher] in
      for service in state.statuses.keys { state.statuses[service] = .notServing }
      state.isShutDown = true
      return Array(state.watchers.values)
    }
    for watcher in watchers { watcher.changed() }
  }

  /// What is set for `service` now; nil when nothing is.
  public func status(of service: String) -> Status? {
    self.state.withLock { $0.statuses[service] }
  }

  public func register(on router: inout RPCRouter) {
    router.unary(Self.check) { request, _ in
      let service = try HealthMessages.service(in: request)
      guard let status = self.status(of: service) else {
        throw RPCStatus(.notFound, "no service \(service) here")
      }
      return HealthMessages.response(status)
    }
    router.callback(Self.watch) { Watcher($0, self) }
  }

  fileprivate func add(_ watcher: Watcher) -> Int {
    self.state.withLock { state in
      state.nextWatcher += 1
      state.watchers[state.nextWatcher] = watcher
      return state.nextWatcher
    }
  }

  fileprivate func remove(_ id: Int) {
    self.state.withLock { state in
      state.watchers[id] = nil
    }
  }
}

/// One call of `Watch`. Sends the newest status when there is room, so a slow reader skips some and queues none.
private final class Watcher: RPCServerHandler, @unchecked Sendable {
  private let call: RPCServerCall
  private let health: HealthService
  /// Written once, on the loop, before the watcher is registered.
  private(set) var service = ""
  private var id: Int?
  private var told: HealthService.Status?
  private var hasRoom = true

  init(_ call: RPCServerCall, _ health: HealthService) {
    self.call = call
    self.health = health
  }

  func received(_ message: RPCMessage) {
    self.call.consumed(message.byteCount)
    guard self.id == nil else {
      return self.call.finish(RPCStatus(.unimplemented, "Watch takes one request"))
    }
    do {
      self.service = try HealthMessages.service(in: message)
      self.id = self.health.add(self)
      self.tell()
    } catch {
      self.call.finish(error)
    }
  }

  func halfClosed() {
    if self.id == nil { self.call.finish(RPCStatus(.unimplemented, "Watch takes one request")) }
  }

  func changed() {
    self.call.execute { self.tell() }
  }

  private func tell() {
    let status = self.health.status(of: self.service) ?? .serviceUnknown
    guard self.id != nil, self.hasRoom, status != self.told else { return }
    self.told = status
    self.hasRoom = self.call.send(HealthMessages.response(status))
  }

  func writable() {
    self.hasRoom = true
    self.tell()
  }

  func ended(_ status: RPCStatus) {
    if let id = self.id.take() { self.health.remove(id) }
  }
}

/// HealthCheckRequest { string service = 1; } and HealthCheckResponse { ServingStatus status = 1; } by hand.
enum HealthMessages {
  static func service(in message: RPCMessage) throws(RPCStatus) -> String {
    var bytes = message.contiguous()
    var service = ""
    while let tag = bytes.readInteger(as: UInt8.self) {
      guard tag == 1 << 3 | 2, let length = bytes.readHealthVarint(), length <= bytes.readableBytes,
        let name = bytes.readString(length: length)
      else { throw RPCStatus(.invalidArgument, "not a HealthCheckRequest") }
      service = name
    }
    return service
  }

  static func request(_ service: String) -> RPCMessage {
    var bytes = ByteBuffer()
    if !service.isEmpty {
      bytes.writeInteger(UInt8(1 << 3 | 2))
      precondition(service.utf8.count < 128, "a service's name is shorter")
      bytes.writeInteger(UInt8(service.utf8.count))
      bytes.writeString(service)
    }
    return RPCMessage(bytes)
  }

  static func response(_ status: HealthService.Status) -> RPCMessage {
    var bytes = ByteBuffer()
    if status != .unknown {
      bytes.writeInteger(UInt8(1 << 3))
      bytes.writeInteger(UInt8(status.rawValue))
    }
    return RPCMessage(bytes)
  }

  static func status(in message: RPCMessage) throws(RPCStatus) -> HealthService.Status {
    var bytes = message.contiguous()
    guard let tag = bytes.readInteger(as: UInt8.self) else { return .unknown }
    guard tag == 1 << 3, let value = bytes.readInteger(as: UInt8.self),
      let status = HealthService.Status(rawValue: Int(value))
    else { throw RPCStatus(.internal, "not a HealthCheckResponse") }
    return status
  }
}

extension RPCChannel {
  /// Asks a server's health service. Throws ``RPCStatus``; `NOT_FOUND` for a service it does not know.
  public func health(
    of service: String = "", timeout: Duration = .seconds(5)
  ) async throws -> HealthService.Status {
    let response = try await self.unary(
      HealthService.check, HealthMessages.request(service), RPCCallOptions(timeout: timeout))
    return try HealthMessages.status(in: response)
  }
}

extension ByteBuffer {
  fileprivate mutating func readHealthVarint() -> Int? {
    var value = 0
    for shift in stride(from: 0, to: 28, by: 7) {
      guard let byte = self.readInteger(as: UInt8.self) else { return nil }
      value |= Int(byte & 0x7f) << shift
      if byte < 0x80 { return value }
    }
    return nil
  }
}
