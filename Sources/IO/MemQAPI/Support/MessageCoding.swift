// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQRPC
import NIOCore
public import SwiftProtobuf

extension SwiftProtobuf.Message {
  /// Decodes a message.
  ///
  /// - Throws: `.corruptMessage` when the bytes are not such a message.
  public init(decoding message: RPCMessage) throws(MemQError) {
    do {
      self = try Self(serializedBytes: BufferBytes(message.contiguous()))
    } catch {
      throw MemQError(
        .corruptMessage, "\(message.byteCount) bytes are not a \(Self.protoMessageName)")
    }
  }

  /// The encoded message.
  public func encoded() -> RPCMessage {
    RPCMessage(self.encodedBuffer())
  }

  func encodedBuffer() -> ByteBuffer {
    do {
      let bytes: BufferBytes = try self.serializedBytes()
      return bytes.buffer
    } catch {
      // proto3 has no required fields, and no message of ours comes near 2 GiB.
      preconditionFailure("\(Self.protoMessageName) cannot be encoded: \(error)")
    }
  }
}

/// Lets swift-protobuf read from, and write into, a buffer of NIO's without a copy.
private struct BufferBytes: SwiftProtobufContiguousBytes {
  var buffer: ByteBuffer

  init(_ buffer: ByteBuffer) {
    self.buffer = buffer
  }

  init(repeating byte: UInt8, count: Int) {
    self.buffer = ByteBuffer(repeating: byte, count: count)
  }

  init<S: Sequence>(_ sequence: S) where S.Element == UInt8 {
    self.buffer = ByteBuffer(bytes: sequence)
  }

  var count: Int { self.buffer.readableBytes }

  func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
    try self.buffer.withUnsafeReadableBytes(body)
  }

  mutating func withUnsafeMutableBytes<R>(
    _ body: (UnsafeMutableRawBufferPointer) throws -> R
  ) rethrows -> R {
    try self.buffer.withUnsafeMutableReadableBytes(body)
  }
}

/// How a message of type `Wire` is seen by code: as itself, or split into header and payload.
public struct Codec<Wire: SwiftProtobuf.Message & Sendable, Value: Sendable>: Sendable {
  let decode: @Sendable (RPCMessage) throws(MemQError) -> Value
  let encode: @Sendable (Value) -> RPCMessage
}

extension Codec where Value == Wire {
  /// The whole message goes through swift-protobuf.
  public static var plain: Self {
    Codec(
      decode: { (message: RPCMessage) throws(MemQError) -> Wire in try Wire(decoding: message) },
      encode: { $0.encoded() })
  }
}

extension Codec where Wire: PayloadMessage, Value == Hot<Wire> {
  /// The payload field passes by reference.
  public static var hot: Self {
    Codec(
      decode: { (message: RPCMessage) throws(MemQError) -> Hot<Wire> in try Hot(decoding: message)
      },
      encode: { $0.encoded() })
  }
}
