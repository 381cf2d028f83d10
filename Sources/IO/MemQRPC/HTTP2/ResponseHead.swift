// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// The headers and trailers of a response while they arrive.
final class ResponseHead {
  private var httpStatus = 0
  private var isGRPC = false
  private var code: Int?
  private var message = ""
  private var details: [UInt8] = []
  private var metadata = RPCMetadata()
  /// `grpc-encoding: gzip`: messages may be packed.
  private(set) var isPacked = false
  private var encoding: String?
  private var pushback: RPCPushback?
  private var listBytes = 0

  func add(
    _ name: UnsafeBufferPointer<UInt8>, _ value: UnsafeBufferPointer<UInt8>, listBytesMax: Int
  ) {
    self.listBytes += name.count + value.count + 32
    guard self.listBytes <= listBytesMax else { return }
    if name.matches(":status") {
      self.httpStatus = Self.number(value) ?? 0
    } else if name.matches("content-type") {
      self.isGRPC = RequestHead.isGRPC(value)
    } else if name.starts(with: "grpc-".utf8) {
      self.addGRPC(name, value)
    } else if name.first != UInt8(ascii: ":") {
      _ = self.metadata.addReceived(name, value)
    }
  }

  private func addGRPC(
    _ name: UnsafeBufferPointer<UInt8>, _ value: UnsafeBufferPointer<UInt8>
  ) {
    if name.matches("grpc-status") {
      self.code = Self.number(value) ?? RPCCode.unknown.rawValue
    } else if name.matches("grpc-message") {
      self.message = PercentCoding.decode(value)
    } else if name.matches("grpc-status-details-bin") {
      self.details = Base64.decode(value) ?? []
    } else if name.matches("grpc-retry-pushback-ms") {
      self.pushback = RPCPushback(value)
    } else if name.matches("grpc-encoding") {
      self.isPacked = value.matches("gzip")
      if !self.isPacked, !value.matches("identity") {
        self.encoding = String(decoding: value, as: UTF8.self)
      }
    }
  }

  /// The custom metadata so far: what comes later are trailers.
  func takeMetadata() -> RPCMetadata {
    defer { self.metadata = RPCMetadata() }
    return self.metadata
  }

  /// `100 Continue` and its like: the real headers follow.
  var isInformational: Bool { self.httpStatus >= 100 && self.httpStatus < 200 }

  /// The first headers came: a status when the call cannot go on from here.
  func refusal(listBytesMax: Int) -> RPCStatus? {
    if self.listBytes > listBytesMax {
      return .overLimit("response header list", limit: listBytesMax, actual: self.listBytes)
    }
    if self.httpStatus != 200 {
      if let code = self.code.flatMap(RPCCode.init), code != .ok {
        return RPCStatus(code, self.message, details: self.details, trailers: self.metadata)
      }
      return RPCStatus(
        Self.code(forHTTP: self.httpStatus), "the server answered HTTP \(self.httpStatus)")
    }
    if !self.isGRPC { return RPCStatus(.unknown, "the server's answer is not gRPC") }
    if let encoding = self.encoding {
      return RPCStatus(.internal, "the server answers in encoding \(encoding)")
    }
    return nil
  }

  /// The stream ended regularly: the status of the call.
  func status(listBytesMax: Int) -> RPCStatus {
    if let refusal = self.refusal(listBytesMax: listBytesMax) { return refusal }
    guard let number = self.code else {
      return RPCStatus(.internal, "the server ended the call without a status")
    }
    var status = RPCStatus(
      RPCCode(rawValue: number) ?? .unknown, self.message, details: self.details,
      trailers: self.metadata)
    status.pushback = self.pushback
    return status
  }

  private static func number(_ text: UnsafeBufferPointer<UInt8>) -> Int? {
    guard !text.isEmpty, text.count <= 4 else { return nil }
    var value = 0
    for byte in text {
      guard byte >= UInt8(ascii: "0"), byte <= UInt8(ascii: "9") else { return nil }
      value = value * 10 + Int(byte - UInt8(ascii: "0"))
    }
    return value
  }

  /// gRPC's mapping for answers of something that is not a gRPC server.
  private static func code(forHTTP status: Int) -> RPCCode {
    switch status {
    case 400: .internal
    case 401: .unauthenticated
    case 403: .permissionDenied
    case 404: .unimplemented
    case 429, 502, 503, 504: .unavailable
    default: .unknown
    }
  }
}
