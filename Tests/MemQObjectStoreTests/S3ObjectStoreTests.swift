// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Logging
import MemQModel
import MemQRecords
import MemQSystem
import NIOCore
import NIOHTTP1
import Testing

@testable import MemQObjectStore

@Suite(.serialized) struct S3ObjectStoreTests {
  private static let timeout: Duration = .seconds(60)
  private static let partBytes = 16 << 20

  private func with(
    prefix: String = "", _ body: (any ObjectStore, MotoStore) async throws -> Void
  ) async throws {
    let moto = try MotoStore()
    let store = try await moto.open(prefix: prefix)
    do {
      try await body(store, moto)
    } catch {
      await store.close()
      throw error
    }
    await store.close()
  }

  private func bytes(_ count: Int, seed: Int = 7) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: ($0 &+ seed) &* 31 >> 3) }
  }

  private func put(_ store: any ObjectStore, _ key: String, _ bytes: [UInt8]) async throws {
    let slices = stride(from: 0, to: bytes.count, by: 700_001).map {
      ByteBuffer(bytes: bytes[$0..<min($0 + 700_001, bytes.count)])
    }
    try await store.put(
      try ObjectKey(key), ObjectSource(slices: slices), crc32c: CRC32C.checksum(bytes),
      timeout: Self.timeout)
  }

  private func get(
    _ store: any ObjectStore, _ key: String, _ range: Range<Int64>
  ) async throws -> [UInt8] {
    Array(buffer: try await store.get(try ObjectKey(key), range: range, timeout: Self.timeout))
  }

  private func code(_ body: () async throws -> Void) async -> ErrorCode? {
    do { try await body() } catch { return (error as? MemQError)?.code }
    return nil
  }

  @Test func `what is put is got, whole and by range`() async throws {
    try await self.with(prefix: "cluster-1") { store, _ in
      let bytes = self.bytes(10_000_000)
      try await self.put(store, "objects/00000001/abc", bytes)
      let key = try ObjectKey("objects/00000001/abc")
      #expect(try await store.head(key, timeout: Self.timeout).byteCount == 10_000_000)
      #expect(try await self.get(store, key.text, 0..<10_000_000) == bytes)
      #expect(
        try await self.get(store, key.text, 9_999_990..<10_000_000).elementsEqual(bytes.suffix(10)))
      #expect(try await self.get(store, key.text, 5..<5) == [])
      try await self.put(store, "empty", [])
      #expect(try await store.head(try ObjectKey("empty"), timeout: Self.timeout).byteCount == 0)
    }
  }

  @Test func `each refusal is typed and changes nothing`() async throws {
    try await self.with { store, _ in
      let key = try ObjectKey("a/b")
      #expect(await self.code { _ = try await self.get(store, "a/b", 0..<1) } == .objectNotFound)
      #expect(
        await self.code { _ = try await store.head(key, timeout: Self.timeout) } == .objectNotFound)
      #expect(
        await self.code {
          try await store.put(
            key, ObjectSource(slices: [ByteBuffer(bytes: [1]), ByteBuffer(bytes: [2])]), crc32c: 1,
            timeout: Self.timeout)
        } == .objectCorrupt)
      #expect(
        await self.code {
          let short = ObjectSource(byteCount: 2) { { () async throws(MemQError) in nil } }
          try await store.put(key, short, crc32c: 0, timeout: Self.timeout)
        } == .objectCorrupt)
      #expect(
        await self.code {
          let source = ObjectSource(byteCount: 1) {
            { () async throws(MemQError) in throw MemQError(.cancelled, "the caller went") }
          }
          try await store.put(key, source, crc32c: 0, timeout: Self.timeout)
        } == .cancelled)
      #expect(await self.code { _ = try await self.get(store, "a/b", 0..<1) } == .objectNotFound)
      try await self.put(store, "a/b", [1, 2, 3])
      #expect(await self.code { _ = try await self.get(store, "a/b", 1..<4) } == .rangeInvalid)
      #expect(await self.code { _ = try await self.get(store, "a/b", 3..<4) } == .rangeInvalid)
      #expect(
        await self.code { _ = try await store.head(key, timeout: .zero) } == .objectStoreUnavailable
      )
      try await store.delete(key, timeout: Self.timeout)
      try await store.delete(key, timeout: Self.timeout)
      #expect(await self.code { _ = try await self.get(store, "a/b", 0..<1) } == .objectNotFound)
    }
  }

  @Test func `keys are listed in byte order, page by page, and only under the prefix`()
    async throws
  {
    let moto = try MotoStore()
    let store = try await moto.open(prefix: "one")
    let other = try await moto.open(prefix: "one-more")
    try await self.put(other, "a/b", [9])
    let keys = ["a-b", "a/b", "a/c/d", "a/c-d", "a.x", "ab", "b/1", "b/10", "b/2", "z"]
    for key in keys { try await self.put(store, key, [0]) }
    let sorted = keys.sorted { $0.utf8.lexicographicallyPrecedes($1.utf8) }
    for prefix in ["", "a", "a/", "b/1", "q"] {
      let wanted = sorted.filter { $0.hasPrefix(prefix) }
      for limit in [1, 3, 100] {
        var found: [String] = []
        var after: ObjectKey?
        while true {
          let page = try await store.list(
            prefix: prefix, after: after, limit: limit, timeout: Self.timeout)
          found += page.objects.map(\.key.text)
          after = page.objects.last?.key ?? after
          guard page.hasMore else { break }
          #expect(page.objects.count == limit)
        }
        #expect(found == wanted, "\(prefix) by \(limit)")
      }
    }
    await store.close()
    await other.close()
  }

  @Test func `a body goes on where it was durable, and is there only when whole`() async throws {
    try await self.with { store, _ in
      let key = try ObjectKey("bodies/t/1")
      let bytes = self.bytes(Self.partBytes * 2 + 1_000)
      let first = try await store.openBody(key, from: 0, timeout: Self.timeout)
      try await first.write(
        [ByteBuffer(bytes: bytes[..<(Self.partBytes + 3_000_000)])], timeout: Self.timeout)
      try await first.sync(timeout: Self.timeout)
      // Less than a part's least size waits for more.
      #expect(await first.durableByteCount == Int64(Self.partBytes))
      #expect(await first.byteCount == Int64(Self.partBytes) + 3_000_000)
      await first.close()
      #expect(
        await self.code { _ = try await store.head(key, timeout: Self.timeout) } == .objectNotFound)
      let refusal = await #expect(throws: MemQError.self) {
        _ = try await store.openBody(
          key, from: Int64(Self.partBytes) + 5, timeout: Self.timeout)
      }
      #expect(refusal?.code == .uploadOffsetMismatch && refusal?.actual == Int64(Self.partBytes))
      let second = try await store.openBody(
        key, from: Int64(Self.partBytes), timeout: Self.timeout)
      try await second.write([ByteBuffer(bytes: bytes[Self.partBytes...])], timeout: Self.timeout)
      try await second.finish(byteCount: Int64(bytes.count), timeout: Self.timeout)
      try await second.finish(byteCount: Int64(bytes.count), timeout: Self.timeout)
      #expect(try await self.get(store, key.text, 0..<Int64(bytes.count)) == bytes)
      // The same bytes again are taken, others are not.
      let again = try await store.openBody(key, from: 0, timeout: Self.timeout)
      try await again.write([ByteBuffer(bytes: bytes[..<100])], timeout: Self.timeout)
      #expect(
        await self.code {
          try await again.write([ByteBuffer(bytes: [0, 0, 0, 0])], timeout: Self.timeout)
        } == .digestMismatch)
      await again.close()
    }
  }

  @Test func `a small body is one request, and an empty one too`() async throws {
    try await self.with { store, _ in
      for count in [0, 70_000] {
        let before = store.requests.writes
        let key = try ObjectKey("bodies/t/\(count)")
        let body = try await store.openBody(key, from: 0, timeout: Self.timeout)
        try await body.write([ByteBuffer(bytes: self.bytes(count))], timeout: Self.timeout)
        try await body.finish(byteCount: Int64(count), timeout: Self.timeout)
        #expect(try await self.get(store, key.text, 0..<Int64(count)) == self.bytes(count))
        // The list looks for an upload to go on with.
        #expect(store.requests.writes - before == 2)
      }
    }
  }

  @Test func `a deleted body is gone, finished or not`() async throws {
    try await self.with { store, _ in
      let key = try ObjectKey("bodies/t/1")
      let body = try await store.openBody(key, from: 0, timeout: Self.timeout)
      try await body.write([ByteBuffer(bytes: self.bytes(Self.partBytes))], timeout: Self.timeout)
      #expect(await body.durableByteCount == Int64(Self.partBytes))
      try await store.delete(key, timeout: Self.timeout)
      // A store says NoSuchUpload; moto, which has forgotten it, fails.
      let error = await #expect(throws: MemQError.self) {
        try await body.finish(byteCount: Int64(Self.partBytes), timeout: .seconds(2))
      }
      #expect(error?.code == .uploadAbandoned || error?.code == .objectStoreUnavailable)
      #expect(
        await self.code { _ = try await store.head(key, timeout: Self.timeout) } == .objectNotFound)
      #expect(
        await self.code {
          _ = try await store.openBody(key, from: Int64(Self.partBytes), timeout: Self.timeout)
        } == .uploadOffsetMismatch)
    }
  }

  @Test(arguments: [503, 0])
  func `a store that fails for a while is asked again, and nothing is doubled or lost`(
    status: Int
  ) async throws {
    try await self.with { store, moto in
      try moto.fail(3, status: status)
      try await self.put(store, "objects/1/a", self.bytes(3_000_000))
      try moto.fail(2, status: status)
      #expect(try await self.get(store, "objects/1/a", 0..<3_000_000) == self.bytes(3_000_000))
      let key = try ObjectKey("bodies/t/1")
      let bytes = self.bytes(Self.partBytes + 10)
      try moto.fail(1, status: status)
      let body = try await store.openBody(key, from: 0, timeout: Self.timeout)
      try moto.fail(2, status: status)
      try await body.write([ByteBuffer(bytes: bytes)], timeout: Self.timeout)
      try moto.fail(2, status: status)
      try await body.finish(byteCount: Int64(bytes.count), timeout: Self.timeout)
      #expect(try await self.get(store, key.text, 0..<Int64(bytes.count)) == bytes)
      let page = try await store.list(prefix: "", after: nil, limit: 10, timeout: Self.timeout)
      #expect(page.objects.map(\.byteCount) == [Int64(bytes.count), 3_000_000])
    }
  }

  @Test func `a deadline holds while the store fails`() async throws {
    try await self.with { store, moto in
      try moto.fail(1_000, status: 503)
      let begun = ContinuousClock.now
      let error = await #expect(throws: MemQError.self) {
        _ = try await store.head(try ObjectKey("a"), timeout: .seconds(1))
      }
      #expect(error?.code == .objectStoreUnavailable && error?.isRetriable == true)
      #expect(ContinuousClock.now - begun < .seconds(30))
    }
  }

  @Test func `a wrong secret, bucket or endpoint is told at the start`() async throws {
    let moto = try MotoStore()
    func error(_ configuration: S3Configuration) async -> MemQError? {
      do {
        _ = try await ObjectStores.make(
          ObjectStoreConfiguration(.s3(configuration)), logger: Logger(label: "test"))
        return nil
      } catch {
        return error
      }
    }
    let secret = await error(moto.configuration(secret: "wrong"))
    #expect(secret?.code == .configurationInvalid)
    #expect(
      secret?.message.contains("SignatureDoesNotMatch") == true, "\(String(describing: secret))")
    var missing = moto.configuration()
    missing.bucket = "no-such-bucket"
    let bucket = await error(missing)
    #expect(bucket?.code == .configurationInvalid && bucket?.message.contains("bucket") == true)
    var endpoint = moto.configuration()
    endpoint.endpoint = "ftp://x"
    #expect(await error(endpoint)?.code == .configurationInvalid)
  }
}

@Suite struct S3FormatTests {
  @Test(arguments: [
    (404, "NoSuchKey", ErrorCode.objectNotFound, false), (404, "", .objectNotFound, false),
    (404, "NoSuchUpload", .uploadAbandoned, false),
    (404, "NoSuchBucket", .objectStoreUnavailable, false),
    (416, "InvalidRange", .rangeInvalid, false),
    (400, "BadDigest", .objectCorrupt, false),
    (400, "RequestTimeout", .objectStoreUnavailable, true),
    (400, "EntityTooSmall", .objectStoreUnavailable, false),
    (403, "AccessDenied", .objectStoreUnavailable, false),
    (301, "PermanentRedirect", .objectStoreUnavailable, false),
    (429, "", .objectStoreUnavailable, true), (503, "SlowDown", .objectStoreUnavailable, true),
    (200, "InternalError", .objectStoreUnavailable, true),
  ])
  func `a store's refusal is told in our words, and whether to try again`(
    status: Int, code: String, expected: ErrorCode, isRetriable: Bool
  ) {
    let body = code.isEmpty ? "" : "<Error><Code>\(code)</Code><Message>m</Message></Error>"
    let error = S3Refusal.error(
      S3Connection.Response(status: status, headers: [:], body: ByteBuffer(string: body)), key: "k")
    #expect(error.code == expected)
    if expected == .objectStoreUnavailable { #expect(error.isRetriable == isRetriable) }
  }

  /// The example of "Authenticating Requests: Using the Authorization Header" in the S3 reference (GET Object).
  @Test func `a signature is the published example's`() {
    let signature = S3Signature(
      credentials: S3Credentials(
        accessKeyID: "AKIAIOSFODNN7EXAMPLE",
        secretAccessKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"), region: "us-east-1")
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    let headers = signature.sign(
      S3Request(method: "GET", path: "/test.txt", headers: [("range", "bytes=0-9")]),
      host: "examplebucket.s3.amazonaws.com", payloadHash: empty,
      at: Timestamp(milliseconds: 1_369_353_600_000))
    #expect(headers.first { $0.name == "x-amz-date" }?.value == "20130524T000000Z")
    #expect(
      headers.first { $0.name == "authorization" }?.value.hasSuffix(
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41") == true)
  }

  @Test func `dates are civil dates`() {
    for (milliseconds, stamp) in [
      (0, "19700101T000000Z"), (951_782_400_000, "20000229T000000Z"),
      (1_709_251_199_000, "20240229T235959Z"), (4_102_444_800_000, "21000101T000000Z"),
    ] as [(Int64, String)] {
      #expect(S3Signature.stamp(Timestamp(milliseconds: milliseconds)).stamp == stamp)
    }
  }

  /// RFC 4231, cases 2 and 6.
  @Test func `a message's code is the RFC's`() {
    #expect(
      hexText(S3Signature.hmac(Array("Jefe".utf8), "what do ya want for nothing?"))
        == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")
    #expect(
      hexText(
        S3Signature.hmac(
          [UInt8](repeating: 0xAA, count: 131),
          "Test Using Larger Than Block-Size Key - Hash Key First"))
        == "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54")
  }

  @Test func `a checksum is in base 64, big-endian`() {
    #expect(S3Connection.base64(0) == "AAAAAA==")
    #expect(S3Connection.base64(0xE306_9283) == "4waSgw==")
    #expect(S3Connection.base64(0xFFFF_FFFF) == "/////w==")
  }

  @Test func `an answer is read as it is meant`() throws {
    let text = """
      <?xml version="1.0" encoding="UTF-8"?>
      <!-- hello --><List xmlns="x"><A>1 &lt; 2 &amp;&#65;&#x42;</A><B/><A k="v">2</A><C><D>x</D></C></List>
      """
    let xml = try S3XML(Array(text.utf8))
    #expect(xml.name == "List" && xml["A"] == "1 < 2 &AB" && xml["B"] == "")
    #expect(xml.all("A").map(\.text) == ["1 < 2 &AB", "2"] && xml.all("C")[0]["D"] == "x")
  }

  @Test func `foreign bytes are refused and never trap`() {
    let good = Array("<L><K>a &amp; b</K><S>1</S><K>&#9731;</K></L>".utf8)
    var generator = SystemRandomNumberGenerator()
    for _ in 0..<20_000 {
      var bytes = good
      for _ in 0..<Int.random(in: 1...4, using: &generator) {
        let at = Int.random(in: 0..<bytes.count, using: &generator)
        switch Int.random(in: 0...2, using: &generator) {
        case 0: bytes[at] = UInt8.random(in: 0...255, using: &generator)
        case 1: bytes.remove(at: at)
        default: bytes.insert(bytes[Int.random(in: 0..<bytes.count, using: &generator)], at: at)
        }
        if bytes.isEmpty { bytes = good }
      }
      _ = try? S3XML(bytes)
    }
    for bad in ["", "<", "<a", "<a>", "<a></b>", "<a>&x;</a>", "<a>&#xD800;</a>", "<a/>x"] {
      #expect(throws: S3XML.Malformed.self, "\(bad)") { try S3XML(Array(bad.utf8)) }
    }
    let deep = String(repeating: "<a>", count: 100)
    #expect(throws: S3XML.Malformed.self) { try S3XML(Array(deep.utf8)) }
  }

  @Test func `a place in a bucket is told from a folder`() throws {
    #expect(try S3Configuration.place("/var/lib/objects") == nil)
    let place = try S3Configuration.place("s3://my-bucket/a/b/")
    #expect(place?.bucket == "my-bucket" && place?.prefix == "a/b")
    #expect(try S3Configuration.place("s3://my-bucket")?.prefix == "")
    for bad in ["s3://", "s3://My_Bucket", "s3://ab", "s3://-ab", "s3://abc//x", "s3://abc/../x"] {
      #expect(throws: MemQError.self, "\(bad)") { _ = try S3Configuration.place(bad) }
    }
  }

  @Test func `an endpoint and a style make the address`() throws {
    func address(_ endpoint: String, _ style: S3Configuration.Style?) throws -> S3Address {
      try S3Address(
        S3Configuration(
          bucket: "bkt", prefix: "p", endpoint: endpoint, region: "eu-west-1", style: style,
          credentials: S3Credentials(accessKeyID: "a", secretAccessKey: "b")))
    }
    let amazon = try address("", nil)
    #expect(
      amazon.scheme == "https" && amazon.host == "bkt.s3.eu-west-1.amazonaws.com"
        && amazon.base == "/p/")
    let own = try address("http://127.0.0.1:9000/", nil)
    #expect(own.scheme == "http" && own.host == "127.0.0.1:9000" && own.base == "/bkt/p/")
    #expect(try address("http://h:80", nil).host == "h")
    for bad in ["127.0.0.1:9000", "http://", "ftp://x", "http://a b", "http://a/b"] {
      #expect(throws: MemQError.self, "\(bad)") { _ = try address(bad, nil) }
    }
  }

  @Test func `credentials come from a profile or the environment`() {
    let text = """
      # mine
      [other]
      aws_access_key_id = no
      [default]
      aws_access_key_id = AK
      aws_secret_access_key=S/K+1=
      """
    let found = S3Credentials(profile: "default", of: text)
    #expect(found?.accessKeyID == "AK" && found?.secretAccessKey == "S/K+1=")
    #expect(S3Credentials(profile: "other", of: text) == nil)
    #expect(S3Credentials(environment: ["AWS_ACCESS_KEY_ID": "a"]) == nil)
    #expect("\(found!)".contains("S/K") == false)
  }
}
