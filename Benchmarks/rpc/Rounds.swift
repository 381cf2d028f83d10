// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc

/// What one run cost.
struct Sample {
  var seconds: Double
  var server: Usage
  var client: Usage
  /// Of calls, in microseconds; zeros when they were not timed.
  var p50: Double
  var p99: Double
}

/// Runs stacks in turn, round by round, so that slow spells of the machine hit all of them.
struct Rounds {
  let work: Work
  let workload: Workload
  let rounds: Int
  private var samples: [Stack: [Sample]] = [:]

  init(_ work: Work, _ workload: Workload, rounds: Int) {
    self.work = work
    self.workload = workload
    self.rounds = rounds
  }

  mutating func run() {
    for round in 0...self.rounds {
      for stack in self.work.stacks {
        let sample = self.one(stack)
        // Round 0 warms caches and clocks.
        if round > 0 { self.samples[stack, default: []].append(sample) }
      }
    }
  }

  /// A fresh server and a fresh client process; a short warm-up run first, which is not counted.
  private func one(_ stack: Stack) -> Sample {
    let server = Peer(["server", stack.rawValue, "\(self.workload.messageBytes)"])
    let port = server.hear()
    let client = Peer([
      "client", stack.rawValue, port, "\(self.workload.messageBytes)", "\(self.workload.inFlight)",
    ])
    client.say("\(max(self.workload.inFlight, self.workload.messages / 16))")
    for _ in 0..<3 { _ = client.hear() }
    server.say("usage")
    let before = Usage(line: server.hear())!
    client.say("\(self.workload.messages)")
    let seconds = Double(client.hear())!
    let clientUsage = Usage(line: client.hear())!
    let latencies = client.hear().split(separator: " ").map { Double($0)! }
    server.say("usage")
    let after = Usage(line: server.hear())!
    client.end()
    server.end()
    return Sample(
      seconds: seconds, server: after - before, client: clientUsage, p50: latencies[0],
      p99: latencies[1])
  }

  // MARK: Report

  func report() {
    let isBulk = self.workload.messageBytes >= 4096
    let unit = isBulk ? "s/GiB" : "us/call"
    let scale = isBulk ? 1 / self.workload.gibibytes : 1e6 / Double(self.workload.messages)
    print("\n\(self.work.name): \(self.work.meaning)")
    print(
      "\(self.workload.messages) messages of \(self.workload.messageBytes) B,",
      "\(self.workload.inFlight) in flight, \(self.rounds) rounds, medians; CPU in \(unit)")
    print(
      "stack", "MB/s or calls/s", "server user", "system", "total", "client user", "total",
      "server peak MiB", "p50 us", "p99 us", separator: "\t")
    for stack in self.work.stacks {
      let all = self.samples[stack]!
      let seconds = Self.median(all.map(\.seconds))
      let rate =
        isBulk
        ? Double(self.workload.bytes) / seconds / 1e6 : Double(self.workload.messages) / seconds
      print(
        stack.rawValue, Self.text(rate, 0),
        Self.text(Self.median(all.map { $0.server.userSeconds * scale }), 4),
        Self.text(Self.median(all.map { $0.server.systemSeconds * scale }), 4),
        Self.text(
          Self.median(all.map { ($0.server.userSeconds + $0.server.systemSeconds) * scale }), 4),
        Self.text(Self.median(all.map { $0.client.userSeconds * scale }), 4),
        Self.text(
          Self.median(all.map { ($0.client.userSeconds + $0.client.systemSeconds) * scale }), 4),
        Self.text(Self.median(all.map { Double($0.server.peakKiB) / 1024 }), 1),
        Self.text(Self.median(all.map(\.p50)), 1), Self.text(Self.median(all.map(\.p99)), 1),
        separator: "\t")
    }
    guard let floor = self.work.stacks.first else { return }
    for stack in self.work.stacks.dropFirst() { self.reportRatio(stack, floor) }
  }

  private func reportRatio(_ stack: Stack, _ floor: Stack) {
    let pairs = zip(self.samples[stack]!, self.samples[floor]!)
    let user = Self.median(pairs.map { $0.server.userSeconds / max($1.server.userSeconds, 1e-9) })
    let total = Self.median(
      pairs.map {
        ($0.server.userSeconds + $0.server.systemSeconds)
          / max($1.server.userSeconds + $1.server.systemSeconds, 1e-9)
      })
    let p50 = Self.median(pairs.map { $0.p50 / max($1.p50, 1e-9) })
    print(
      "\(stack.rawValue) / \(floor.rawValue): server user CPU \(Self.text(user, 2)), server total CPU",
      "\(Self.text(total, 2))\(stack.isTimed ? ", p50 \(Self.text(p50, 2))" : "")",
      "(medians of the ratios of each round)")
  }

  private static func median(_ values: [Double]) -> Double {
    let sorted = values.sorted()
    return (sorted[(sorted.count - 1) / 2] + sorted[sorted.count / 2]) / 2
  }

  private static func text(_ value: Double, _ digits: Int) -> String {
    let scale = pow(10, Double(digits))
    let rounded = (value * scale).rounded() / scale
    return digits == 0 ? "\(Int(rounded))" : "\(rounded)"
  }
}
