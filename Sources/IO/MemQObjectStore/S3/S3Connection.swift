// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import AsyncHTTPClient
import Glibc
import MemQModel
import MemQRecords
import MemQSystem
import NIOCore
import NIOHTTP1
import NIOPosix
import Synchronization

/// Signs requests, sends them, tries again what may pass, and says in our words what does not.
final class S3Connection: Sendable {
  /// What goes with a request.
  enum Body: Sendable {
    case none
    /// With the CRC-32C of all of it, which the store then checks; nil: what is no object's bytes.
    case source(ObjectSource, crc: UInt32?)
  }

  struct Response: Sendable {
    var status: Int
    var headers: HTTPHeaders
    var body: ByteBuffer
  }

  let address: S3Address
  let meter = RequestMeter(store: "s3")
  private let configuration: S3Configuration
  private let client: HTTPClient
  private let clock: any MemQClock

  init(_ configuration: S3Configuration, clock: any MemQClock) throws(MemQError) {
    self.address = try S3Address(configuration)
    self.configuration = configuration
    self.clock = clock
    var settings = HTTPClient.Configuration(
      redirectConfiguration: .disallow,
      timeout: HTTPClient.Configuration.Timeout(connect: .seconds(5), read: .seconds(60)),
      decompression: .disabled)
    settings.httpVersion = .http1Only
    // One connection carries one request: as many as uploads, bodies and cold reads run at a time.
    settings.connectionPool.concurrentHTTP1ConnectionsPerHostSoftLimit = 128
    self.client = HTTPClient(eventLoopGroupProvider: .singleton, configuration: settings)
  }

  func close() async {
    do { try await self.client.shutdown() } catch {
      // It is closed already.
    }
  }

  /// Sends until the store has answered for good, or the deadline passes.
  ///
  /// What the store says is temporary (500, 502-504, 429, SlowDown, a broken connection) is tried again after a jittered pause.
  ///
  /// - Throws: `.objectNotFound`, `.rangeInvalid`, `.objectCorrupt`, `.uploadAbandoned` (the multipart upload is gone), what the
  ///   source throws, `.objectStoreUnavailable`: retriable after the deadline, not retriable when the store refuses us.
  func send(
    _ kind: RequestMeter.Kind, _ request: S3Request, _ body: Body = .none, key: String,
    bytesMax: Int = 1 << 20, billedBytes: Int64 = 0, deadline: MonotonicInstant
  ) async throws(MemQError) -> Response {
    var backoff = JitteredBackoff(max: .seconds(5))
    while true {
      let refusal: MemQError
      do throws(MemQError) {
        self.meter.count(kind, bytes: billedBytes)
        let response = try await self.once(request, body, key, bytesMax, deadline)
        if (200..<300).contains(response.status), !Self.holdsError(response) { return response }
        refusal = S3Refusal.error(response, key: key)
      } catch {
        refusal = error
      }
      guard refusal.code == .objectStoreUnavailable else { throw refusal }
      self.meter.failed(kind)
      let pause = backoff.next()
      guard refusal.isRetriable, self.clock.monotonic + pause < deadline,
        (try? await Task.sleep(for: pause)) != nil
      else { throw refusal }
    }
  }

  /// A completed multipart upload and a copy may fail after their 200.
  private static func holdsError(_ response: Response) -> Bool {
    response.body.readableBytes < 1 << 16 && response.body.readableBytesView.starts(with: "<".utf8)
      && (try? S3XML(Array(buffer: response.body)))?.name == "Error"
  }

  private func once(
    _ request: S3Request, _ body: Body, _ key: String, _ bytesMax: Int, _ deadline: MonotonicInstant
  ) async throws(MemQError) -> Response {
    let left = deadline - self.clock.monotonic
    guard left > .zero else {
      throw MemQError(.objectStoreUnavailable, "the store did not answer in time", subject: key)
    }
    var request = request
    let failure = Mutex<MemQError?>(nil)
    var message = HTTPClientRequest(url: "")
    switch body {
    case .none: break
    case .source(let source, let crc):
      if let crc { request.headers.append(("x-amz-checksum-crc32c", Self.base64(crc))) }
      message.body = .stream(
        CheckedBytes(
          source: source, crc: crc, failed: { error in failure.withLock { $0 = error } }),
        length: .known(source.byteCount))
    }
    let signature = S3Signature(
      credentials: self.configuration.credentials, region: self.configuration.region)
    let headers = signature.sign(
      request, host: self.address.host, payloadHash: S3Signature.unsignedPayload,
      at: self.clock.wall)
    let query = request.queryText
    message.url =
      "\(self.address.scheme)://\(self.address.host)\(request.path)\(query.isEmpty ? "" : "?\(query)")"
    message.method = HTTPMethod(rawValue: request.method)
    for (name, value) in headers { message.headers.add(name: name, value: value) }
    do {
      let response = try await self.client.execute(
        message, deadline: .now() + .nanoseconds(left.nanoseconds))
      return Response(
        status: Int(response.status.code), headers: response.headers,
        body: try await response.body.collect(upTo: bytesMax))
    } catch {
      if let refusal = failure.withLock({ $0 }) { throw refusal }
      if error is CancellationError { throw MemQError(.cancelled, "the caller went", subject: key) }
      throw MemQError(
        .objectStoreUnavailable, "\(self.address.host): \(Self.words(error))", subject: key)
    }
  }

  private static func words(_ error: any Error) -> String {
    if let error = error as? NIOConnectionError {
      guard let last = error.connectionErrors.last else { return "the host name is not known" }
      return Self.words(last.error)
    }
    if let error = error as? IOError {
      return String(cString: strerror(error.errnoCode)).lowercased()
    }
    switch error as? HTTPClientError {
    case .some(.deadlineExceeded), .some(.readTimeout): return "the store did not answer in time"
    case .some(.connectTimeout): return "no connection in time"
    case .some(.remoteConnectionClosed): return "the store closed the connection"
    default: return "\(error)"
    }
  }

  /// As checksum headers hold it: big-endian, in base 64.
  static func base64(_ crc: UInt32) -> String {
    let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
    // 32 bits and 4 zero bits are six characters of six bits.
    let bits = UInt64(crc) << 4
    let text = (0..<6).map { alphabet[Int(bits >> UInt64(30 - 6 * $0)) & 63] }
    return String(decoding: text, as: UTF8.self) + "=="
  }
}

/// A source's bytes, with the last piece held back until all were seen and the checksum is right: a wrong object breaks off.
private struct CheckedBytes: AsyncSequence, Sendable {
  typealias Element = ByteBuffer
  let source: ObjectSource
  let crc: UInt32?
  let failed: @Sendable (MemQError) -> Void

  func makeAsyncIterator() -> AsyncIterator {
    AsyncIterator(next: self.source.open(), owner: self)
  }

  struct AsyncIterator: AsyncIteratorProtocol {
    let next: @Sendable () async throws(MemQError) -> ByteBuffer?
    let owner: CheckedBytes
    var held: ByteBuffer?
    var seen: Int64 = 0
    var crc: UInt32 = 0

    init(
      next: @escaping @Sendable () async throws(MemQError) -> ByteBuffer?, owner: CheckedBytes
    ) {
      self.next = next
      self.owner = owner
    }

    mutating func next() async throws -> ByteBuffer? {
      do throws(MemQError) {
        if self.held == nil, self.seen == 0 { self.held = try await self.piece() }
        guard let ready = self.held else {
          try self.check()
          return nil
        }
        self.held = try await self.piece()
        if self.held == nil { try self.check() }
        return ready
      } catch {
        self.owner.failed(error)
        throw error
      }
    }

    private mutating func piece() async throws(MemQError) -> ByteBuffer? {
      while let piece = try await self.next() {
        guard piece.readableBytes > 0 else { continue }
        self.seen += Int64(piece.readableBytes)
        self.crc = piece.withUnsafeReadableBytes { CRC32C.checksum($0, seed: self.crc) }
        guard self.seen <= self.owner.source.byteCount else { break }
        return piece
      }
      return nil
    }

    private func check() throws(MemQError) {
      guard self.seen == self.owner.source.byteCount else {
        throw MemQError(
          .objectCorrupt, "the object's bytes are not as many as announced",
          limit: self.owner.source.byteCount, actual: self.seen)
      }
      guard let announced = self.owner.crc, announced != self.crc else { return }
      throw MemQError(
        .objectCorrupt, "the object's CRC-32C is not what was announced",
        limit: Int64(announced), actual: Int64(self.crc))
    }
  }
}

/// What a store's refusal means to us.
enum S3Refusal {
  /// Codes that pass by themselves, beside the status 429 and those from 500 up.
  private static let temporary: Set<String> = [
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted",
    "ThrottlingException", "Throttling", "RequestLimitExceeded",
  ]

  static func error(_ response: S3Connection.Response, key: String) -> MemQError {
    let xml = try? S3XML(Array(buffer: response.body))
    let code = xml?["Code"] ?? ""
    let said = [code, xml?["Message"] ?? ""].filter { !$0.isEmpty }.joined(separator: ": ")
    let text = String((said.isEmpty ? "status \(response.status)" : said).prefix(300))
    switch (response.status, code) {
    case (_, "NoSuchBucket"):
      return Self.refused("the bucket does not exist", key)
    case (_, "NoSuchUpload"):
      return MemQError(.uploadAbandoned, "the unfinished body is gone", subject: key)
    case (404, _):
      return MemQError(.objectNotFound, "no such object", subject: key)
    case (416, _):
      return MemQError(.rangeInvalid, "the range ends beyond the object", subject: key)
    case (_, "BadDigest"), (_, "InvalidDigest"), (_, "XAmzContentChecksumMismatch"),
      (_, "XAmzContentSHA256Mismatch"):
      return MemQError(
        .objectCorrupt, "the store got other bytes than were sent: \(text)", subject: key)
    case (_, let code) where Self.temporary.contains(code):
      return MemQError(.objectStoreUnavailable, text, subject: key)
    case (429, _), (500..., _):
      return MemQError(.objectStoreUnavailable, text, subject: key)
    case (403, "RequestTimeTooSkewed"):
      return Self.refused("this machine's clock is wrong: \(text)", key)
    case (401, _), (403, _):
      return Self.refused("the store refuses these credentials: \(text)", key)
    case (301, _), (307, _):
      return Self.refused("the bucket is in another region or at another endpoint: \(text)", key)
    default:
      return Self.refused(text, key)
    }
  }

  private static func refused(_ text: String, _ key: String) -> MemQError {
    MemQError(.objectStoreUnavailable, text, subject: key, isRetriable: false)
  }
}
