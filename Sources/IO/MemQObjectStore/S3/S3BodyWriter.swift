// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQRecords
import MemQSystem
import NIOCore
import NIOHTTP1

/// One body on its way into a bucket, as a multipart upload.
///
/// A part is held in memory until it is full, so that it can be sent again: 16 MiB, from the 1,001st on 64 MiB. So a body has
/// at most `byteCountMax`. A body that ends before its first part is full costs one PUT.
/// Two writers of one key can't mix their bytes: completion names each part by the tag that its own writer was given.
actor S3BodyWriter: ObjectBodyWriter {
  struct Part: Hashable, Sendable {
    var number: Int
    var byteCount: Int64
    var tag: String
    /// As the store keeps it; nil where it keeps none.
    var checksum: String?
  }

  private enum Target {
    /// No upload was begun yet.
    case fresh
    case upload(id: String)
    case whole(byteCount: Int64)
    case closed
  }

  /// S3 takes 10,000 parts, none but the last below 5 MiB.
  static let partsMax = 10_000
  static let partByteCountMin: Int64 = 5 << 20
  static let smallParts = 1_000
  static let byteCountMax: Int64 = 1_000 * (16 << 20) + 9_000 * (64 << 20)

  nonisolated let key: ObjectKey
  private let store: S3ObjectStore
  private var target: Target
  private var parts: [Part]
  private var gathered: [ByteBuffer] = []
  private var gatheredBytes: Int64 = 0
  private(set) var byteCount: Int64
  private(set) var durableByteCount: Int64

  private init(
    _ key: ObjectKey, _ store: S3ObjectStore, _ target: Target, _ parts: [Part], at offset: Int64
  ) {
    self.key = key
    self.store = store
    self.target = target
    self.parts = parts
    self.byteCount = offset
    self.durableByteCount = offset
    if case .whole(let byteCount) = target { self.durableByteCount = byteCount }
  }

  static func open(
    _ key: ObjectKey, from offset: Int64, in store: S3ObjectStore, _ deadline: MonotonicInstant
  ) async throws(MemQError) -> S3BodyWriter {
    guard offset >= 0 else {
      throw MemQError(.invalidArgument, "an offset is not negative", limit: 0, actual: offset)
    }
    if let whole = try await Self.whole(key, store, deadline) {
      guard offset <= whole else { throw Self.fewer(key, offset, whole) }
      return S3BodyWriter(key, store, .whole(byteCount: whole), [], at: offset)
    }
    let uploads = try await store.uploads(of: key, deadline)
    guard offset > 0 else {
      for upload in uploads { try await store.abort(key, upload, deadline) }
      return S3BodyWriter(key, store, .fresh, [], at: 0)
    }
    var most: Int64 = 0
    for upload in uploads {
      let parts = try await Self.parts(key, upload, store, deadline)
      var end: Int64 = 0
      var kept: [Part] = []
      for part in parts where end + part.byteCount <= offset {
        // Only what has no gap before it counts.
        guard part.number == kept.count + 1 else { break }
        end += part.byteCount
        kept.append(part)
      }
      if end == offset {
        return S3BodyWriter(key, store, .upload(id: upload), kept, at: offset)
      }
      most = max(most, end)
    }
    throw Self.fewer(key, offset, most)
  }

  private static func fewer(_ key: ObjectKey, _ offset: Int64, _ there: Int64) -> MemQError {
    MemQError(
      .uploadOffsetMismatch, "the store has fewer bytes of this body", subject: key.text,
      limit: offset, actual: there)
  }

  private static func whole(
    _ key: ObjectKey, _ store: S3ObjectStore, _ deadline: MonotonicInstant
  ) async throws(MemQError) -> Int64? {
    do throws(MemQError) {
      return try await store.head(key, timeout: deadline - store.clock.monotonic).byteCount
    } catch {
      guard error.code == .objectNotFound else { throw error }
      return nil
    }
  }

  private static func parts(
    _ key: ObjectKey, _ upload: String, _ store: S3ObjectStore, _ deadline: MonotonicInstant
  ) async throws(MemQError) -> [Part] {
    var parts: [Part] = []
    var marker: String?
    while true {
      var request = store.request("GET", key)
      request.query = [("uploadId", upload), ("max-parts", "1000")]
      if let marker { request.query.append(("part-number-marker", marker)) }
      let xml: S3XML
      do throws(MemQError) {
        xml = try await store.xml(.list, request, key.text, deadline)
      } catch {
        // Ended between the list of uploads and this one.
        guard error.code == .uploadAbandoned || error.code == .objectNotFound else { throw error }
        return []
      }
      for entry in xml.all("Part") {
        guard let number = entry["PartNumber"].flatMap({ Int($0) }), let tag = entry["ETag"],
          let size = entry["Size"].flatMap({ Int64($0) })
        else { throw store.malformed("a list of parts") }
        parts.append(
          Part(number: number, byteCount: size, tag: tag, checksum: entry["ChecksumCRC32C"]))
      }
      guard xml["IsTruncated"] == "true", let next = xml["NextPartNumberMarker"], next != marker,
        parts.count < Self.partsMax
      else { break }
      marker = next
    }
    return parts.sorted { $0.number < $1.number }
  }

  /// Bytes of the part that is being gathered.
  private var partByteCount: Int64 { self.parts.count < Self.smallParts ? 16 << 20 : 64 << 20 }

  func write(_ bytes: [ByteBuffer], timeout: Duration) async throws(MemQError) {
    let count = bytes.reduce(0) { $0 + Int64($1.readableBytes) }
    let deadline = self.store.deadline(timeout)
    switch self.target {
    case .whole(let there):
      try await self.compare(bytes, there, deadline)
      self.byteCount += count
    case .fresh, .upload:
      guard self.byteCount + count <= Self.byteCountMax else {
        throw MemQError(
          .fileTooLarge, "a body in this store is not so large", subject: self.key.text,
          limit: Self.byteCountMax, actual: self.byteCount + count)
      }
      for piece in bytes {
        var rest = piece
        while rest.readableBytes > 0 {
          let room = self.partByteCount - self.gatheredBytes
          let taken = min(Int64(rest.readableBytes), room)
          self.gathered.append(rest.readSlice(length: Int(taken))!)
          self.gatheredBytes += taken
          self.byteCount += taken
          if self.gatheredBytes == self.partByteCount { try await self.sendPart(deadline) }
        }
      }
    case .closed: throw self.isClosed
    }
  }

  /// Sends what is gathered as the next part.
  private func sendPart(_ deadline: MonotonicInstant) async throws(MemQError) {
    let upload = try await self.begun(deadline)
    let crc = Self.crc(self.gathered)
    var request = self.store.request("PUT", self.key)
    let number = self.parts.count + 1
    request.query = [("partNumber", String(number)), ("uploadId", upload)]
    let response = try await self.store.connection.send(
      .part, request, .source(ObjectSource(slices: self.gathered), crc: crc), key: self.key.text,
      billedBytes: self.gatheredBytes, deadline: deadline)
    guard let tag = response.headers.first(name: "etag") else {
      throw self.store.malformed("a part without a tag")
    }
    self.parts.append(
      Part(
        number: number, byteCount: self.gatheredBytes, tag: tag,
        checksum: S3Connection.base64(crc)))
    self.durableByteCount += self.gatheredBytes
    self.gathered = []
    self.gatheredBytes = 0
  }

  private static func crc(_ bytes: [ByteBuffer]) -> UInt32 {
    bytes.reduce(0) { crc, piece in
      piece.withUnsafeReadableBytes { CRC32C.checksum($0, seed: crc) }
    }
  }

  /// The upload's id; begins it with the first part.
  private func begun(_ deadline: MonotonicInstant) async throws(MemQError) -> String {
    if case .upload(let id) = self.target { return id }
    var request = self.store.request("POST", self.key)
    request.query = [("uploads", "")]
    request.headers = self.store.creationHeaders + [("x-amz-checksum-algorithm", "CRC32C")]
    let xml = try await self.store.xml(.createBody, request, self.key.text, deadline)
    guard let id = xml["UploadId"], !id.isEmpty else {
      throw self.store.malformed("an upload without an id")
    }
    self.target = .upload(id: id)
    return id
  }

  /// Compares bytes of a body that is whole already: a whole object never changes.
  private func compare(
    _ bytes: [ByteBuffer], _ there: Int64, _ deadline: MonotonicInstant
  ) async throws(MemQError) {
    var position = self.byteCount
    for piece in bytes {
      let end = position + Int64(piece.readableBytes)
      var isSame = end <= there
      if isSame {
        isSame =
          try await self.store.get(
            self.key, range: position..<end, timeout: deadline - self.store.clock.monotonic)
          == piece
      }
      guard isSame else {
        throw MemQError(
          .digestMismatch, "the body is whole already, and these bytes differ from it",
          subject: self.key.text, limit: there, actual: end)
      }
      position = end
    }
  }

  /// Makes durable what may be a part of its own. Less than 5 MiB waits for more: `durableByteCount` tells.
  func sync(timeout: Duration) async throws(MemQError) {
    switch self.target {
    case .fresh, .upload:
      guard self.gatheredBytes >= Self.partByteCountMin, self.parts.count + 1 < Self.partsMax else {
        return
      }
      try await self.sendPart(self.store.deadline(timeout))
    case .whole: return
    case .closed: throw self.isClosed
    }
  }

  func finish(byteCount: Int64, timeout: Duration) async throws(MemQError) {
    let deadline = self.store.deadline(timeout)
    switch self.target {
    case .fresh:
      try ObjectStoreLimits.check(byteCount, is: self.byteCount, of: self.key)
      try await self.store.put(
        self.key, ObjectSource(slices: self.gathered), crc32c: Self.crc(self.gathered),
        timeout: timeout)
    case .upload(let id):
      try ObjectStoreLimits.check(byteCount, is: self.byteCount, of: self.key)
      if self.gatheredBytes > 0 { try await self.sendPart(deadline) }
      try await self.complete(id, deadline)
    case .whole(let there): return try ObjectStoreLimits.check(byteCount, is: there, of: self.key)
    case .closed: throw self.isClosed
    }
    self.gathered = []
    self.gatheredBytes = 0
    self.durableByteCount = byteCount
    self.target = .whole(byteCount: byteCount)
  }

  private func complete(_ upload: String, _ deadline: MonotonicInstant) async throws(MemQError) {
    var xml = "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
    for part in self.parts {
      xml += "<Part><PartNumber>\(part.number)</PartNumber><ETag>\(Self.escaped(part.tag))</ETag>"
      if let checksum = part.checksum { xml += "<ChecksumCRC32C>\(checksum)</ChecksumCRC32C>" }
      xml += "</Part>"
    }
    xml += "</CompleteMultipartUpload>"
    var request = self.store.request("POST", self.key)
    request.query = [("uploadId", upload)]
    request.headers = [("content-type", "application/xml")]
    do throws(MemQError) {
      _ = try await self.store.connection.send(
        .completeBody, request, .source(ObjectSource(slices: [ByteBuffer(string: xml)]), crc: nil),
        key: self.key.text,
        deadline: deadline)
    } catch {
      // The answer to an earlier attempt may have been lost: then the object is there, whole.
      guard error.code == .uploadAbandoned || error.code == .objectNotFound else { throw error }
      guard try await Self.whole(self.key, self.store, deadline) == self.byteCount else {
        throw MemQError(
          .uploadAbandoned, "the body was deleted meanwhile", subject: self.key.text)
      }
    }
  }

  private static func escaped(_ text: String) -> String {
    var out = ""
    for character in text {
      switch character {
      case "&": out += "&amp;"
      case "<": out += "&lt;"
      case ">": out += "&gt;"
      case "\"": out += "&quot;"
      default: out.append(character)
      }
    }
    return out
  }

  func close() {
    self.target = .closed
    self.gathered = []
    self.gatheredBytes = 0
  }

  private var isClosed: MemQError {
    MemQError(.cancelled, "the body's writer is closed", subject: self.key.text)
  }
}
