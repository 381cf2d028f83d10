// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc

/// Standard error, one write(2) per line, so that lines of several threads or processes never mix.
public struct StandardErrorSink: LogSink {
  public init() {}

  public func write(_ line: String) {
    var line = line
    line.withUTF8 { bytes in
      var rest = UnsafeRawBufferPointer(bytes)[...]
      while !rest.isEmpty {
        let part = UnsafeRawBufferPointer(rebasing: rest)
        let count = Glibc.write(STDERR_FILENO, part.baseAddress, part.count)
        if count < 0 {
          // Nobody reads our logs: nothing can be said about it.
          guard errno == EINTR else { return }
          continue
        }
        rest = rest.dropFirst(count)
      }
    }
  }
}
