// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQTestSupport
import Testing

@testable import MemQRecords

@Suite struct FileRecordTests {
  private let inline = FileRecord(
    uploadID: UploadID(UniqueID(high: 1, low: 2)), size: 3, digest: (0..<32).map { $0 },
    contentType: "text/plain",
    verdict: .init(
      kind: .clean, engine: "yara 4.2.3", databaseVersion: "ab", durationMilliseconds: 7),
    attributes: ["owner": "ü"], body: .inline([1, 2, 3]))

  @Test func `both kinds of body come back`() throws {
    var object = self.inline
    object.body = .object(key: "bodies/a/b")
    for record in [self.inline, object] {
      #expect(try FileRecord(record.encoded()) == record)
    }
  }

  @Test func `the bytes are the documented ones`() {
    #expect(
      hexText(self.inline.encoded())
        == "4d51465200" + "00000000000000010000000000000002" + "0000000000000003"
        + hexText((0..<32).map { UInt8($0) }) + "0000000a" + hexText("text/plain".utf8) + "01"
        + "00000000" + "00000000" + "0000000a" + hexText("yara 4.2.3".utf8) + "000000026162"
        + "0000000000000007" + "00000001" + "000000056f776e6572" + "00000002c3bc" + "00"
        + "00000003010203" + "7a50997f")
  }

  @Test func `damage is refused and never traps`() {
    let good = self.inline.encoded()
    for at in good.indices {
      var bytes = good
      bytes[at] ^= 0x41
      #expect(throws: MemQError.self) { try FileRecord(bytes) }
      #expect(throws: MemQError.self) { try FileRecord(Array(good.prefix(at))) }
    }
    var random = SeededGenerator(seed: 21)
    for _ in 0..<5000 {
      var bytes = good
      for _ in 0...random.below(3) {
        bytes[random.below(bytes.count - 4)] = UInt8(random.below(256))
      }
      let crc = CRC32C.checksum(bytes.dropLast(4))
      for i in 0..<4 {
        bytes[bytes.count - 4 + i] = UInt8(truncatingIfNeeded: crc >> UInt32(24 - 8 * i))
      }
      _ = try? FileRecord(bytes)
    }
  }
}
