// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQRPC
import NIOCore
import SwiftProtobuf

extension RPCStatus {
  /// The status for an error: its code's class, its text, and the whole of it as details.
  public init(_ error: MemQError) {
    let error = error.shortened
    self.init(
      error.code.rpcCode, error.description, details: StatusDetails.encode(error))
  }
}

extension MemQError {
  /// The error a status carries; one made up from the code when it carries none, as from a foreign server or the transport.
  public init(_ status: RPCStatus) {
    if let error = StatusDetails.decode(status.details) {
      self = error
      return
    }
    let limit = status.trailers[first: RPCStatus.limitTrailer].flatMap(Int64.init)
    let actual = status.trailers[first: RPCStatus.actualTrailer].flatMap(Int64.init)
    let text = status.message.isEmpty ? status.code.description : status.message
    if status.code == .resourceExhausted && limit != nil {
      self.init(.messageTooLarge, text, limit: limit, actual: actual)
    } else {
      self.init(status.code.errorCode, text)
    }
  }

  /// Any error of a call as one of ours.
  public init(anyRPC error: any Error) {
    switch error {
    case let error as MemQError: self = error
    case let status as RPCStatus: self.init(status)
    case is CancellationError: self.init(.cancelled, "the call was cancelled")
    default: self.init(.internalError, "\(error)")
    }
  }
}

extension MemQError {
  /// Of subject and message each: a file's name fits. What a caller gave as a name comes back in the error, in headers, which have
  /// room for a few KiB.
  static let textBytesMax = 1_024

  fileprivate var shortened: MemQError {
    var error = self
    error.subject = RPCStatus.shortened(self.subject, toBytes: Self.textBytesMax)
    error.message = RPCStatus.shortened(self.message, toBytes: Self.textBytesMax)
    return error
  }
}

extension Memq_V1_ErrorDetail {
  /// For stream messages that refuse one item without ending the stream.
  public init(_ error: MemQError) {
    let error = error.shortened
    self.init()
    self.code = Memq_V1_ErrorCode(rawValue: Int(error.code.rawValue)) ?? .internalError
    self.message = error.message
    self.subject = error.subject
    if let limit = error.limit { self.limit = limit }
    if let actual = error.actual { self.actual = actual }
    self.retriable = error.isRetriable
  }
}

extension MemQError {
  /// A code that this build does not know, from a newer peer, becomes `internalError`; its retriability is kept.
  public init(_ detail: Memq_V1_ErrorDetail) {
    let code = ErrorCode(rawValue: Int32(truncatingIfNeeded: detail.code.rawValue))
    self.init(
      code ?? .internalError, detail.message, subject: detail.subject,
      limit: detail.hasLimit ? detail.limit : nil, actual: detail.hasActual ? detail.actual : nil,
      isRetriable: detail.retriable)
  }
}

/// google.rpc.Status { int32 code = 1; string message = 2; repeated google.protobuf.Any details = 3; } around
/// one google.protobuf.Any { string type_url = 1; bytes value = 2; }, written and read by hand.
enum StatusDetails {
  static let typeURL = "type.googleapis.com/memq.v1.ErrorDetail"

  static func encode(_ error: MemQError) -> [UInt8] {
    let detail = Memq_V1_ErrorDetail(error).encodedBuffer()
    var any = ByteBuffer()
    any.writeField(1, Array(Self.typeURL.utf8))
    any.writeField(2, Array(buffer: detail))
    var status = ByteBuffer()
    status.writeVarint(1 << 3)
    status.writeVarint(UInt64(error.code.rpcCode.rawValue))
    status.writeField(2, Array(error.description.utf8))
    status.writeField(3, Array(buffer: any))
    return Array(buffer: status)
  }

  /// Nil when there is no detail of ours in it.
  static func decode(_ bytes: [UInt8]) -> MemQError? {
    guard !bytes.isEmpty else { return nil }
    for any in Self.fields(3, of: bytes[...]) {
      guard let url = Self.fields(1, of: any).last,
        url.elementsEqual(Self.typeURL.utf8),
        let value = Self.fields(2, of: any).last,
        let detail = try? Memq_V1_ErrorDetail(decoding: RPCMessage(bytes: value))
      else { continue }
      return MemQError(detail)
    }
    return nil
  }

  /// The contents of all length-delimited fields `number`; what is malformed ends the list.
  private static func fields(_ number: UInt64, of bytes: ArraySlice<UInt8>) -> [ArraySlice<UInt8>] {
    var found: [ArraySlice<UInt8>] = []
    var rest = bytes
    while let tag = Self.varint(&rest) {
      switch tag & 7 {
      case 0:
        guard Self.varint(&rest) != nil else { return found }
      case 1:
        guard rest.count >= 8 else { return found }
        rest = rest.dropFirst(8)
      case 2:
        guard let length = Self.varint(&rest), length <= UInt64(rest.count) else { return found }
        if tag >> 3 == number { found.append(rest.prefix(Int(length))) }
        rest = rest.dropFirst(Int(length))
      case 5:
        guard rest.count >= 4 else { return found }
        rest = rest.dropFirst(4)
      default: return found
      }
    }
    return found
  }

  private static func varint(_ bytes: inout ArraySlice<UInt8>) -> UInt64? {
    var value: UInt64 = 0
    for (index, byte) in bytes.prefix(10).enumerated() {
      value |= UInt64(byte & 0x7f) << UInt64(7 * index)
      if byte < 0x80 {
        bytes = bytes.dropFirst(index + 1)
        return value
      }
    }
    return nil
  }
}

extension ByteBuffer {
  fileprivate mutating func writeField(_ number: UInt64, _ bytes: [UInt8]) {
    self.writeVarint(number << 3 | 2)
    self.writeVarint(UInt64(bytes.count))
    self.writeBytes(bytes)
  }
}
