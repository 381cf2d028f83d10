// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc

/// CPU time and memory of this process.
struct Usage: Sendable {
  var userSeconds: Double
  var systemSeconds: Double
  var peakKiB: Int

  static func now() -> Usage {
    var usage = rusage()
    guard getrusage(RUSAGE_SELF.rawValue, &usage) == 0 else { fatalError("getrusage: \(errno)") }
    return Usage(
      userSeconds: Self.seconds(usage.ru_utime), systemSeconds: Self.seconds(usage.ru_stime),
      peakKiB: usage.ru_maxrss)
  }

  private static func seconds(_ time: timeval) -> Double {
    Double(time.tv_sec) + Double(time.tv_usec) / 1e6
  }

  static func - (left: Usage, right: Usage) -> Usage {
    Usage(
      userSeconds: left.userSeconds - right.userSeconds,
      systemSeconds: left.systemSeconds - right.systemSeconds, peakKiB: left.peakKiB)
  }

  /// `user system peakKiB`, for another process.
  var line: String { "\(self.userSeconds) \(self.systemSeconds) \(self.peakKiB)" }

  init(userSeconds: Double, systemSeconds: Double, peakKiB: Int) {
    self.userSeconds = userSeconds
    self.systemSeconds = systemSeconds
    self.peakKiB = peakKiB
  }

  init?(line: some StringProtocol) {
    let parts = line.split(separator: " ")
    guard parts.count == 3, let user = Double(parts[0]), let system = Double(parts[1]),
      let peak = Int(parts[2])
    else { return nil }
    self.init(userSeconds: user, systemSeconds: system, peakKiB: peak)
  }
}
