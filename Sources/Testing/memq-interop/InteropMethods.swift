// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQRPC
import NIOCore
import SwiftProtobuf

typealias Empty = Grpc_Testing_Empty
typealias SimpleRequest = Grpc_Testing_SimpleRequest
typealias SimpleResponse = Grpc_Testing_SimpleResponse
typealias InputRequest = Grpc_Testing_StreamingInputCallRequest
typealias InputResponse = Grpc_Testing_StreamingInputCallResponse
typealias OutputRequest = Grpc_Testing_StreamingOutputCallRequest
typealias OutputResponse = Grpc_Testing_StreamingOutputCallResponse

/// The calls of grpc.testing. The server registers every one as a stream, as only streams may choose their headers.
enum InteropMethods {
  static let service = "grpc.testing.TestService"
  static let unimplementedService = "grpc.testing.UnimplementedService"

  static let empty = Self.method("EmptyCall")
  static let unary = Self.method("UnaryCall")
  static let output = Self.method("StreamingOutputCall")
  static let input = Self.method("StreamingInputCall")
  static let fullDuplex = Self.method("FullDuplexCall")
  static let halfDuplex = Self.method("HalfDuplexCall")
  static let unimplemented = Self.method("UnimplementedCall")
  static let ofUnimplementedService = RPCMethod(
    service: Self.unimplementedService, name: "UnimplementedCall", kind: .unary)

  private static func method(_ name: String) -> RPCMethod {
    RPCMethod(service: Self.service, name: name, kind: .bidirectional)
  }
}

/// Metadata that the server sends back: one with its headers, one with its trailers.
enum EchoMetadata {
  static let initial = "x-grpc-test-echo-initial"
  static let trailing = "x-grpc-test-echo-trailing-bin"
}

extension RPCMessage {
  /// A message whose first field is a Payload of `count` zeros: a SimpleResponse, and a StreamingOutputCallResponse. The zeros
  /// are the same for all messages.
  static func payload(ofZeros count: Int) -> RPCMessage {
    guard count > 0 else { return RPCMessage(bytes: [0x0a, 0]) }
    var body = ByteBuffer(bytes: [0x12])
    body.writeLength(count)
    var head = ByteBuffer(bytes: [0x0a])
    head.writeLength(body.readableBytes + count)
    head.writeBuffer(&body)
    return RPCMessage(slices: [head, Self.zeros.getSlice(at: 0, length: count)!])
  }

  private static let zeros = ByteBuffer(repeating: 0, count: RPCLimits.messageBytesMax)
}

extension ByteBuffer {
  fileprivate mutating func writeLength(_ value: Int) {
    var rest = value
    while rest >= 0x80 {
      self.writeInteger(UInt8(truncatingIfNeeded: rest) | 0x80)
      rest >>= 7
    }
    self.writeInteger(UInt8(rest))
  }
}
