// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import MemQRPC
import MemQTestSupport

/// Header values against plain implementations of what they mean.
enum HeaderFuzz {
  private static let seeds: [[UInt8]] = [
    "plain text", "100%25 %E2%98%BA%F0%9F%98%88", "%", "%4", "%zz", "q6urAA==", "q6urAA", "-_-_",
    "=",
    "1H", "99999999S", "5m", "00000000n", "999999999u", "application/grpc",
    "application/grpc+proto",
    "application/grpc;charset=utf-8", "application/grpcx", "text/html",
  ].map { Array($0.utf8) }

  static func run(_ random: inout SeededGenerator) throws {
    for _ in 0..<50 {
      var value = self.seeds.randomElement(using: &random)!
      if random.oneIn(4) { value = random.bytes(random.below(40)) }
      if !random.oneIn(8) {
        Mutator.mutate(&value, splicing: self.seeds.randomElement(using: &random)!, &random)
      }
      try self.check(value)
      let bytes = random.bytes(random.below(70))
      try self.roundTrips(bytes, &random)
    }
  }

  private static func check(_ value: [UInt8]) throws {
    let decoded = RPCParts.decodePercent(value)
    try require(decoded == self.percent(value), "percent-decoding \(value) gave \(decoded)")
    let base64 = RPCParts.decodeBase64(value)
    try require(
      base64 == self.base64(value), "base64 of \(value) gave \(String(describing: base64))")
    let timeout = RPCParts.parseTimeout(value)
    try require(
      timeout == self.timeout(value), "the timeout \(value) gave \(String(describing: timeout))")
    let isGRPC = RPCParts.isGRPC(contentType: value)
    let text = String(decoding: value, as: UTF8.self)
    let expected =
      text == "application/grpc" || text.hasPrefix("application/grpc+")
      || text.hasPrefix("application/grpc;")
    // By bytes: a combining mark makes one Character of its neighbour.
    let prefix = Array("application/grpc".utf8)
    let byBytes =
      value.starts(with: prefix)
      && (value.count == prefix.count || value[prefix.count] == 0x2b || value[prefix.count] == 0x3b)
    try require(isGRPC == byBytes && (expected ? isGRPC : true), "the content type \(text)")
  }

  private static func roundTrips(_ bytes: [UInt8], _ random: inout SeededGenerator) throws {
    let encoded = RPCParts.encodeBase64(bytes)
    try require(
      Data(bytes).base64EncodedString().hasPrefix(encoded)
        && RPCParts.decodeBase64(Array(encoded.utf8)) == bytes, "base64 of \(bytes) is \(encoded)")
    let text = String(decoding: bytes, as: UTF8.self)
    let percent = RPCParts.encodePercent(text)
    try require(
      percent.utf8.allSatisfy { $0 >= 0x20 && $0 <= 0x7e }
        && RPCParts.decodePercent(Array(percent.utf8)) == text, "percent-encoding \(bytes)")
    let nanoseconds = Int64(truncatingIfNeeded: random.next() >> UInt64(random.below(64)))
    let written = RPCParts.formatTimeout(nanoseconds: nanoseconds)
    guard let read = RPCParts.parseTimeout(Array(written.utf8)) else {
      throw FuzzFailure("the timeout \(nanoseconds) is written as \(written)")
    }
    // Never shorter than asked for, but for what is cut to a century.
    try require(
      read >= min(nanoseconds, 3_153_600_000_000_000_000),
      "the timeout \(nanoseconds) is written as \(written)")
  }

  // MARK: The plain implementations

  private static func percent(_ value: [UInt8]) -> String {
    let digits = Array("0123456789abcdef".utf8)
    func digit(_ index: Int) -> UInt8? {
      guard index < value.count else { return nil }
      let lower = value[index] >= 0x41 && value[index] <= 0x46 ? value[index] + 32 : value[index]
      return digits.firstIndex(of: lower).map { UInt8($0) }
    }
    var out: [UInt8] = []
    var index = 0
    while index < value.count {
      if value[index] == 0x25, let high = digit(index + 1), let low = digit(index + 2) {
        out.append(high * 16 + low)
        index += 3
      } else {
        out.append(value[index])
        index += 1
      }
    }
    return String(decoding: out, as: UTF8.self)
  }

  private static func base64(_ value: [UInt8]) -> [UInt8]? {
    var text = value
    var padding = 0
    while text.last == 0x3d {
      text.removeLast()
      padding += 1
    }
    guard padding <= 2, !text.contains(0x3d), text.count % 4 != 1 else { return nil }
    text = text.map { $0 == 0x2d ? 0x2b : $0 == 0x5f ? 0x2f : $0 }
    // What ends in bits of no byte is read all the same: Foundation may not, so those bits become zero.
    let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
    guard text.allSatisfy({ alphabet.contains($0) }) else { return nil }
    if let last = text.last, let index = alphabet.firstIndex(of: last) {
      if text.count % 4 == 2 { text[text.count - 1] = alphabet[index & 0x30] }
      if text.count % 4 == 3 { text[text.count - 1] = alphabet[index & 0x3c] }
    }
    while text.count % 4 != 0 { text.append(0x3d) }
    return Data(base64Encoded: Data(text)).map { Array($0) }
  }

  private static func timeout(_ value: [UInt8]) -> Int64? {
    guard (2...9).contains(value.count) else { return nil }
    let digits = value.dropLast()
    guard digits.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }) else { return nil }
    let scales: [UInt8: Double] = [
      0x48: 3.6e12, 0x4d: 6e10, 0x53: 1e9, 0x6d: 1e6, 0x75: 1e3, 0x6e: 1,
    ]
    guard let scale = scales[value.last!] else { return nil }
    let count = digits.reduce(0) { $0 * 10 + Int64($1 - 0x30) }
    let longest: Int64 = 3_153_600_000_000_000_000
    return Double(count) * scale >= Double(longest) ? longest : count * Int64(scale)
  }
}
