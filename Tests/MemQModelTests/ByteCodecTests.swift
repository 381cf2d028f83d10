// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Testing

@Suite struct ByteCodecTests {
  private static let sample: [UInt8] = {
    var writer = ByteWriter()
    writer.integer(UInt16(0xABCD))
    writer.integer(Int64(-2))
    writer.flag(true)
    writer.text("grün")
    writer.list([1, 2, 3]) { $0.integer(UInt32($1)) }
    writer.optional(Optional<String>.none) { $0.text($1) }
    writer.optional("x") { $0.text($1) }
    return writer.bytes
  }()

  private static func read(_ bytes: [UInt8]) throws(MemQError) -> [UInt32] {
    var reader = ByteReader(bytes)
    let head: UInt16 = try reader.integer()
    let number: Int64 = try reader.integer()
    let flag = try reader.flag()
    let text = try reader.text()
    let list = try reader.list { (r) throws(MemQError) in try r.integer(UInt32.self) }
    let none = try reader.optional { (r) throws(MemQError) in try r.text() }
    let some = try reader.optional { (r) throws(MemQError) in try r.text() }
    try reader.finish()
    guard head == 0xABCD, number == -2, flag, text == "grün", none == nil, some == "x" else {
      throw MemQError(.corruptMessage, "another value")
    }
    return list
  }

  @Test func `what was written is read`() throws {
    #expect(try Self.read(Self.sample) == [1, 2, 3])
  }

  @Test func `every shorter form is refused and none traps`() {
    for count in 0..<Self.sample.count {
      #expect(throws: MemQError.self) { try Self.read(Array(Self.sample.prefix(count))) }
    }
    #expect(throws: MemQError.self) { try Self.read(Self.sample + [0]) }
  }

  @Test func `a forged count reserves no memory`() {
    var reader = ByteReader([0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3])
    #expect(throws: MemQError.self) {
      try reader.list { (r) throws(MemQError) in try r.integer(UInt8.self) }
    }
  }
}
