// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CZlib
import NIOCore

/// gzip (RFC 1952) for whole messages, slice by slice. One for each event loop, made when first needed: zlib's state of 300 KiB
/// is shared by all calls. Used on that loop only.
final class GzipCodec: @unchecked Sendable {
  enum Failure: Error, Equatable {
    case tooLarge
    case corrupt
  }

  /// Below this the header, the trailer and the time cost more than is saved.
  static let compressFromBytes = 128
  /// Unpacked bytes of one turn of the loop, about 20 ms. Beyond it calls wait for a later turn, so that a few packed bytes do not keep
  /// the loop from its other work.
  static let turnBytesMax = 8 << 20
  /// Pieces of unpacked messages.
  private static let pieceBytesMax = 1 << 20
  /// 15 bits of window, plus 16: the gzip wrapper and no other.
  private static let windowBits: Int32 = 31

  // At a fixed address: zlib's state points back to it.
  private let inflater: UnsafeMutablePointer<z_stream>
  private let deflater: UnsafeMutablePointer<z_stream>
  /// Unpacked in this turn.
  var turnBytes = 0
  /// Calls that wait for a later turn.
  var waiting: [NetStream] = []

  var isSpent: Bool { self.turnBytes >= Self.turnBytesMax }

  init() {
    let size = Int32(MemoryLayout<z_stream>.size)
    self.inflater = .allocate(capacity: 1)
    self.inflater.initialize(to: z_stream())
    self.deflater = .allocate(capacity: 1)
    self.deflater.initialize(to: z_stream())
    precondition(
      inflateInit2_(self.inflater, Self.windowBits, ZLIB_VERSION, size) == Z_OK
        && deflateInit2_(
          self.deflater, Z_BEST_SPEED, Z_DEFLATED, Self.windowBits, 8, Z_DEFAULT_STRATEGY,
          ZLIB_VERSION, size) == Z_OK,
      "zlib cannot make its state: out of memory")
  }

  deinit {
    inflateEnd(self.inflater)
    deflateEnd(self.deflater)
    self.inflater.deallocate()
    self.deflater.deallocate()
  }

  // MARK: Packing

  /// The packed message, or `message` itself when that would not be smaller.
  func pack(_ message: RPCMessage) -> RPCMessage {
    guard message.mayBeCompressed, message.byteCount >= Self.compressFromBytes else {
      return message
    }
    precondition(deflateReset(self.deflater) == Z_OK)
    var output = Output(capacity: min(message.byteCount, 64 << 10), limit: message.byteCount - 1)
    for index in 0..<message.sliceCount {
      let isLast = index == message.sliceCount - 1
      let status = message.slice(index).withUnsafeReadableBytes { input in
        self.run(self.deflater, input, &output) { deflate($0, isLast ? Z_FINISH : Z_NO_FLUSH) }
      }
      if status == Z_STREAM_END { break }
      guard status == Z_OK || status == Z_BUF_ERROR, !output.isOver else { return message }
    }
    guard !output.isOver else { return message }
    var packed = output.finish()
    packed.isPacked = true
    return packed
  }

  // MARK: Unpacking

  /// - Throws: `tooLarge` once more than `maxBytes` come out, and not later; `corrupt` for anything but whole gzip members.
  func unpack(_ message: RPCMessage, maxBytes: Int) throws(Failure) -> RPCMessage {
    guard inflateReset(self.inflater) == Z_OK else { throw .corrupt }
    // A hint only, for one buffer of the right size: deflate cannot do better than 1:1032.
    let hint = min(Self.statedBytes(message), message.byteCount * 1032)
    var output = Output(capacity: min(hint + 1, Self.pieceBytesMax), limit: maxBytes)
    var status = Z_BUF_ERROR
    for index in 0..<message.sliceCount where message.byteCount(ofSlice: index) > 0 {
      status = message.slice(index).withUnsafeReadableBytes { input in
        self.run(self.inflater, input, &output) { stream in
          let status = inflate(stream, Z_NO_FLUSH)
          // Several members one after another are one message.
          guard status == Z_STREAM_END, stream.pointee.avail_in > 0 else { return status }
          return inflateReset(stream)
        }
      }
      self.turnBytes += output.takeFresh()
      guard !output.isOver else { throw .tooLarge }
      guard status == Z_OK || status == Z_BUF_ERROR || status == Z_STREAM_END else {
        throw .corrupt
      }
      // The next slice, if there is one, begins a member.
      if status == Z_STREAM_END, index < message.sliceCount - 1, inflateReset(self.inflater) != Z_OK
      {
        throw .corrupt
      }
    }
    guard status == Z_STREAM_END else { throw .corrupt }
    return output.finish()
  }

  /// What the last four bytes say: the size, modulo 2^32.
  private static func statedBytes(_ message: RPCMessage) -> Int {
    guard message.byteCount >= 18 else { return 0 }
    let tail = message.range(from: message.byteCount - 4, count: 4).contiguous()
    return Int(tail.getInteger(at: tail.readerIndex, endianness: .little, as: UInt32.self)!)
  }

  /// Runs zlib over one slice until it is used up, and what came of it is written.
  private func run(
    _ stream: UnsafeMutablePointer<z_stream>, _ input: UnsafeRawBufferPointer,
    _ output: inout Output, _ step: (UnsafeMutablePointer<z_stream>) -> Int32
  ) -> Int32 {
    stream.pointee.next_in = UnsafeMutableRawPointer(mutating: input.baseAddress)?
      .assumingMemoryBound(to: UInt8.self)
    stream.pointee.avail_in = UInt32(input.count)
    while true {
      let status = output.write { room in
        stream.pointee.next_out = room.baseAddress!.assumingMemoryBound(to: UInt8.self)
        stream.pointee.avail_out = UInt32(room.count)
        let status = step(stream)
        return (room.count - Int(stream.pointee.avail_out), status)
      }
      guard status == Z_OK, !output.isOver else { return status }
      if stream.pointee.avail_in == 0 && stream.pointee.avail_out > 0 { return status }
    }
  }

  /// Written bytes as slices, at most one byte beyond a limit.
  private struct Output {
    private var whole = RPCMessage()
    private var piece = ByteBuffer()
    private var capacity: Int
    private let limit: Int
    private var written = 0
    private var told = 0

    init(capacity: Int, limit: Int) {
      self.capacity = max(64, capacity)
      self.limit = limit
    }

    var isOver: Bool { self.written > self.limit }

    mutating func write(
      _ body: (UnsafeMutableRawBufferPointer) -> (written: Int, status: Int32)
    ) -> Int32 {
      let left = self.limit + 1 - self.written
      if self.piece.writableBytes == 0 {
        self.whole.append(self.piece)
        self.piece = ByteBuffer()
        self.piece.reserveCapacity(min(self.capacity, left))
        self.capacity = min(self.capacity * 2, GzipCodec.pieceBytesMax)
      }
      var status = Z_OK
      self.written += self.piece.writeWithUnsafeMutableBytes(minimumWritableBytes: 1) { room in
        let result = body(UnsafeMutableRawBufferPointer(rebasing: room.prefix(left)))
        status = result.status
        return result.written
      }
      return status
    }

    /// Bytes written since the last call.
    mutating func takeFresh() -> Int {
      defer { self.told = self.written }
      return self.written - self.told
    }

    mutating func finish() -> RPCMessage {
      self.whole.append(self.piece)
      return self.whole
    }
  }
}
