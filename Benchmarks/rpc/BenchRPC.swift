// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQRPC
import MemQSystem
import NIOCore
import NIOPosix

/// `bench-rpc [WORK...]`: what MemQRPC costs, each work against its floor, a bare TCP connection with the same message framing,
/// socket buffers and read size; stacks take turns.
@main
struct BenchRPC {
  static func main() async throws {
    // As every MemQ server does; for the floor, too.
    MemoryAllocator.keepFreedPieces()
    MemoryAllocator.keepFreedMemory()
    let arguments = Array(CommandLine.arguments.dropFirst())
    switch arguments.first {
    case "server": try await self.serve(Stack(arguments[1]), messageBytes: Int(arguments[2])!)
    case "client":
      try await self.drive(
        Stack(arguments[1]), port: Int(arguments[2])!, messageBytes: Int(arguments[3])!,
        inFlight: Int(arguments[4])!)
    default: self.measure(arguments)
    }
  }

  private static func measure(_ given: [String]) {
    var arguments = given
    var works: [Work] = []
    var rounds = 5
    var change: [(inout Workload) -> Void] = []
    while !arguments.isEmpty {
      let argument = arguments.removeFirst()
      if argument == "all" {
        works += Work.all
      } else if let work = Work.all.first(where: { $0.name == argument }) {
        works.append(work)
      } else {
        guard let value = arguments.first.flatMap({ Int($0) }), value > 0 else { self.usage() }
        arguments.removeFirst()
        switch argument {
        case "--messages": change.append { $0.messages = value }
        case "--bytes": change.append { $0.messageBytes = value }
        case "--in-flight": change.append { $0.inFlight = value }
        case "--rounds": rounds = value
        default: self.usage()
        }
      }
    }
    guard !works.isEmpty else { self.usage() }
    Certificates.make()
    defer { Certificates.remove() }
    for work in works {
      var workload = work.workload
      for apply in change { apply(&workload) }
      if work.name == Work.idle.name {
        IdleConnections.measure(count: workload.messages)
        continue
      }
      var all = Rounds(work, workload, rounds: rounds)
      all.run()
      all.report()
    }
  }

  private static func usage() -> Never {
    print("usage: bench-rpc WORK... [--rounds N] [--messages N] [--bytes N] [--in-flight N]")
    print("works: all, or any of")
    for work in Work.all { print("  \(work.name)\t\(work.meaning)") }
    exit(2)
  }

  /// Serves until its input ends; answers `usage` with its CPU time so far.
  private static func serve(_ stack: Stack, messageBytes: Int) async throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let port =
      switch stack {
      case .tcp: try await RawTCP.serve(group: group, .acknowledge)
      case .tcpTLS:
        try await RawTCP.serve(group: group, .acknowledge, tls: Certificates.serverContext())
      case .memqTLS:
        try await MemQ.serve(
          group: group, messageBytes: messageBytes, tls: Certificates.server())
      case .tcpFetch: try await RawTCP.serve(group: group, .stream(messageBytes: messageBytes))
      case .tcpPing: try await RawTCP.serve(group: group, .echo)
      default:
        try await MemQ.serve(
          group: group, messageBytes: messageBytes, isGuarded: stack == .pingGuarded)
      }
    self.answer("\(port)")
    while let line = readLine() {
      if line == "usage" { self.answer(Usage.now().line) }
    }
  }

  /// For each line, a number of messages: moves them and answers with seconds, CPU time and latencies.
  private static func drive(
    _ stack: Stack, port: Int, messageBytes: Int, inFlight: Int
  ) async throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    var options = RPCCallOptions()
    if stack == .pingGuarded {
      options.timeout = .seconds(30)
      options.metadata.add("authorization", "Bearer \(MemQ.token)")
    }
    let background =
      stack == .pingBesideAppend ? try await Background(port: port) : nil
    while let line = readLine() {
      let workload = Workload(
        messageBytes: messageBytes, inFlight: inFlight, messages: Int(line)!)
      let latencies = stack.isTimed ? Latencies(workload.messages) : nil
      let before = Usage.now()
      let start = ContinuousClock.now
      if let method = stack.method {
        try await MemQ.run(
          workload, method, port: port, group: group, latencies: latencies,
          tls: stack.isSecure ? Certificates.client() : nil, options: options)
      } else {
        try await RawTCP.run(
          workload, requestBytes: stack == .tcpFetch ? 8 : messageBytes, port: port, group: group,
          latencies: latencies, tls: stack.isSecure ? Certificates.clientContext() : nil)
      }
      let seconds = (ContinuousClock.now - start) / .seconds(1)
      self.answer("\(seconds)")
      self.answer((Usage.now() - before).line)
      self.answer(latencies?.line ?? "0 0")
    }
    background?.stop()
  }

  private static func answer(_ line: String) {
    let bytes = Array((line + "\n").utf8)
    guard write(1, bytes, bytes.count) == bytes.count else { exit(1) }
  }
}
