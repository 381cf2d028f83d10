// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQSystem
import Synchronization

/// One line on a terminal's standard error that grows with the work; nothing elsewhere.
final class ProgressBar: Sendable {
  private static let width = 30
  /// Faster than anybody reads.
  private static let interval: Duration = .milliseconds(100)

  private let title: String
  private let total: Int64
  private let isOn: Bool
  private let clock = SystemClock()
  private let start: MonotonicInstant
  private let lastShown: Mutex<MonotonicInstant>

  init(_ title: String, total: Int64) {
    self.title = TextTable.printable(String(title.suffix(40)))
    self.total = total
    // Small files are done before anybody sees it.
    self.isOn = Output.errorsAreOnTerminal && total > 4 << 20
    self.start = self.clock.monotonic
    self.lastShown = Mutex(.zero)
  }

  func show(_ bytes: Int64) {
    guard self.isOn else { return }
    let now = self.clock.monotonic
    let isDue = self.lastShown.withLock { last in
      guard now - last >= Self.interval || bytes == self.total else { return false }
      last = now
      return true
    }
    guard isDue else { return }
    let filled = self.total == 0 ? Self.width : Int(bytes * Int64(Self.width) / self.total)
    let bar =
      String(repeating: "#", count: filled) + String(repeating: ".", count: Self.width - filled)
    let elapsed = max(1, (now - self.start).milliseconds)
    let percent = self.total == 0 ? 100 : bytes * 100 / self.total
    Output.status(
      "\(self.title) [\(bar)] \(percent) % of \(byteText(self.total)), \(byteText(bytes * 1_000 / elapsed))/s"
    )
  }

  func finish() {
    if self.isOn { Output.status("") }
  }
}
