// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Testing

@Suite struct IdentifierTests {
  @Test func `an identifier survives its text and its bytes`() throws {
    let id = UniqueID(random: 0x0123_4567_89AB_CDEF, 0xFEDC_BA98_7654_3210)
    #expect(id.description == "01234567-89ab-4def-bedc-ba9876543210")
    #expect(UniqueID(id.description) == id)
    #expect(UniqueID(id.description.uppercased()) == id)
    #expect(UniqueID(bytes: id.bytes) == id)
  }

  @Test(arguments: [
    "", "0", "01234567-89ab-4def-bedc-ba987654321", "01234567-89ab-4def-bedc-ba98765432100",
    "0123456789ab4defbedcba9876543210", "01234567+89ab-4def-bedc-ba9876543210",
    "g1234567-89ab-4def-bedc-ba9876543210", "01234567-89ab-4def-bedc-ba987654321ä",
  ])
  func `text that is no identifier is refused`(text: String) {
    #expect(UniqueID(text) == nil)
  }

  @Test func `hexadecimal goes there and back`() {
    let bytes = (0...255).map { UInt8($0) }
    #expect(hexBytes(hexText(bytes)) == bytes)
    #expect(hexBytes("0") == nil)
    #expect(hexBytes("0g") == nil)
  }

  @Test func `partitions are ordered by topic, then by index`() {
    let low = TopicID(UniqueID(high: 1, low: 9))
    let high = TopicID(UniqueID(high: 2, low: 0))
    let a = TopicPartition(low, PartitionIndex(7))
    let b = TopicPartition(high, PartitionIndex(0))
    #expect(a < b)
    #expect(TopicPartition(low, PartitionIndex(6)) < a)
  }
}
