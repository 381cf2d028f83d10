// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import MemQSystem

/// Nobody reads our output any more, as behind `| head`. Not a failure: the command ends quietly.
struct OutputClosed: Error {}

/// Buffered standard output. Writes block on a thread of their own.
actor Output {
  /// Above this much the caller should flush.
  static let fullBytes = 256 << 10

  static let standard = Output()

  private var buffer: [UInt8] = []
  private let threads = DiskThreads(name: "memq-output", count: 1)

  /// - Throws: `OutputClosed`, and `.invalidArgument` when the output cannot be written.
  func write(_ text: String) async throws {
    self.buffer += Array(text.utf8)
    if self.buffer.count >= Self.fullBytes { try await self.flush() }
  }

  /// Writes what `text` gives when it is this write's turn: who gathers text from several tasks keeps its order so.
  func write(taking text: @Sendable () -> String) async throws {
    try await self.write(text())
  }

  func write(_ bytes: [UInt8]) async throws {
    self.buffer += bytes
    if self.buffer.count >= Self.fullBytes { try await self.flush() }
  }

  func line(_ text: String) async throws { try await self.write(text + "\n") }

  func flush() async throws {
    guard !self.buffer.isEmpty else { return }
    let bytes = self.buffer
    self.buffer = []
    let number = try await self.threads.run { () throws(MemQError) in
      bytes.withUnsafeBytes { Self.writeAll(1, $0) }
    }
    if number == EPIPE { throw OutputClosed() }
    guard number == 0 else {
      throw MemQError(
        .invalidArgument, "cannot write: \(String(cString: strerror(number)))",
        subject: "standard output")
    }
  }

  /// - Returns: errno, or 0.
  static func writeAll(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) -> Int32 {
    var rest = bytes
    while !rest.isEmpty {
      let count = Glibc.write(descriptor, rest.baseAddress, rest.count)
      if count < 0 {
        if errno == EINTR { continue }
        return errno
      }
      rest = UnsafeRawBufferPointer(rebasing: rest[count...])
    }
    return 0
  }

  /// One line on standard error, at once.
  static func note(_ text: String) {
    let line = Array("\(text)\n".utf8)
    _ = line.withUnsafeBytes { Self.writeAll(2, $0) }
  }

  /// A line that the next one replaces; for terminals.
  static func status(_ text: String) {
    let line = Array("\r\u{1B}[K\(text)".utf8)
    _ = line.withUnsafeBytes { Self.writeAll(2, $0) }
  }

  static var errorsAreOnTerminal: Bool { isatty(2) == 1 }
}
