// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// The headers of a request while they arrive.
struct RequestHead {
  /// Why a request is refused before a handler sees it.
  enum Refusal {
    /// With a status of HTTP's other than 200, too.
    case http(String, RPCStatus)
    case grpc(RPCStatus)
  }

  private(set) var route: RPCRouter.Route?
  private(set) var metadata = RPCMetadata()
  private(set) var timeoutNanoseconds: Int64?
  private var unknownPath: String?
  private var isPost = false
  private var isGRPC = false
  /// `grpc-encoding: gzip`: messages may be packed.
  private(set) var isPacked = false
  /// `grpc-accept-encoding` names gzip.
  private(set) var takesGzip = false
  private(set) var previousAttempts = 0
  private var encoding: String?
  private var malformed: String?
  private var listBytes = 0

  /// Takes one header. Bytes beyond the list limit are counted, not kept.
  mutating func add(
    _ name: UnsafeBufferPointer<UInt8>, _ value: UnsafeBufferPointer<UInt8>,
    routes: RouteTable, listBytesMax: Int
  ) {
    // RFC 9113 counts 32 bytes for each header.
    self.listBytes += name.count + value.count + 32
    guard self.listBytes <= listBytesMax else { return }
    if name.first == UInt8(ascii: ":") {
      self.addPseudo(name, value, routes)
    } else if name.matches("content-type") {
      // Of the formats behind a plus only protobuf is spoken here; a bare application/grpc means it, too.
      self.isGRPC = Self.isGRPC(value) && !Self.isForeignFormat(value)
    } else if name.matches("te") || name.matches("user-agent") {
      return
    } else if name.starts(with: "grpc-".utf8) {
      self.addGRPC(name, value)
    } else {
      self.addCustom(name, value)
    }
  }

  private mutating func addPseudo(
    _ name: UnsafeBufferPointer<UInt8>, _ value: UnsafeBufferPointer<UInt8>, _ routes: RouteTable
  ) {
    if name.matches(":path") {
      self.route = routes.find(value)
      if self.route == nil { self.unknownPath = String(decoding: value, as: UTF8.self) }
    } else if name.matches(":method") {
      self.isPost = value.matches("POST")
    }
  }

  private mutating func addGRPC(
    _ name: UnsafeBufferPointer<UInt8>, _ value: UnsafeBufferPointer<UInt8>
  ) {
    if name.matches("grpc-timeout") {
      self.timeoutNanoseconds = GRPCTimeout.parse(value)
      if self.timeoutNanoseconds == nil { self.malformed = "grpc-timeout" }
    } else if name.matches("grpc-encoding") {
      self.isPacked = value.matches("gzip")
      if !self.isPacked, !value.matches("identity") {
        self.encoding = String(decoding: value, as: UTF8.self)
      }
    } else if name.matches("grpc-previous-rpc-attempts") {
      self.previousAttempts = max(0, Int(String(decoding: value, as: UTF8.self)) ?? 0)
    } else if name.matches("grpc-accept-encoding") {
      self.takesGzip = self.takesGzip || Self.names(gzipIn: value)
    }
  }

  /// A list with commas, and perhaps spaces.
  private static func names(gzipIn list: UnsafeBufferPointer<UInt8>) -> Bool {
    if list.matches("identity,gzip") { return true }
    return list.split(separator: UInt8(ascii: ",")).contains { item in
      item.drop { $0 == UInt8(ascii: " ") }.prefix { $0 != UInt8(ascii: " ") }
        .elementsEqual("gzip".utf8)
    }
  }

  private mutating func addCustom(
    _ name: UnsafeBufferPointer<UInt8>, _ value: UnsafeBufferPointer<UInt8>
  ) {
    if !self.metadata.addReceived(name, value) {
      self.malformed = String(decoding: name, as: UTF8.self)
    }
  }

  /// All headers are here: what is wrong with them, if anything.
  func refusal(listBytesMax: Int) -> Refusal? {
    if self.listBytes > listBytesMax {
      return .grpc(.overLimit("header list", limit: listBytesMax, actual: self.listBytes))
    }
    if !self.isPost {
      return .http("405", RPCStatus(.internal, "gRPC calls are POST requests"))
    }
    if !self.isGRPC {
      return .http(
        "415", RPCStatus(.invalidArgument, "the content-type must be application/grpc"))
    }
    if let encoding = self.encoding {
      return .grpc(RPCStatus(.unimplemented, "message encoding \(encoding) is not supported"))
    }
    if let malformed = self.malformed {
      return .grpc(RPCStatus(.invalidArgument, "the header \(malformed) is malformed"))
    }
    if self.route == nil { return .grpc(RPCRouter.unknownMethod(self.unknownPath ?? "")) }
    return nil
  }

  private static func isForeignFormat(_ contentType: UnsafeBufferPointer<UInt8>) -> Bool {
    let format = contentType.dropFirst("application/grpc".utf8.count)
    guard format.first == UInt8(ascii: "+") else { return false }
    return !format.dropFirst().prefix { $0 != UInt8(ascii: ";") && $0 != UInt8(ascii: " ") }
      .elementsEqual("proto".utf8)
  }

  static func isGRPC(_ contentType: UnsafeBufferPointer<UInt8>) -> Bool {
    if contentType.matches("application/grpc") { return true }
    let prefix = "application/grpc".utf8
    guard contentType.starts(with: prefix) else { return false }
    guard contentType.count > prefix.count else { return true }
    let next = contentType[prefix.count]
    return next == UInt8(ascii: "+") || next == UInt8(ascii: ";")
  }
}

extension RPCMetadata {
  /// Adds a header from the wire. False: a `-bin` value is not base64.
  mutating func addReceived(
    _ name: UnsafeBufferPointer<UInt8>, _ value: UnsafeBufferPointer<UInt8>
  ) -> Bool {
    let text = String(decoding: name, as: UTF8.self)
    guard name.count >= 4, UnsafeBufferPointer(rebasing: name.suffix(4)).matches("-bin") else {
      self.appendReceived(text, .text(String(decoding: value, as: UTF8.self)))
      return true
    }
    // Values of one name may come joined by commas.
    for part in value.split(separator: UInt8(ascii: ","), omittingEmptySubsequences: false) {
      let space = UInt8(ascii: " ")
      let trimmed = part.drop { $0 == space }.prefix { $0 != space }
      guard let bytes = Base64.decode(trimmed) else { return false }
      self.appendReceived(text, .binary(bytes))
    }
    return true
  }
}

extension UnsafeBufferPointer<UInt8> {
  func matches(_ text: StaticString) -> Bool {
    guard self.count == text.utf8CodeUnitCount else { return false }
    for index in 0..<self.count where self[index] != text.utf8Start[index] { return false }
    return true
  }
}
