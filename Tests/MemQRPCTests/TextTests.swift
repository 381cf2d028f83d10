// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Testing

@testable import MemQRPC

@Suite struct TextTests {
  private func bytes<R>(_ text: String, _ body: (UnsafeBufferPointer<UInt8>) -> R) -> R {
    Array(text.utf8).withUnsafeBufferPointer(body)
  }

  @Test func `timeouts are read in every unit and written without growing short`() {
    let table: [(String, Int64?)] = [
      ("1H", 3_600_000_000_000), ("2M", 120_000_000_000), ("3S", 3_000_000_000),
      ("250m", 250_000_000), ("7u", 7000), ("99999999n", 99_999_999), ("0S", 0),
      ("", nil), ("S", nil), ("1", nil), ("1s", nil), ("-1S", nil), ("123456789n", nil),
      ("1 S", nil),
    ]
    for (text, nanoseconds) in table {
      #expect(self.bytes(text) { GRPCTimeout.parse($0) } == nanoseconds, "\(text)")
    }
    for value: Int64 in [1, 999, 100_000_000, 5_000_000_001, 3_600_000_000_001, .max] {
      let text = GRPCTimeout.format(nanoseconds: value)
      #expect(text.utf8.count <= 9)
      let back = self.bytes(text) { GRPCTimeout.parse($0) }
      #expect(back != nil)
      // "For ever" is cut to a century.
      if value < .max { #expect(back! >= value) }
    }
  }

  @Test func `percent coding brings back any text`() {
    for text in ["", "plain", "100 %", "%41", "größer\n\u{0}✓", "a%"] {
      let encoded = PercentCoding.encode(text)
      #expect(encoded.utf8.allSatisfy { $0 >= 0x20 && $0 <= 0x7e })
      #expect(self.bytes(encoded) { PercentCoding.decode($0) } == text)
    }
    #expect(self.bytes("bad %zz %4") { PercentCoding.decode($0) } == "bad %zz %4")
  }

  @Test func `base64 is read with and without padding`() {
    for count in 0..<40 {
      let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 * 37 + 250) }
      let text = Base64.encode(bytes)
      #expect(Base64.decode(text.utf8) == bytes)
      let padded = text + String(repeating: "=", count: (4 - text.utf8.count % 4) % 4)
      #expect(Base64.decode(padded.utf8) == bytes)
    }
    for bad in ["a", "ab!c", "=ab", "ab=c", "aaaa==="] { #expect(Base64.decode(bad.utf8) == nil) }
  }

  @Test func `addresses are understood, and refused with a reason`() throws {
    #expect(try RPCAddress("127.0.0.1:7460") == .tcp(host: "127.0.0.1", port: 7460))
    #expect(try RPCAddress("[::1]:80") == .tcp(host: "::1", port: 80))
    #expect(try RPCAddress("db.example:0") == .tcp(host: "db.example", port: 0))
    #expect(try RPCAddress("unix:/run/memq.sock") == .unix(path: "/run/memq.sock"))
    for bad in ["", "host", ":80", "host:", "host:99999", "::1:80", "unix:", "host:-1"] {
      #expect(throws: MemQError.self, "\(bad)") { _ = try RPCAddress(bad) }
    }
  }

  @Test func `the first bytes tell who is there`() {
    func judge(_ text: String) -> Preface { Preface.judge(Array(text.utf8)) }
    #expect(judge("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == .http2)
    #expect(judge("PRI ") == .http2)
    #expect(judge("P") == .tooShort)
    #expect(judge("") == .tooShort)
    #expect(judge("GET / HTTP/1.1\r\n") == .http1)
    #expect(judge("POST") == .tooShort)
    #expect(judge("POST /x") == .http1)
    #expect(judge("\u{16}\u{3}\u{1}") == .tls)
    #expect(judge(" GET") == .other)
    #expect(judge(String(repeating: "A", count: 30)) == .other)
  }
}
