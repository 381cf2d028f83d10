// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
public import MemQRPC
public import Metrics
import Synchronization

/// Counts and times calls: those of the gRPC port, and those made to other nodes.
public final class RPCMetrics: RPCServerObserver {
  private let factory: any MetricsFactory
  private let connections: Gauge
  private let pauses: Counter
  private let client: CallMetrics.Family
  private let clientMethods = Mutex<[String: CallMetrics]>([:])

  private let expelled = Mutex<[String: Counter]>([:])

  /// - Parameter factory: keeps the metrics.
  public init(factory: any MetricsFactory = MetricsSystem.factory) {
    self.factory = factory
    self.connections = Gauge(label: "memq_rpc_connections", factory: factory)
    self.pauses = Counter(label: "memq_rpc_receive_pauses_total", factory: factory)
    self.client = CallMetrics.Family(.client, factory)
  }

  public func receivingPaused() { self.pauses.increment() }

  public func peerExpelled(_ why: String) {
    let counter = self.expelled.withLock { counters in
      if let known = counters[why] { return known }
      let made = Counter(
        label: "memq_rpc_peers_expelled_total", dimensions: [("why", why)], factory: self.factory)
      counters[why] = made
      return made
    }
    counter.increment()
  }

  public func connectionsChanged(to count: Int) { self.connections.record(count) }

  /// For the router of a server.
  public var serverInterceptor: RPCServerInterceptor {
    let family = CallMetrics.Family(.server, self.factory)
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
    let factory: any MetricsFactory
    let inFlight: Meter
    /// By ``RPCCallEnd``; none for calls that were answered.
    let resets: [Counter?]

    init(_ names: Names, _ factory: any MetricsFactory) {
      self.names = names
      self.factory = factory
      self.inFlight = Meter(label: names.inFlight, factory: factory)
      self.resets = RPCCallEnd.allCases.map { end in
        guard end != .answered else { return nil }
        return Counter(
          label: names.resets, dimensions: [("reason", end.label)], factory: factory)
      }
    }
  }

  /// Made at the first call that ends: most methods of a node are never called. A class, so that a call takes one reference, not ten.
  private final class Series {
    let duration: Timer
    let messages: (received: Counter, sent: Counter)
    let bytes: (received: Counter, sent: Counter)
    /// By code, each made when it first comes: of most methods most codes never come.
    var calls: [Counter?]

    init(_ family: Family, _ method: String) {
      func counter(_ label: String, _ direction: String) -> Counter {
        Counter(
          label: label, dimensions: [("direction", direction), ("method", method)],
          factory: family.factory)
      }
      let names = family.names
      self.duration = Timer(
        label: names.duration, dimensions: [("method", method)], factory: family.factory)
      self.messages = (counter(names.messages, "received"), counter(names.messages, "sent"))
      self.bytes = (counter(names.bytes, "received"), counter(names.bytes, "sent"))
      self.calls = Array(repeating: nil, count: RPCCode.allCases.count)
    }
  }

  private let family: Family
  private let method: String
  private let series = Mutex<Series?>(nil)

  init(_ family: Family, _ method: RPCMethod) {
    self.family = family
    // "IngestService/Produce". Only methods of ours get here, so the set is bounded.
    self.method = String(method.path.dropFirst(method.path.hasPrefix("/memq.v1.") ? 9 : 1))
  }

  func began() { self.family.inFlight.increment() }

  func ended(_ report: RPCCallReport) {
    self.family.inFlight.decrement()
    self.family.resets[report.end.rawValue]?.increment()
    let counts = report.counts
    self.series.withLock { held in
      let series = held ?? Series(self.family, self.method)
      held = series
      series.duration.recordNanoseconds(report.duration.nanoseconds)
      series.messages.received.increment(by: counts.messagesReceived)
      series.messages.sent.increment(by: counts.messagesSent)
      series.bytes.received.increment(by: counts.bytesReceived)
      series.bytes.sent.increment(by: counts.bytesSent)
      let code = report.code.rawValue
      if series.calls[code] == nil {
        series.calls[code] = Counter(
          label: self.family.names.calls,
          dimensions: [("code", "\(report.code)"), ("method", self.method)],
          factory: self.family.factory)
      }
      series.calls[code]?.increment()
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
