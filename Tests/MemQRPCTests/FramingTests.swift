// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQTestSupport
import NIOCore
import Testing

@testable import MemQRPC

@Suite struct FramingTests {
  /// All bytes the queue gives, as one buffer, taken in pieces of at most `limit`.
  private func drain(_ queue: inout MessageQueue, upTo limit: () -> Int) -> ByteBuffer {
    var bytes = ByteBuffer()
    while let piece = queue.take(upTo: limit()) {
      switch piece {
      case .prefix(let bits, let count):
        for index in stride(from: count - 1, through: 0, by: -1) {
          bytes.writeInteger(UInt8(truncatingIfNeeded: bits >> UInt64(8 * index)))
        }
      case .payload(let slice): bytes.writeImmutableBuffer(slice)
      }
    }
    return bytes
  }

  @Test(arguments: 1...200)
  func `messages survive any cut of the bytes and of themselves`(seed: Int) throws {
    var random = SeededGenerator(seed: UInt64(seed))
    var queue = MessageQueue()
    var sent: [RPCMessage] = []
    for _ in 0..<Int.random(in: 1...12, using: &random) {
      var message = RPCMessage()
      for _ in 0..<Int.random(in: 0...4, using: &random) {
        let sizes = [0, 1, 3, 100, 5000, 16384, 70_000]
        message.append(
          RPCMessage.pattern(sizes.randomElement(using: &random)!, seed: UInt8(seed & 255))
            .contiguous())
      }
      sent.append(message)
      queue.append(message)
    }
    let total = queue.byteCount
    var wire = self.drain(&queue) { Int.random(in: 1...40_000, using: &random) }
    #expect(wire.readableBytes == total)
    #expect(queue.byteCount == 0 && queue.isEmpty)

    var deframer = MessageDeframer(maxMessageBytes: 1 << 20)
    var received: [RPCMessage] = []
    while wire.readableBytes > 0 {
      let cut = min(
        wire.readableBytes,
        Bool.random(using: &random)
          ? Int.random(in: 1...10, using: &random)
          : Int.random(in: 1...50_000, using: &random))
      var chunk = wire.readSlice(length: cut)!
      while chunk.readableBytes > 0 {
        if let message = try deframer.next(from: &chunk) { received.append(message) }
      }
    }
    #expect(received == sent)
    #expect(!deframer.isMidMessage)
  }

  @Test func `large slices are not copied, small ones do not pin their buffer`() throws {
    var wire = ByteBuffer()
    wire.writeInteger(UInt8(0))
    wire.writeInteger(UInt32(20_000))
    wire.writeRepeatingByte(7, count: 20_000)
    wire.writeInteger(UInt8(0))
    wire.writeInteger(UInt32(100))
    wire.writeRepeatingByte(9, count: 100)
    wire.reserveCapacity(256 << 10)
    var deframer = MessageDeframer(maxMessageBytes: 1 << 20)
    let large = try #require(try deframer.next(from: &wire))
    let small = try #require(try deframer.next(from: &wire))
    #expect(large.backingBytes == wire.storageCapacity)
    #expect(small.backingBytes < 1024)
  }

  @Test func `a message in one-byte pieces takes few slices and no more than twice its memory`()
    throws
  {
    var deframer = MessageDeframer(maxMessageBytes: 1 << 20)
    var prefix = ByteBuffer(bytes: [0, 0, 4, 0, 0])
    #expect(try deframer.next(from: &prefix) == nil)
    for number in 0..<(256 << 10) {
      // Each byte in a buffer of its own, as tiny frames in large reads would be.
      var byte = ByteBuffer(integer: UInt8(truncatingIfNeeded: number))
      if let message = try deframer.next(from: &byte) {
        #expect(number == (256 << 10) - 1)
        #expect(message.byteCount == 256 << 10)
        #expect(message.sliceCount == 1)
        #expect(message.backingBytes <= 512 << 10)
      }
    }
  }

  @Test func `what is no message is refused by its prefix`() {
    var deframer = MessageDeframer(maxMessageBytes: 1000)
    var tooLarge = ByteBuffer(bytes: [0, 0xff, 0xff, 0xff, 0xff])
    #expect(throws: MessageDeframer.Violation.tooLarge(bytes: 0xffff_ffff)) {
      _ = try deframer.next(from: &tooLarge)
    }
    deframer = MessageDeframer(maxMessageBytes: 1000)
    var compressed = ByteBuffer(bytes: [1, 0, 0, 0, 1, 0])
    #expect(throws: MessageDeframer.Violation.compressed) {
      _ = try deframer.next(from: &compressed)
    }
    deframer = MessageDeframer(maxMessageBytes: 1000)
    var badFlag = ByteBuffer(bytes: [2, 0, 0, 0, 1, 0])
    #expect(throws: MessageDeframer.Violation.badFlag(2)) { _ = try deframer.next(from: &badFlag) }
  }

  /// The peer sends as long as it has window; the handler consumes now and then; messages are of any size up to twice the
  /// window. It must never come to a halt, and never hold more than a window and a largest message.
  @Test(arguments: 1...200)
  func `credit never runs out, and memory stays bounded`(seed: Int) {
    var random = SeededGenerator(seed: UInt64(seed))
    let window = 65536
    let messageMax = 2 * window
    var credit = ReceiveCredit(windowBytes: window)
    var peerWindow = window
    var nghttp2Held = 0
    var waiting: [Int] = []
    var sizes = (0..<60).map { _ in
      Bool.random(using: &random)
        ? Int.random(in: 0...300, using: &random)
        : Int.random(in: 0...messageMax, using: &random)
    }
    var left = 0
    var total = 0
    var held = 0
    func returnDue(_ due: Int) {
      // nghttp2 sends WINDOW_UPDATE once half the window is due.
      nghttp2Held += due
      if nghttp2Held >= window / 2 {
        peerWindow += nghttp2Held
        nghttp2Held = 0
      }
    }
    var turns = 0
    while !sizes.isEmpty || left > 0 || !waiting.isEmpty {
      turns += 1
      #expect(turns < 100_000, "seed \(seed): no progress")
      if turns >= 100_000 { return }
      let mayReceive = peerWindow > 0 && (left > 0 || !sizes.isEmpty)
      if mayReceive && (waiting.isEmpty || Bool.random(using: &random)) {
        if left == 0 {
          total = sizes.removeFirst()
          left = total
          // The prefix; counted in the window, too.
          credit.skipped(5)
          peerWindow -= 5
          if peerWindow <= 0 || total == 0 {
            if total == 0 {
              credit.delivered(0)
              waiting.append(0)
            }
            returnDue(credit.takeDue())
            continue
          }
        }
        let count = min(left, max(1, peerWindow), Int.random(in: 1...30_000, using: &random))
        peerWindow -= count
        left -= count
        held += count
        if left == 0 {
          credit.delivered(total)
          waiting.append(total)
        } else {
          credit.receivedPartial(count, of: total)
        }
      } else if !waiting.isEmpty {
        let size = waiting.removeFirst()
        held -= size
        credit.consumed(size, partialOf: left > 0 ? total : 0)
      } else {
        #expect(Bool(false), "seed \(seed): the peer has no window and nothing waits")
        return
      }
      #expect(held <= window + messageMax, "seed \(seed)")
      returnDue(credit.takeDue())
    }
    credit.releaseAll()
    returnDue(credit.takeAllDue())
    // Every byte was paid back exactly once.
    #expect(peerWindow + nghttp2Held == window, "seed \(seed)")
  }
}
