// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQRPC
import NIOCore
import NIOPosix

/// `bench-rpc [--messages N] [--bytes N] [--in-flight N] [--rounds N] [STACK...]`: the cost of MemQRPC
/// against a bare TCP connection. The first stack is the floor of the ratios.
@main
struct BenchRPC {
  static let stacks = ["tcp", "memq", "memq-async", "ping", "ping-async"]

  static func main() async throws {
    var arguments = Array(CommandLine.arguments.dropFirst())
    switch arguments.first {
    case "server":
      try await self.serve(arguments[1], Int(arguments[2])!)
    case "client":
      try await self.drive(
        arguments[1], port: Int(arguments[2])!, messageBytes: Int(arguments[3])!,
        inFlight: Int(arguments[4])!)
    default:
      var workload = Workload()
      var rounds = 5
      var stacks: [String] = []
      while !arguments.isEmpty {
        let argument = arguments.removeFirst()
        if self.stacks.contains(argument) {
          stacks.append(argument)
          continue
        }
        guard let value = arguments.first.flatMap({ Int($0) }), value > 0 else { self.usage() }
        arguments.removeFirst()
        switch argument {
        case "--messages": workload.messages = value
        case "--bytes": workload.messageBytes = value
        case "--in-flight": workload.inFlight = value
        case "--rounds": rounds = value
        default: self.usage()
        }
      }
      var all = Rounds(
        stacks: stacks.isEmpty ? ["tcp", "memq"] : stacks, workload: workload, rounds: rounds)
      all.run()
      all.report()
    }
  }

  static func usage() -> Never {
    print(
      "usage: bench-rpc [--messages N] [--bytes N] [--in-flight N] [--rounds N]",
      "[\(self.stacks.joined(separator: "|"))]...")
    exit(2)
  }

  /// Serves until its input ends; answers `usage` with its CPU time so far.
  static func serve(_ stack: String, _ messageBytes: Int) async throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let port =
      stack == "tcp"
      ? try await RawTCP.serve(group: group, messageBytes: messageBytes)
      : try await MemQ.serve(group: group)
    self.answer("\(port)")
    while let line = readLine() {
      if line == "usage" { self.answer(Usage.now().line) }
    }
  }

  /// For each line, a number of messages: moves them and answers with seconds and CPU time.
  static func drive(_ stack: String, port: Int, messageBytes: Int, inFlight: Int) async throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    while let line = readLine() {
      let workload = Workload(
        messageBytes: messageBytes, inFlight: inFlight, messages: Int(line)!)
      let before = Usage.now()
      let start = ContinuousClock.now
      switch stack {
      case "tcp": try await RawTCP.run(workload, port: port, group: group)
      case "memq": try await MemQ.run(workload, MemQ.append, port: port, group: group)
      case "memq-async": try await MemQ.run(workload, MemQ.appendAsync, port: port, group: group)
      case "ping": try await MemQ.run(workload, MemQ.ping, port: port, group: group)
      default: try await MemQ.run(workload, MemQ.pingAsync, port: port, group: group)
      }
      let seconds = (ContinuousClock.now - start) / .seconds(1)
      self.answer("\(seconds)")
      self.answer((Usage.now() - before).line)
    }
  }

  private static func answer(_ line: String) {
    let bytes = Array((line + "\n").utf8)
    guard write(1, bytes, bytes.count) == bytes.count else { exit(1) }
  }
}
