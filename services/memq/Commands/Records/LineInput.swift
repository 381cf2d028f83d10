// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import MemQSystem
import NIOCore

/// Standard input in pieces of whole lines, as they come. Reads block on a thread of their own.
actor LineInput {
  /// One read: what a pipe holds.
  private static let readBytes = 64 << 10
  /// A line longer than this is no record: the largest batch is 8 MiB.
  static let lineBytesMax = 16 << 20

  private let threads = DiskThreads(name: "memq-input", count: 1)
  private var partial: [UInt8] = []
  private var isAtEnd = false

  /// The next lines with their newlines; the last one may lack it. Nil at the end.
  ///
  /// - Throws: `.recordBatchTooLarge` for an endless line, `.invalidArgument` when the input cannot be read.
  func next() async throws(MemQError) -> [UInt8]? {
    while !self.isAtEnd {
      let (bytes, number) = try await self.threads.run { () throws(MemQError) in Self.read() }
      guard number == 0 else {
        throw MemQError(
          .invalidArgument, "cannot read: \(String(cString: strerror(number)))",
          subject: "standard input")
      }
      self.isAtEnd = bytes.isEmpty
      if let lines = self.take(bytes) { return lines }
      guard self.partial.count <= Self.lineBytesMax else {
        throw MemQError(
          .recordBatchTooLarge, "a line is longer than any record may be; put it as a file",
          subject: "standard input", limit: Int64(Self.lineBytesMax),
          actual: Int64(self.partial.count))
      }
    }
    guard !self.partial.isEmpty else { return nil }
    defer { self.partial = [] }
    return self.partial
  }

  /// Whole lines of what is there now; the rest stays.
  private func take(_ bytes: [UInt8]) -> [UInt8]? {
    guard let newline = bytes.lastIndex(of: UInt8(ascii: "\n")) else {
      self.partial += bytes
      return nil
    }
    var lines = self.partial
    lines += bytes[...newline]
    self.partial = Array(bytes[(newline + 1)...])
    return lines
  }

  private static func read() -> (bytes: [UInt8], number: Int32) {
    var number: Int32 = 0
    let bytes = [UInt8](unsafeUninitializedCapacity: Self.readBytes) { buffer, count in
      while true {
        let result = Glibc.read(0, buffer.baseAddress, buffer.count)
        if result < 0 && errno == EINTR { continue }
        if result < 0 { number = errno }
        count = max(0, result)
        return
      }
    }
    return (bytes, number)
  }
}
