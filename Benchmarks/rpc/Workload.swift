// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// What one run moves: messages of one size to a server that acknowledges each with 8 bytes.
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

/// The same sockets for both stacks.
enum Sockets {
  static var receive: any RecvByteBufferAllocator {
    AdaptiveRecvByteBufferAllocator(minimum: 2048, initial: 2048, maximum: 256 << 10)
  }

  static var writeMarks: ChannelOptions.Types.WriteBufferWaterMark {
    .init(low: 1 << 20, high: 4 << 20)
  }
}
