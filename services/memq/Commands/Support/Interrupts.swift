// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQSystem
import Synchronization

/// Ctrl-C and SIGTERM as a call, for commands that end in order. A second one ends the process at once with status 130.
enum Interrupts {
  /// Written by the signal handler, read by a thread: nothing else is safe in a handler.
  nonisolated(unsafe) private static var pipeEnd: Int32 = -1

  /// Calls `body` once, at the first signal, from a thread of its own.
  static func onFirst(_ body: @escaping @Sendable () -> Void) {
    var ends: [Int32] = [0, 0]
    guard pipe(&ends) == 0 else { return }
    self.pipeEnd = ends[1]
    let readEnd = ends[0]
    for number in [SIGINT, SIGTERM] {
      signal(number) { _ in
        var byte: UInt8 = 1
        _ = Glibc.write(Interrupts.pipeEnd, &byte, 1)
      }
    }
    _ = OwnThread(name: "memq-signals") {
      var byte: UInt8 = 0
      var isFirst = true
      while true {
        let count = read(readEnd, &byte, 1)
        if count < 0 && errno == EINTR { continue }
        guard count == 1 else { return }
        guard isFirst else { _exit(130) }
        isFirst = false
        body()
      }
    }
  }
}
