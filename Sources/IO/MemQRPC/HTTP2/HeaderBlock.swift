// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CNghttp2

/// A header whose bytes never move and are never freed, so that nghttp2 need not copy them.
struct StaticHeader: @unchecked Sendable {
  let nv: nghttp2_nv

  /// Used for constants only: the memory is kept for the life of the process.
  init(_ name: String, _ value: String) {
    self.nv = nghttp2_nv(
      name: Self.immortal(name), value: Self.immortal(value), namelen: name.utf8.count,
      valuelen: value.utf8.count,
      flags: UInt8(
        NGHTTP2_NV_FLAG_NO_COPY_NAME.rawValue | NGHTTP2_NV_FLAG_NO_COPY_VALUE.rawValue))
  }

  private static func immortal(_ text: String) -> UnsafeMutablePointer<UInt8> {
    let bytes = UnsafeMutablePointer<UInt8>.allocate(capacity: max(1, text.utf8.count))
    var index = 0
    for byte in text.utf8 {
      bytes[index] = byte
      index += 1
    }
    return bytes
  }

  static let statusOK = StaticHeader(":status", "200")
  static let contentType = StaticHeader("content-type", "application/grpc")
  static let acceptEncoding = StaticHeader("grpc-accept-encoding", "identity,gzip")
  static let encodingGzip = StaticHeader("grpc-encoding", "gzip")
  static let grpcStatusOK = StaticHeader("grpc-status", "0")
  static let post = StaticHeader(":method", "POST")
  static let schemeHTTP = StaticHeader(":scheme", "http")
  static let teTrailers = StaticHeader("te", "trailers")
  static let userAgent = StaticHeader("user-agent", "memq-rpc")
}

/// A header list that never changes, as nghttp2 takes it. Used for constants only.
struct StaticHeaderList: @unchecked Sendable {
  let start: UnsafePointer<nghttp2_nv>
  let count: Int

  private init(_ headers: StaticHeader...) {
    let list = UnsafeMutablePointer<nghttp2_nv>.allocate(capacity: headers.count)
    for (index, header) in headers.enumerated() { (list + index).initialize(to: header.nv) }
    self.start = UnsafePointer(list)
    self.count = headers.count
  }

  static let responseOK = StaticHeaderList(.statusOK, .contentType, .acceptEncoding)
  static let trailersOK = StaticHeaderList(.grpcStatusOK)
}

/// Builds header lists for nghttp2. One per connection, reused, so that a call allocates nothing here.
struct HeaderBlock {
  private enum Field {
    case fixed(nghttp2_nv)
    /// Positions in `bytes`.
    case own(name: Range<Int>, value: Range<Int>, flags: UInt8)
  }

  private var bytes: [UInt8] = []
  private var fields: [Field] = []
  private var list: [nghttp2_nv] = []

  mutating func removeAll() {
    self.bytes.removeAll(keepingCapacity: true)
    self.fields.removeAll(keepingCapacity: true)
    self.list.removeAll(keepingCapacity: true)
  }

  mutating func add(_ header: StaticHeader) {
    self.fields.append(.fixed(header.nv))
  }

  /// - Parameter isIndexed: false for values that hardly ever come again: they would only push others out of both sides' tables.
  mutating func add(_ name: StaticString, _ value: String, isIndexed: Bool = true) {
    let nameStart = self.bytes.count
    name.withUTF8Buffer { self.bytes.append(contentsOf: $0) }
    self.addValue(
      value, nameStart, flags: isIndexed ? 0 : UInt8(NGHTTP2_NV_FLAG_NO_INDEX.rawValue))
  }

  private mutating func addValue(_ value: String, _ nameStart: Int, flags: UInt8 = 0) {
    let valueStart = self.bytes.count
    self.bytes.append(contentsOf: value.utf8)
    self.fields.append(
      .own(
        name: nameStart..<valueStart, value: valueStart..<self.bytes.count, flags: flags))
  }

  mutating func add(_ metadata: RPCMetadata) {
    for entry in metadata.entries {
      let nameStart = self.bytes.count
      self.bytes.append(contentsOf: entry.name.utf8)
      switch entry.value {
      case .binary(let value): self.addValue(Base64.encode(value), nameStart)
      case .text(let value): self.addValue(Self.printable(value), nameStart)
      }
    }
  }

  /// Of a status message; three times as much when every byte is escaped. With the details it must stay below the 16 KiB that
  /// peers take as headers: nghttp2 gives up the whole connection over larger ones.
  private static let messageBytesMax = 2 << 10
  /// Larger details are left out: code and message tell without them.
  private static let detailsBytesMax = 6 << 10

  /// Of custom metadata, counted as HTTP/2 does, beside a message and details of the largest kind. More is left out, with a note: it would
  /// cost the peer the call, or the connection.
  private static let trailersBytesMax = 6 << 10
  /// The trailers of a status other than a bare ok.
  mutating func add(_ status: RPCStatus) {
    self.add("grpc-status", String(status.code.rawValue))
    if !status.message.isEmpty {
      let message = RPCStatus.shortened(status.message, toBytes: Self.messageBytesMax)
      self.add("grpc-message", PercentCoding.encode(message))
    }
    if status.details.count > Self.detailsBytesMax {
      self.add("memq-omitted-details", String(status.details.count))
    } else if !status.details.isEmpty {
      self.add("grpc-status-details-bin", Base64.encode(status.details))
    }
    if let pushback = status.pushback { self.add("grpc-retry-pushback-ms", pushback.text) }
    if status.trailers.isEmpty { return }
    let bytes = status.trailers.listBytes
    if bytes > Self.trailersBytesMax {
      self.add("memq-omitted-trailers", String(bytes))
    } else {
      self.add(status.trailers)
    }
  }

  /// Calls `body` with the list; its pointers are good until it returns.
  mutating func withList<R>(_ body: (UnsafePointer<nghttp2_nv>, Int) -> R) -> R {
    self.bytes.withUnsafeMutableBufferPointer { bytes in
      for field in self.fields {
        switch field {
        case .fixed(let nv): self.list.append(nv)
        case .own(let name, let value, let flags):
          let base = bytes.baseAddress!
          self.list.append(
            nghttp2_nv(
              name: base + name.lowerBound, value: base + value.lowerBound, namelen: name.count,
              valuelen: value.count, flags: flags))
        }
      }
      return self.list.withUnsafeBufferPointer { body($0.baseAddress!, $0.count) }
    }
  }

  /// Printable ASCII, and no spaces at the ends: HTTP/2 takes them for a broken header and the stream with it.
  private static func printable(_ value: String) -> String {
    let space = UInt8(ascii: " ")
    let isPlain = value.utf8.allSatisfy { $0 >= 0x20 && $0 <= 0x7e }
    if isPlain, value.utf8.first != space, value.utf8.last != space { return value }
    var bytes = value.utf8.map { $0 >= 0x20 && $0 <= 0x7e ? $0 : UInt8(ascii: "?") }[...]
    while bytes.first == space { bytes.removeFirst() }
    while bytes.last == space { bytes.removeLast() }
    return String(decoding: bytes, as: UTF8.self)
  }
}
