// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQModel
import MemQSystem
import NIOCore
import NIOHTTP1

/// A bucket of Amazon S3 or of a store that speaks its language.
///
/// Objects are one streamed PUT each, with a CRC-32C that the store checks. Bodies are multipart uploads: what the store lists
/// of their parts is what a resume goes on with. Nothing rests on conditional requests, which some stores ignore.
final class S3ObjectStore: ObjectStore {
  /// The largest object of one PUT.
  static let putByteCountMax: Int64 = 5 << 30

  let name: String
  let connection: S3Connection
  let clock: any MemQClock
  private let configuration: S3Configuration

  private init(_ configuration: S3Configuration, clock: any MemQClock) throws(MemQError) {
    self.configuration = configuration
    self.clock = clock
    self.connection = try S3Connection(configuration, clock: clock)
    self.name = "s3://\(configuration.bucket)/\(configuration.prefix)"
  }

  /// Asks for a page of the bucket first: wrong credentials, region or bucket are told at the start, not with the first upload.
  ///
  /// - Throws: `.configurationInvalid` when the store refuses us, `.objectStoreUnavailable` when it can't be reached.
  static func open(
    _ configuration: S3Configuration, clock: any MemQClock, logger: Logger
  ) async throws(MemQError) -> S3ObjectStore {
    let store = try S3ObjectStore(configuration, clock: clock)
    do throws(MemQError) {
      _ = try await store.list(prefix: "", after: nil, limit: 1, timeout: .seconds(30))
      return store
    } catch {
      await store.close()
      guard !error.isRetriable else { throw error }
      throw MemQError(
        .configurationInvalid, "\(store.connection.address.host): \(error.message)",
        subject: store.name)
    }
  }

  var requests: ObjectStoreRequests { self.connection.meter.requests }

  func close() async { await self.connection.close() }

  func deadline(_ timeout: Duration) -> MonotonicInstant { self.clock.monotonic + timeout }

  func request(_ method: String, _ key: ObjectKey) -> S3Request {
    S3Request(method: method, path: self.connection.address.base + key.text)
  }

  /// Headers of what makes an object.
  var creationHeaders: [(name: String, value: String)] {
    switch self.configuration.encryption {
    case .none: return []
    case .storeKeys: return [("x-amz-server-side-encryption", "AES256")]
    case .kms(let key):
      let kind = [(name: "x-amz-server-side-encryption", value: "aws:kms")]
      return key.isEmpty
        ? kind : kind + [(name: "x-amz-server-side-encryption-aws-kms-key-id", value: key)]
    }
  }

  // MARK: Whole objects

  func put(
    _ key: ObjectKey, _ source: ObjectSource, crc32c: UInt32, timeout: Duration
  ) async throws(MemQError) {
    guard source.byteCount <= Self.putByteCountMax else {
      throw MemQError(
        .invalidArgument, "an object of one PUT is not so large", subject: key.text,
        limit: Self.putByteCountMax, actual: source.byteCount)
    }
    var request = self.request("PUT", key)
    request.headers = self.creationHeaders
    _ = try await self.connection.send(
      .put, request, .source(source, crc: crc32c), key: key.text, billedBytes: source.byteCount,
      deadline: self.deadline(timeout))
  }

  func get(
    _ key: ObjectKey, range: Range<Int64>, timeout: Duration
  ) async throws(MemQError) -> ByteBuffer {
    try ObjectStoreLimits.check(range, of: key)
    guard !range.isEmpty else {
      // HTTP has no empty range.
      let byteCount = try await self.head(key, timeout: timeout).byteCount
      guard range.upperBound <= byteCount else {
        throw self.beyond(key, range, byteCount)
      }
      return ByteBuffer()
    }
    var request = self.request("GET", key)
    request.headers = [("range", "bytes=\(range.lowerBound)-\(range.upperBound - 1)")]
    // Some stores answer a range with the whole object: not more than twice the range is taken in.
    let response = try await self.connection.send(
      .get, request, key: key.text, bytesMax: range.count + (1 << 16),
      billedBytes: Int64(range.count), deadline: self.deadline(timeout))
    guard response.body.readableBytes == range.count else {
      let total = response.headers.first(name: "content-range")?.split(separator: "/").last
      throw self.beyond(key, range, total.flatMap { Int64($0) })
    }
    return response.body
  }

  private func beyond(_ key: ObjectKey, _ range: Range<Int64>, _ byteCount: Int64?) -> MemQError {
    MemQError(
      .rangeInvalid, "the range ends beyond the object", subject: key.text, limit: byteCount,
      actual: range.upperBound)
  }

  func head(_ key: ObjectKey, timeout: Duration) async throws(MemQError) -> ObjectHead {
    let response = try await self.connection.send(
      .head, self.request("HEAD", key), key: key.text, deadline: self.deadline(timeout))
    guard let text = response.headers.first(name: "content-length"), let byteCount = Int64(text)
    else {
      throw MemQError(
        .objectStoreUnavailable, "the store does not say how large the object is",
        subject: key.text, isRetriable: false)
    }
    return ObjectHead(key: key, byteCount: byteCount)
  }

  func delete(_ key: ObjectKey, timeout: Duration) async throws(MemQError) {
    let deadline = self.deadline(timeout)
    do throws(MemQError) {
      _ = try await self.connection.send(
        .delete, self.request("DELETE", key), key: key.text, deadline: deadline)
    } catch {
      guard error.code == .objectNotFound else { throw error }
    }
    // Only bodies are made in parts.
    guard key.text.hasPrefix("bodies/") else { return }
    for upload in try await self.uploads(of: key, deadline) {
      try await self.abort(key, upload, deadline)
    }
  }

  func list(
    prefix: String, after: ObjectKey?, limit: Int, timeout: Duration
  ) async throws(MemQError) -> ObjectListing {
    try ObjectStoreLimits.checkList(prefix: prefix, limit: limit)
    let deadline = self.deadline(timeout)
    var objects: [ObjectHead] = []
    var token: String?
    while true {
      // One more than wanted tells whether there is more even where the store's own flag counts foreign keys.
      let page = try await self.page(
        prefix, after, token, min(limit - objects.count, 1_000), deadline)
      objects += page.objects
      token = page.token
      guard objects.count < limit, token != nil else { break }
    }
    return ObjectListing(objects: objects, hasMore: token != nil)
  }

  private func page(
    _ prefix: String, _ after: ObjectKey?, _ token: String?, _ count: Int,
    _ deadline: MonotonicInstant
  ) async throws(MemQError) -> (objects: [ObjectHead], token: String?) {
    let base = self.configuration.prefix
    var request = self.bucketRequest("GET")
    request.query = [
      ("list-type", "2"), ("max-keys", String(count)), ("prefix", base + prefix),
    ]
    if let after { request.query.append(("start-after", base + after.text)) }
    if let token { request.query.append(("continuation-token", token)) }
    let xml = try await self.xml(.list, request, self.name, deadline)
    var objects: [ObjectHead] = []
    for entry in xml.all("Contents") {
      guard let text = entry["Key"], let size = entry["Size"].flatMap({ Int64($0) }),
        text.hasPrefix(base)
      else { throw self.malformed("a list") }
      // Keys that are not ours may stand in a bucket that is shared.
      guard let key = try? ObjectKey(String(text.dropFirst(base.count))) else { continue }
      objects.append(ObjectHead(key: key, byteCount: size))
    }
    guard xml["IsTruncated"] == "true" else { return (objects, nil) }
    guard let next = xml["NextContinuationToken"], !next.isEmpty else {
      throw self.malformed("a list that goes on")
    }
    return (objects, next)
  }

  func bucketRequest(_ method: String) -> S3Request {
    // Without the prefix: it is the bucket that is asked.
    let base = self.connection.address.base.dropLast(self.configuration.prefix.count)
    let path = base.count > 1 && base.hasSuffix("/") ? base.dropLast() : base
    return S3Request(method: method, path: String(path))
  }

  func xml(
    _ kind: RequestMeter.Kind, _ request: S3Request, _ key: String, _ deadline: MonotonicInstant
  ) async throws(MemQError) -> S3XML {
    let response = try await self.connection.send(
      kind, request, key: key, bytesMax: S3XML.bytesMax, deadline: deadline)
    do {
      return try S3XML(Array(buffer: response.body))
    } catch {
      throw self.malformed("what it sent for \(key)")
    }
  }

  func malformed(_ what: String) -> MemQError {
    MemQError(
      .objectStoreUnavailable, "the store's answer can't be read: \(what)", subject: self.name)
  }

  // MARK: Multipart uploads

  /// Ids of the unfinished uploads of exactly this key, the oldest first.
  func uploads(of key: ObjectKey, _ deadline: MonotonicInstant) async throws(MemQError) -> [String]
  {
    let full = self.configuration.prefix + key.text
    var request = self.bucketRequest("GET")
    request.query = [("uploads", ""), ("prefix", full)]
    let xml = try await self.xml(.list, request, key.text, deadline)
    return xml.all("Upload").filter { $0["Key"] == full }
      .map { ($0["Initiated"] ?? "", $0["UploadId"] ?? "") }
      .filter { !$0.1.isEmpty }
      .sorted { $0 < $1 }
      .map(\.1)
  }

  func abort(
    _ key: ObjectKey, _ upload: String, _ deadline: MonotonicInstant
  ) async throws(MemQError) {
    var request = self.request("DELETE", key)
    request.query = [("uploadId", upload)]
    do throws(MemQError) {
      _ = try await self.connection.send(.delete, request, key: key.text, deadline: deadline)
    } catch {
      guard error.code == .uploadAbandoned || error.code == .objectNotFound else { throw error }
    }
  }

  func openBody(
    _ key: ObjectKey, from offset: Int64, timeout: Duration
  ) async throws(MemQError) -> any ObjectBodyWriter {
    try await S3BodyWriter.open(key, from: offset, in: self, self.deadline(timeout))
  }
}
