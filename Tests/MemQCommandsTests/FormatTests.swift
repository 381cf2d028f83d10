// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQRecords
import Testing

@testable import MemQCommands

@Suite struct FormatTests {
  static let record = Record(
    key: Array("k".utf8), value: Array("v 1".utf8),
    headers: [
      RecordHeader(name: "a", value: Array("1".utf8)), RecordHeader(name: "b", value: nil),
    ], timestamp: Timestamp(milliseconds: 1_700_000_000_123), offset: Offset(42))

  static func text(_ pattern: String, _ record: Record = Self.record) throws -> String {
    var out: [UInt8] = []
    try #require(RecordFormat(argument: pattern)).write(record, PartitionIndex(3), onto: &out)
    return String(decoding: out, as: UTF8.self)
  }

  @Test(arguments: [
    ("%v", "v 1"), ("%p %o %v", "3 42 v 1"), ("%k=%v", "k=v 1"), ("%t", "1700000000123"),
    ("%T", "2023-11-14T22:13:20.123Z"), ("%h", "a=1,b="), ("100%% %o\\t%p%n\\\\", "100% 42\t3\n\\"),
    ("", ""), ("☃ %o", "☃ 42"),
  ])
  func `patterns are filled in`(pattern: String, want: String) throws {
    #expect(try Self.text(pattern) == want)
  }

  @Test(arguments: ["%", "%x", "\\", "\\q"])
  func `patterns that mean nothing are refused`(pattern: String) {
    #expect(RecordFormat(argument: pattern) == nil)
  }

  @Test func `null prints nothing and foreign bytes stand in JSON as base64`() throws {
    #expect(try Self.text("[%k][%v]", Record(value: nil)) == "[][]")
    let json = RecordFormat.json(Record(key: [0xFF, 0, 1], value: nil), PartitionIndex(0)).line
    #expect(json.contains("\"key_base64\": \"/wAB\"") && json.contains("\"value\": null"))
  }

  @Test(arguments: [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")])
  func `base64 is that of RFC 4648`(text: String, want: String) {
    #expect(Base64.encode(Array(text.utf8)) == want)
  }

  @Test func `JSON is quoted`() {
    let value: JSON = ["a\"\\\n\u{1}": .array([1, true, .null, "ü☃"]), "b": .object([]), "c": []]
    #expect(value.line == #"{"a\"\\\n\u0001": [1, true, null, "ü☃"], "b": {}, "c": []}"#)
    #expect(
      JSON.array([["x": 1], ["x": 2]]).text
        == "[\n  {\n    \"x\": 1\n  },\n  {\n    \"x\": 2\n  }\n]")
    var list = JSONList()
    #expect(list.end == "[]\n")
    #expect(list.next(1) + list.next(2) + list.end == "[\n  1,\n  2\n]\n")
  }

  @Test(arguments: [
    ("2023-11-14T22:13:20.123Z", 1_700_000_000_123), ("2023-11-14T22:13:20Z", 1_700_000_000_000),
    ("2023-11-14T23:13:20+01:00", 1_700_000_000_000), ("2023-11-14 22:13", 1_699_999_980_000),
    ("1970-01-02", 86_400_000), ("2024-02-29", 1_709_164_800_000),
  ])
  func `times are read`(text: String, want: Int64) {
    #expect(TimeText.parse(text)?.milliseconds == want)
  }

  @Test(arguments: [
    "", "2023", "2023-02-29", "2023-13-01", "2023-11-14T25:00", "2023-11-14T22:13:20X", "now",
  ])
  func `what is no time is refused`(text: String) {
    #expect(TimeText.parse(text) == nil)
  }

  @Test func `times are written as they are read`() {
    for milliseconds in stride(from: Int64(1), to: 4_000_000_000_000, by: 98_765_432_123) {
      let time = Timestamp(milliseconds: milliseconds)
      #expect(TimeText.parse(TimeText.iso(time)) == time)
    }
  }

  @Test func `byte counts are short`() {
    #expect(byteText(0) == "0 B" && byteText(1_023) == "1023 B" && byteText(1_536) == "1.5 KiB")
    #expect(byteText(5 << 40) == "5.0 TiB" && byteText(300 << 20) == "300 MiB")
  }

  @Test func `tables line up and control characters do not reach the terminal`() {
    var table = TextTable("NAME", ">N")
    table.add("a\u{1B}[31m", "1")
    table.add("long name", "22")
    #expect(table.text == "NAME        N\na\u{FFFD}[31m      1\nlong name  22\n")
  }
}
