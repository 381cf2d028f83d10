// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQRPC
import NIOCore
public import SwiftProtobuf

/// A message with one big `bytes` field, which never passes through swift-protobuf.
///
/// Code leaves the generated property of that field alone, and uses ``Hot/payload`` instead.
public protocol PayloadMessage: SwiftProtobuf.Message, Sendable {
  /// Number of the payload field: of type `bytes`, not repeated, at the top level.
  static var payloadField: Int { get }
}

/// A message split into what swift-protobuf handles and a payload of slices. On the wire it is plain protobuf.
public struct Hot<Header: PayloadMessage>: Sendable {
  /// Everything but the payload field, which is empty here.
  public var header: Header
  /// The payload's bytes, by reference; empty when absent.
  public var payload: RPCMessage

  public init(_ header: Header, payload: RPCMessage = RPCMessage()) {
    self.header = header
    self.payload = payload
  }

  /// The encoded message: the header's bytes, then the payload's slices untouched.
  public func encoded() -> RPCMessage {
    var head = self.header.encodedBuffer()
    guard !self.payload.isEmpty else { return RPCMessage(head) }
    head.writeVarint(UInt64(Header.payloadField) << 3 | 2)
    head.writeVarint(UInt64(self.payload.byteCount))
    var message = RPCMessage(head)
    message.append(self.payload)
    return message
  }

  /// Finds the payload among the top-level fields and leaves the others to swift-protobuf. As in protobuf,
  /// the last of several payload fields counts.
  ///
  /// - Throws: `.corruptMessage` when the bytes are not such a message.
  public init(decoding message: RPCMessage) throws(MemQError) {
    var cursor = FieldCursor(message)
    var payload: Range<Int>?
    var header: [Range<Int>] = []
    while let field = try cursor.next(of: Header.protoMessageName) {
      if field.number == Header.payloadField {
        guard let content = field.content else {
          throw MemQError(
            .corruptMessage, "field \(field.number) of \(Header.protoMessageName) is not bytes")
        }
        payload = content
      } else if let last = header.last, last.upperBound == field.whole.lowerBound {
        header[header.count - 1] = last.lowerBound..<field.whole.upperBound
      } else {
        header.append(field.whole)
      }
    }
    var headerBytes = RPCMessage()
    for range in header {
      headerBytes.append(message.range(from: range.lowerBound, count: range.count))
    }
    self.header = try Header(decoding: headerBytes)
    self.payload =
      payload.map { message.range(from: $0.lowerBound, count: $0.count) } ?? RPCMessage()
  }
}

/// Walks the top-level fields of an encoded message that lies in slices.
private struct FieldCursor {
  struct Field {
    let number: Int
    /// Tag and value.
    let whole: Range<Int>
    /// The value of a length-delimited field.
    let content: Range<Int>?
  }

  private let message: RPCMessage
  private var slice: ByteBuffer
  private var sliceIndex = 0
  private var position = 0

  init(_ message: RPCMessage) {
    self.message = message
    self.slice = message.slice(0)
  }

  /// Nil at the end of the message.
  mutating func next(of name: String) throws(MemQError) -> Field? {
    guard self.position < self.message.byteCount else { return nil }
    let start = self.position
    let tag = try self.varint(name)
    guard tag >> 3 != 0, tag >> 3 <= 536_870_911 else { throw Self.corrupt(name, start) }
    var content: Range<Int>?
    switch tag & 7 {
    case 0: _ = try self.varint(name)
    case 1: try self.skip(8, name)
    case 2:
      let length = try self.varint(name)
      guard length <= UInt64(self.message.byteCount) else { throw Self.corrupt(name, start) }
      let first = self.position
      try self.skip(Int(length), name)
      content = first..<self.position
    case 5: try self.skip(4, name)
    default: throw Self.corrupt(name, start)
    }
    return Field(number: Int(tag >> 3), whole: start..<self.position, content: content)
  }

  private mutating func varint(_ name: String) throws(MemQError) -> UInt64 {
    var value: UInt64 = 0
    var shift: UInt64 = 0
    while shift < 64 {
      while self.slice.readableBytes == 0 {
        self.sliceIndex += 1
        guard self.sliceIndex < self.message.sliceCount else {
          throw Self.corrupt(name, self.position)
        }
        self.slice = self.message.slice(self.sliceIndex)
      }
      let byte = self.slice.readInteger(as: UInt8.self)!
      self.position += 1
      value |= UInt64(byte & 0x7f) << shift
      if byte < 0x80 { return value }
      shift += 7
    }
    throw Self.corrupt(name, self.position)
  }

  private mutating func skip(_ count: Int, _ name: String) throws(MemQError) {
    guard count <= self.message.byteCount - self.position else {
      throw Self.corrupt(name, self.position)
    }
    var left = count
    while left > self.slice.readableBytes {
      left -= self.slice.readableBytes
      self.sliceIndex += 1
      self.slice = self.message.slice(self.sliceIndex)
    }
    self.slice.moveReaderIndex(forwardBy: left)
    self.position += count
  }

  private static func corrupt(_ name: String, _ position: Int) -> MemQError {
    MemQError(.corruptMessage, "not a \(name): the field at byte \(position) is malformed")
  }
}

extension ByteBuffer {
  mutating func writeVarint(_ value: UInt64) {
    var rest = value
    while rest >= 0x80 {
      self.writeInteger(UInt8(truncatingIfNeeded: rest) | 0x80)
      rest >>= 7
    }
    self.writeInteger(UInt8(rest))
  }
}
