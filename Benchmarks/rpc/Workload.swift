// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// What one run moves: messages of one size, each acknowledged with 8 bytes, or answered with as many.
struct Workload: Sendable {
  var messageBytes = 1 << 20
  var inFlight = 16
  var messages = 4096

  var bytes: Int { self.messageBytes * self.messages }
  var gibibytes: Double { Double(self.bytes) / Double(1 << 30) }

  static func payload(_ count: Int) -> ByteBuffer {
    ByteBuffer(bytes: (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 131) })
  }
}

/// How long calls took, from their start to their status.
final class Latencies: @unchecked Sendable {
  private var nanoseconds: [UInt32] = []

  init(_ count: Int) {
    self.nanoseconds.reserveCapacity(count)
  }

  func add(since start: NIODeadline) {
    self.nanoseconds.append(UInt32(clamping: (NIODeadline.now() - start).nanoseconds))
  }

  /// `p50 p99` in microseconds; zeros when nothing was timed.
  var line: String {
    let sorted = self.nanoseconds.sorted()
    guard let last = sorted.indices.last else { return "0 0" }
    return [0.5, 0.99].map { "\(Double(sorted[Int(Double(last) * $0)]) / 1000)" }
      .joined(separator: " ")
  }
}

/// Every message of a bare connection has the prefix that gRPC gives it: a zero and four bytes of length.
enum Framing {
  static func message(_ payload: ByteBuffer) -> [ByteBuffer] {
    var prefix = ByteBuffer()
    prefix.writeInteger(UInt8(0))
    prefix.writeInteger(UInt32(payload.readableBytes))
    return [prefix, payload]
  }
}

/// Cuts what arrives into messages and keeps their slices until they are whole, as anyone must who uses them.
struct Deframer {
  private var head = ByteBuffer()
  private var slices: [ByteBuffer] = []
  private var left = 0

  /// Takes all of `input`; calls `body` with the slices of each whole message.
  mutating func take(_ input: ByteBuffer, _ body: ([ByteBuffer]) -> Void) {
    var input = input
    while input.readableBytes > 0 {
      if self.left == 0 {
        var prefix = input.readSlice(length: min(5 - self.head.readableBytes, input.readableBytes))!
        self.head.writeBuffer(&prefix)
        guard self.head.readableBytes == 5 else { return }
        self.left = Int(self.head.getInteger(at: self.head.readerIndex + 1, as: UInt32.self)!)
        self.head.clear()
      }
      if let slice = input.readSlice(length: min(self.left, input.readableBytes)) {
        self.left -= slice.readableBytes
        self.slices.append(slice)
      }
      if self.left == 0 {
        body(self.slices)
        self.slices.removeAll(keepingCapacity: true)
      }
    }
  }
}

/// The same sockets for both stacks.
enum Sockets {
  static func receive(isSecure: Bool) -> any RecvByteBufferAllocator {
    AdaptiveRecvByteBufferAllocator(
      minimum: 2048, initial: 2048, maximum: isSecure ? 64 << 10 : 256 << 10)
  }

  static var writeMarks: ChannelOptions.Types.WriteBufferWaterMark {
    .init(low: 1 << 20, high: 4 << 20)
  }
}
