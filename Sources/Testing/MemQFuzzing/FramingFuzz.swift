// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQRPC
import MemQTestSupport
import NIOCore

/// gRPC's framing against one that has all bytes at once; gzip against itself with all bytes at once.
enum FramingFuzz {
  private static let maxMessageBytes = 100_000

  static func run(_ random: inout SeededGenerator) throws {
    let gzip = RPCParts.Gzip()
    let packed = RPCMessage(bytes: self.compressible(&random))
    var stream: [UInt8] = []
    var other: [UInt8] = []
    for index in 0..<(1 + random.below(6)) {
      let sizes = [0, 1, 20, 1_000, 17_000, 40_000]
      let size = random.below(sizes.randomElement(using: &random)! + 1)
      let isPacked = random.oneIn(3)
      let body =
        isPacked ? Array(buffer: gzip.pack(packed).contiguous()) : random.bytes(size)
      stream += self.frame(isPacked ? 1 : 0, body)
      if index == 0 { other = body }
    }
    if !random.oneIn(6) { Mutator.mutate(&stream, splicing: other, &random) }
    try self.deframe(stream, &random)

    var wrapped = Array(buffer: gzip.pack(packed).contiguous())
    if !random.oneIn(4) { Mutator.mutate(&wrapped, splicing: other, &random) }
    try self.unpack(wrapped, gzip, &random)
  }

  private static func compressible(_ random: inout SeededGenerator) -> [UInt8] {
    let word = random.bytes(1 + random.below(20))
    var bytes: [UInt8] = []
    let count = 130 + random.below(30_000)
    while bytes.count < count {
      bytes += random.oneIn(5) ? random.bytes(random.below(20)) : word
    }
    return bytes
  }

  private static func frame(_ flag: UInt8, _ body: [UInt8]) -> [UInt8] {
    let count = UInt32(body.count)
    return [
      flag, UInt8(count >> 24), UInt8(count >> 16 & 255), UInt8(count >> 8 & 255),
      UInt8(count & 255),
    ] + body
  }

  private static func deframe(_ stream: [UInt8], _ random: inout SeededGenerator) throws {
    let acceptsPacked = Bool.random(using: &random)
    // Slices of one buffer, as reads give them.
    let whole = ByteBuffer(bytes: stream)
    let chunks = Mutator.pieces(stream, &random).map {
      whole.getSlice(at: $0.startIndex, length: $0.count)!
    }
    let ours = RPCParts.deframe(
      chunks, maxMessageBytes: self.maxMessageBytes, acceptsPacked: acceptsPacked)

    var messages: [[UInt8]] = []
    var flags: [Bool] = []
    var rest = stream[...]
    var isBroken = false
    while rest.count >= 5 {
      let head = Array(rest.prefix(5))
      let length = head[1...].reduce(0) { $0 << 8 | Int($1) }
      if head[0] > 1 || head[0] == 1 && !acceptsPacked || length > self.maxMessageBytes {
        isBroken = true
        break
      }
      guard rest.count >= 5 + length else { break }
      messages.append(Array(rest.dropFirst(5).prefix(length)))
      flags.append(head[0] == 1)
      rest = rest.dropFirst(5 + length)
    }
    try require(
      ours.messages.map { Array(buffer: $0.contiguous()) } == messages && ours.flags == flags,
      "\(ours.messages.count) messages instead of \(messages.count)")
    try require((ours.failure != nil) == isBroken, "failure: \(ours.failure ?? "none")")
    if !isBroken {
      try require(ours.isMidMessage == !rest.isEmpty, "the end is inside a message, or not")
      try require(
        ours.heldBytes == max(0, rest.count - 5), "\(ours.heldBytes) bytes are held back")
    }
  }

  private static func unpack(
    _ bytes: [UInt8], _ gzip: RPCParts.Gzip, _ random: inout SeededGenerator
  ) throws {
    let limit = [0, 100, 40_000, 1 << 20].randomElement(using: &random)!
    let whole = gzip.unpack(RPCMessage(bytes: bytes), maxBytes: limit)
    let cut = RPCMessage(
      slices: Mutator.pieces(bytes, &random).map { ByteBuffer(bytes: $0) })
    try require(
      gzip.unpack(cut, maxBytes: limit) == whole, "gzip in pieces differs from gzip as a whole")
    if let whole {
      try require(whole.byteCount <= limit, "\(whole.byteCount) bytes, the limit is \(limit)")
    }
  }
}
