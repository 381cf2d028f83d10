// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import MemQAPI
import MemQModel
import MemQRPC
import MemQTestSupport
import NIOCore
import SwiftProtobuf

/// The splitter of messages with a payload field against swift-protobuf with the whole message in one piece.
enum PayloadFuzz {
  static func run(_ random: inout SeededGenerator) throws {
    var bytes = self.sample(&random)
    let other = self.sample(&random)
    if !random.oneIn(6) { Mutator.mutate(&bytes, splicing: other, &random) }
    let message = RPCMessage(
      slices: bytes.isEmpty
        ? [] : Mutator.pieces(bytes, &random).map { ByteBuffer(bytes: $0) })

    let reference = self.reference(bytes)
    var split: Hot<Memq_V1_ProduceRequest>?
    do throws(MemQError) {
      split = try Hot<Memq_V1_ProduceRequest>(decoding: message)
    } catch {
      try require(error.code == .corruptMessage, "refused with \(error)")
    }
    switch (split, reference) {
    case (nil, nil): break
    case (let split?, let (header, payload)?):
      try require(split.header == header, "the header differs")
      try require(
        Array(buffer: split.payload.contiguous()) == payload, "the payload differs")
      // And again, written by us.
      let again: Hot<Memq_V1_ProduceRequest>
      do throws(MemQError) {
        again = try Hot<Memq_V1_ProduceRequest>(decoding: split.encoded())
      } catch {
        throw FuzzFailure("what was encoded is refused: \(error)")
      }
      try require(
        again.header == split.header && again.payload == split.payload, "encoding changes it")
    case (nil, _?): throw FuzzFailure("refused, and swift-protobuf takes it")
    case (_?, nil): throw FuzzFailure("taken, and swift-protobuf refuses it")
    }
  }

  private static func sample(_ random: inout SeededGenerator) -> [UInt8] {
    var header = Memq_V1_ProduceRequest()
    header.requestID = random.next() >> UInt64(random.below(64))
    header.topic = String(repeating: "t", count: random.below(200))
    header.partition = Int32(truncatingIfNeeded: random.next())
    header.producerID = Int64(truncatingIfNeeded: random.next())
    header.records = (0..<random.below(4)).map { _ in
      var record = Memq_V1_Record()
      record.key = .init(random.bytes(random.below(10)))
      return record
    }
    let payload = RPCMessage(bytes: random.bytes(random.below(2_000)))
    var bytes = Array(buffer: Hot(header, payload: payload).encoded().contiguous())
    // Fields that nobody knows: a varint, eight bytes, a string, four bytes.
    let unknown: [[UInt8]] = [
      [0xa0, 0x06, 0xff, 0x01], [0xa1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8], [0xa2, 0x06, 2, 9, 9],
      [0xa5, 0x06, 1, 2, 3, 4],
    ]
    if random.oneIn(2) { bytes += unknown.randomElement(using: &random)! }
    if random.oneIn(4) {
      bytes += Array(buffer: Hot(header, payload: payload).encoded().contiguous())
    }
    return bytes
  }

  /// Cuts by hand, array by array. What the splitter refuses by design is refused here, too: groups, and a payload field that is not
  /// length-delimited.
  private static func reference(_ bytes: [UInt8]) -> (Memq_V1_ProduceRequest, [UInt8])? {
    var header: [UInt8] = []
    var payload: [UInt8] = []
    var at = 0
    func varint() -> UInt64? {
      var value: UInt64 = 0
      for index in 0..<10 {
        guard at < bytes.count else { return nil }
        let byte = bytes[at]
        at += 1
        value |= UInt64(byte & 0x7f) << UInt64(7 * index)
        if byte & 0x80 == 0 { return value }
      }
      return nil
    }
    while at < bytes.count {
      let start = at
      guard let tag = varint(), tag >> 3 >= 1, tag >> 3 < 1 << 29 else { return nil }
      var content: Range<Int>?
      switch tag & 7 {
      case 0: guard varint() != nil else { return nil }
      case 1: at += 8
      case 2:
        guard let length = varint(), length <= UInt64(bytes.count - at) else { return nil }
        content = at..<(at + Int(length))
        at += Int(length)
      case 5: at += 4
      default: return nil
      }
      guard at <= bytes.count else { return nil }
      if tag >> 3 == 15 {
        guard let content else { return nil }
        payload = Array(bytes[content])
      } else {
        header += bytes[start..<at]
      }
    }
    guard let decoded = try? Memq_V1_ProduceRequest(serializedBytes: header) else { return nil }
    return (decoded, payload)
  }
}
