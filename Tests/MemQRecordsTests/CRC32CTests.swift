// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQTestSupport
import Testing

@testable import MemQRecords

@Suite struct CRC32CTests {
  @Test func `known vectors of RFC 3720 hold`() {
    #expect(CRC32C.checksum(Array("123456789".utf8)) == 0xE306_9283)
    #expect(CRC32C.checksum([UInt8](repeating: 0, count: 32)) == 0x8A91_36AA)
    #expect(CRC32C.checksum([UInt8](repeating: 0xFF, count: 32)) == 0x62A8_AB43)
    #expect(CRC32C.checksum((0..<32).map { UInt8($0) }) == 0x46DD_794E)
    #expect(CRC32C.checksum([]) == 0)
  }

  @Test func `instruction, tables and a bitwise loop agree at every length and alignment`() {
    var random = SeededGenerator(seed: 1)
    let bytes = random.bytes(100_000)
    let lengths =
      Array(0..<80) + [255, 767, 768, 769, 775, 1536, 24_575, 24_576, 24_577, 50_000, 99_000]
    for length in lengths {
      for start in [0, 1, 3, 7] {
        bytes.withUnsafeBytes { all in
          let slice = UnsafeRawBufferPointer(rebasing: all[start..<(start + length)])
          let fast = CRC32C.checksum(slice, seed: 7)
          #expect(fast == CRC32C.tableChecksum(slice, seed: 7))
          if length < 2000 { #expect(fast == bitwise(slice, seed: 7)) }
        }
      }
    }
  }

  @Test func `slices give what the whole gives`() {
    var random = SeededGenerator(seed: 2)
    for _ in 0..<50 {
      let bytes = random.bytes(random.below(70_000))
      var crc = CRC32C()
      var at = 0
      while at < bytes.count {
        let step = min(bytes.count - at, 1 + random.below(30_000))
        crc.update(bytes[at..<(at + step)])
        at += step
      }
      #expect(crc.value == CRC32C.checksum(bytes))
    }
  }

  private func bitwise(_ bytes: UnsafeRawBufferPointer, seed: UInt32) -> UInt32 {
    var crc = ~seed
    for byte in bytes {
      crc ^= UInt32(byte)
      for _ in 0..<8 { crc = crc & 1 == 1 ? (crc >> 1) ^ 0x82F6_3B78 : crc >> 1 }
    }
    return ~crc
  }
}
