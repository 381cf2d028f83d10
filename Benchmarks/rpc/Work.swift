// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQRPC

/// A way to carry messages.
enum Stack: String {
  case tcp
  case tcpTLS = "tcp-tls"
  case tcpFetch = "tcp-fetch"
  case tcpPing = "tcp-ping"
  case memq
  case memqAsync = "memq-async"
  case memqTLS = "memq-tls"
  case memqFetch = "memq-fetch"
  case ping
  case pingAsync = "ping-async"
  /// With a deadline, metrics and a bearer token.
  case pingGuarded = "ping-guarded"
  case pingBesideAppend = "ping-beside-append"

  init(_ name: String) {
    guard let stack = Stack(rawValue: name) else { fatalError("no stack \(name)") }
    self = stack
  }

  /// Nil: not over MemQRPC.
  var method: RPCMethod? {
    switch self {
    case .tcp, .tcpTLS, .tcpFetch, .tcpPing: nil
    case .memq, .memqTLS: MemQ.append
    case .memqAsync: MemQ.appendAsync
    case .memqFetch: MemQ.fetch
    case .ping: MemQ.ping
    case .pingAsync, .pingGuarded, .pingBesideAppend: MemQ.pingAsync
    }
  }

  var isSecure: Bool { self == .tcpTLS || self == .memqTLS }

  /// Each call's time is of interest.
  var isTimed: Bool {
    switch self {
    case .tcpPing, .ping, .pingAsync, .pingGuarded, .pingBesideAppend: true
    default: false
    }
  }
}

/// One thing to measure.
struct Work {
  let name: String
  let meaning: String
  /// The first is the floor of the ratios.
  let stacks: [Stack]
  let workload: Workload

  static let append = Work(
    name: "append", meaning: "1 MiB messages to the server, 16 in flight",
    stacks: [.tcp, .memq, .memqAsync],
    workload: Workload(messageBytes: 1 << 20, inFlight: 16, messages: 4096))
  static let appendSmall = Work(
    name: "append-64k", meaning: "64 KiB messages to the server, 16 in flight",
    stacks: [.tcp, .memq, .memqAsync],
    workload: Workload(messageBytes: 64 << 10, inFlight: 16, messages: 32768))
  static let appendTLS = Work(
    name: "append-tls", meaning: "1 MiB messages to the server over TLS 1.3, 16 in flight",
    stacks: [.tcpTLS, .memqTLS],
    workload: Workload(messageBytes: 1 << 20, inFlight: 16, messages: 2048))
  static let fetch = Work(
    name: "fetch", meaning: "1 MiB messages from the server",
    stacks: [.tcpFetch, .memqFetch],
    workload: Workload(messageBytes: 1 << 20, inFlight: 16, messages: 4096))
  static let unary = Work(
    name: "unary", meaning: "calls of 100 B, 64 at a time",
    stacks: [.tcpPing, .ping, .pingAsync, .pingGuarded],
    workload: Workload(messageBytes: 100, inFlight: 64, messages: 400_000))
  static let pingPong = Work(
    name: "ping-pong", meaning: "calls of 100 B, one at a time",
    stacks: [.tcpPing, .ping, .pingAsync],
    workload: Workload(messageBytes: 100, inFlight: 1, messages: 50_000))
  static let mixed = Work(
    name: "mixed",
    meaning:
      "calls of 100 B, one at a time, beside a connection on the same loop that appends flat out",
    stacks: [.tcpPing, .pingBesideAppend],
    workload: Workload(messageBytes: 100, inFlight: 1, messages: 20_000))
  static let idle = Work(
    name: "idle", meaning: "memory of a server per idle connection (--messages N of them)",
    stacks: [], workload: Workload(messageBytes: 0, inFlight: 0, messages: 2000))

  static let all = [append, appendSmall, appendTLS, fetch, unary, pingPong, mixed, idle]
}
