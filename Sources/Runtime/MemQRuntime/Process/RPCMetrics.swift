// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
public import MemQRPC
import Metrics
import Synchronization

/// Counts and times the calls of the gRPC port.
public final class RPCMetrics: RPCServerObserver {
  private struct Key: Hashable {
    let method: RPCMethod
    let code: RPCCode
  }

  private let calls = Mutex<[Key: Counter]>([:])
  private let durations = Mutex<[RPCMethod: Timer]>([:])
  private let connections = Gauge(label: "memq_rpc_connections")
  private let pauses = Counter(label: "memq_rpc_receive_pauses_total")

  private let expelled = Mutex<[String: Counter]>([:])

  public init() {}

  public func callEnded(_ method: RPCMethod, code: RPCCode, duration: Duration) {
    let counter = self.calls.withLock { calls in
      let key = Key(method: method, code: code)
      if let known = calls[key] { return known }
      let made = Counter(
        label: "memq_rpc_calls_total",
        dimensions: [("code", "\(code)"), ("method", Self.name(method))])
      calls[key] = made
      return made
    }
    counter.increment()
    let timer = self.durations.withLock { durations in
      if let known = durations[method] { return known }
      let made = Timer(
        label: "memq_rpc_call_duration_seconds", dimensions: [("method", Self.name(method))])
      durations[method] = made
      return made
    }
    timer.recordNanoseconds(duration.nanoseconds)
  }

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

  /// "IngestService/Produce". Only methods with a handler get here, so the set is bounded.
  private static func name(_ method: RPCMethod) -> String {
    String(method.path.dropFirst(method.path.hasPrefix("/memq.v1.") ? 9 : 1))
  }
}
