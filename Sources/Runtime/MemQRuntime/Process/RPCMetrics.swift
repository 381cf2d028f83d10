// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
public import MemQRPC
import Metrics
import Synchronization

/// Counts and times calls: those of the gRPC port, and those made to other nodes.
public final class RPCMetrics: RPCServerObserver {
  private let connections = Gauge(label: "memq_rpc_connections")
  private let pauses = Counter(label: "memq_rpc_receive_pauses_total")
  private let client = CallMetrics.Family(.client)
  private let clientMethods = Mutex<[String: CallMetrics]>([:])

  private let expelled = Mutex<[String: Counter]>([:])

  public init() {}

  public func receivingPaused() { self.pauses.increment() }

  public func peerExpelled(_ why: String) {
    let counter = self.expelled.withLock { counters in
      if let known = counters[why] { return known }
      let made = Counter(label: "memq_rpc_peers_expelled_total", dimensions: [("why", why)])
      counters[why] = made
      return made
    }
    counter.increment()
  }

  public func connectionsChanged(to count: Int) { self.connections.record(count) }

  /// For the router of a server.
  public var serverInterceptor: RPCServerInterceptor {
    let family = CallMetrics.Family(.server)
    return RPCServerInterceptor { method in
      let metrics = CallMetrics(family, method)
      return RPCServerInterceptor.Hooks(
        before: { _ in metrics.began() }, after: { _, report in metrics.ended(report) })
    }
  }

  /// For channels.
  public var clientInterceptor: RPCClientInterceptor {
    RPCClientInterceptor(
      before: { method, _ in self.metrics(method).began() },
      after: { method, report in self.metrics(method).ended(report) })
  }

  private func metrics(_ method: RPCMethod) -> CallMetrics {
    self.clientMethods.withLock { methods in
      if let known = methods[method.path] { return known }
      let made = CallMetrics(self.client, method)
      methods[method.path] = made
      return made
    }
  }
}

/// What is kept of one method, for one role. Made once, so that a call looks nothing up.
private final class CallMetrics: Sendable {
  struct Names: Sendable {
    let calls: String
    let duration: String
    let inFlight: String
    let messages: String
    let bytes: String
    let resets: String

    static let server = Names(
      calls: "memq_rpc_calls_total", duration: "memq_rpc_call_duration_seconds",
      inFlight: "memq_rpc_calls_in_flight", messages: "memq_rpc_messages_total",
      bytes: "memq_rpc_message_bytes_total", resets: "memq_rpc_resets_total")
    static let client = Names(
      calls: "memq_rpc_client_calls_total", duration: "memq_rpc_client_call_duration_seconds",
      inFlight: "memq_rpc_client_calls_in_flight", messages: "memq_rpc_client_messages_total",
      bytes: "memq_rpc_client_message_bytes_total", resets: "memq_rpc_client_resets_total")
  }

  /// What all methods of a role share.
  final class Family: Sendable {
    let names: Names
    let inFlight: Meter
    /// By ``RPCCallEnd``; none for calls that were answered.
    let resets: [Counter?]

    init(_ names: Names) {
      self.names = names
      self.inFlight = Meter(label: names.inFlight)
      self.resets = RPCCallEnd.allCases.map { end in
        guard end != .answered else { return nil }
        return Counter(label: names.resets, dimensions: [("reason", end.label)])
      }
    }
  }

  private let family: Family
  private let method: String
  private let duration: Timer
  private let messages: (received: Counter, sent: Counter)
  private let bytes: (received: Counter, sent: Counter)
  /// By code, each made when it first comes: of most methods most codes never come.
  private let calls = Mutex<[Counter?]>(Array(repeating: nil, count: RPCCode.allCases.count))

  init(_ family: Family, _ method: RPCMethod) {
    // "IngestService/Produce". Only methods of ours get here, so the set is bounded.
    let name = String(method.path.dropFirst(method.path.hasPrefix("/memq.v1.") ? 9 : 1))
    func counter(_ label: String, _ direction: String) -> Counter {
      Counter(label: label, dimensions: [("direction", direction), ("method", name)])
    }
    let names = family.names
    self.family = family
    self.method = name
    self.duration = Timer(
      label: names.duration, dimensions: [("method", name)])
    self.messages = (counter(names.messages, "received"), counter(names.messages, "sent"))
    self.bytes = (counter(names.bytes, "received"), counter(names.bytes, "sent"))
  }

  func began() { self.family.inFlight.increment() }

  func ended(_ report: RPCCallReport) {
    self.family.inFlight.decrement()
    self.counter(report.code).increment()
    self.duration.recordNanoseconds(report.duration.nanoseconds)
    let counts = report.counts
    self.messages.received.increment(by: counts.messagesReceived)
    self.messages.sent.increment(by: counts.messagesSent)
    self.bytes.received.increment(by: counts.bytesReceived)
    self.bytes.sent.increment(by: counts.bytesSent)
    self.family.resets[report.end.rawValue]?.increment()
  }

  private func counter(_ code: RPCCode) -> Counter {
    self.calls.withLock { calls in
      if let known = calls[code.rawValue] { return known }
      let made = Counter(
        label: self.family.names.calls,
        dimensions: [("code", "\(code)"), ("method", self.method)])
      calls[code.rawValue] = made
      return made
    }
  }
}

extension RPCCallEnd {
  /// Of `memq_rpc_resets_total`.
  fileprivate var label: String {
    switch self {
    case .answered: "none"
    case .refused: "refused"
    case .resetByPeer: "peer_reset"
    case .cancelledHere: "cancelled"
    case .deadlinePassed: "deadline"
    case .limitBroken: "limit"
    case .protocolBroken: "protocol"
    case .connectionLost: "connection_lost"
    }
  }
}
