// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import NIOCore

/// One message: bytes as ordered slices. A value, cheap to pass.
///
/// Payloads of 16 KiB and more are never copied on their way through this module: what arrives are
/// slices of the read buffers (and keeps those alive: see ``backingBytes``), what is sent leaves by
/// reference. Received messages below 16 KiB stand in a buffer of their own.
public struct RPCMessage: Sendable {
  /// Messages, and pieces of messages, below this are copied at receipt instead of pinning a
  /// read buffer of up to 256 KiB: 16 KiB bounds that at a factor of 16.
  public static let copyBelowBytes = 16 << 10

  private var first: ByteBuffer
  private var more: [ByteBuffer]
  public private(set) var byteCount: Int
  /// False: sent as it is in a call that compresses its messages. For payloads that are compressed already.
  public var mayBeCompressed = true
  /// It came compressed.
  public internal(set) var wasCompressed = false
  /// The bytes are packed, in the encoding of their call: between the wire and ``GzipCodec`` only.
  var isPacked = false

  public init() {
    self.init(ByteBuffer())
  }

  /// A message of the readable bytes of `buffer`.
  public init(_ buffer: ByteBuffer) {
    self.first = buffer
    self.more = []
    self.byteCount = buffer.readableBytes
  }

  /// A message of the readable bytes of all `slices`, in order.
  public init(slices: [ByteBuffer]) {
    self.first = slices.first ?? ByteBuffer()
    self.more = slices.count > 1 ? Array(slices.dropFirst()) : []
    self.byteCount = slices.reduce(0) { $0 + $1.readableBytes }
  }

  public init(bytes: some Sequence<UInt8>) {
    self.init(ByteBuffer(bytes: bytes))
  }

  init(first: ByteBuffer, more: [ByteBuffer], byteCount: Int) {
    self.first = first
    self.more = more
    self.byteCount = byteCount
  }

  public var isEmpty: Bool { self.byteCount == 0 }
  public var sliceCount: Int { 1 + self.more.count }

  /// The slices in order; at least one, which may be empty.
  public var slices: [ByteBuffer] { self.more.isEmpty ? [self.first] : [self.first] + self.more }

  /// One slice, without making an array.
  public func slice(_ index: Int) -> ByteBuffer {
    index == 0 ? self.first : self.more[index - 1]
  }

  func byteCount(ofSlice index: Int) -> Int {
    index == 0 ? self.first.readableBytes : self.more[index - 1].readableBytes
  }

  mutating func reserveSlices(_ count: Int) {
    self.more.reserveCapacity(count - 1)
  }

  /// Appends a slice.
  public mutating func append(_ slice: ByteBuffer) {
    guard slice.readableBytes > 0 else { return }
    if self.byteCount == 0 && self.more.isEmpty {
      self.first = slice
    } else {
      self.more.append(slice)
    }
    self.byteCount += slice.readableBytes
  }

  /// Appends all slices of `other`.
  public mutating func append(_ other: RPCMessage) {
    for index in 0..<other.sliceCount { self.append(other.slice(index)) }
  }

  /// All bytes in one buffer. One slice: no copy; else one copy of the whole.
  public func contiguous() -> ByteBuffer {
    if self.more.isEmpty { return self.first }
    var whole = ByteBuffer()
    whole.reserveCapacity(self.byteCount)
    for index in 0..<self.sliceCount { whole.writeImmutableBuffer(self.slice(index)) }
    return whole
  }

  /// The bytes `[offset, offset + count)` as slices of the same buffers.
  ///
  /// - Precondition: the range lies inside the message.
  public func range(from offset: Int, count: Int) -> RPCMessage {
    precondition(offset >= 0 && count >= 0 && offset + count <= self.byteCount)
    var result = RPCMessage()
    var skip = offset
    var left = count
    var index = 0
    while left > 0 {
      let slice = self.slice(index)
      index += 1
      let readable = slice.readableBytes
      if skip >= readable {
        skip -= readable
        continue
      }
      let take = min(left, readable - skip)
      result.append(slice.getSlice(at: slice.readerIndex + skip, length: take)!)
      skip = 0
      left -= take
    }
    return result
  }

  /// Memory kept alive by holding this message: the capacity of the buffers behind the slices.
  /// Neighbouring slices of one read buffer count once per slice, so this is an upper bound.
  public var backingBytes: Int {
    self.more.reduce(self.first.storageCapacity) { $0 + $1.storageCapacity }
  }
}

extension RPCMessage: Equatable {
  /// Equal bytes, however they are cut into slices.
  public static func == (left: RPCMessage, right: RPCMessage) -> Bool {
    left.byteCount == right.byteCount && left.contiguous() == right.contiguous()
  }
}
