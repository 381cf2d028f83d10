// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import NIOCore

/// A bucket: keys and immutable objects, durable when a call returns.
///
/// Every call has a deadline and throws `MemQError`: `.objectStoreUnavailable` (retry, with `JitteredBackoff`),
/// `.objectNotFound`, `.rangeInvalid`, `.objectCorrupt`, `.invalidArgument`. Nothing here blocks the caller's thread.
/// Safety never rests on a store's preconditions: keys of objects hold their random id, so no two writers share one.
public protocol ObjectStore: Sendable {
  /// For people: "folder /var/lib/memq/objects".
  var name: String { get }
  /// Requests made since the start that a store bills (as S3 counts them; a folder bills nothing and counts the same).
  var requests: ObjectStoreRequests { get }

  /// Writes an object whole: all of it is durable under its key, or nothing is there. An object under the key is replaced.
  ///
  /// - Parameters:
  ///   - source: read once per attempt, in order.
  ///   - crc32c: of all bytes; checked before the object appears. `.objectCorrupt` when it does not match.
  func put(
    _ key: ObjectKey, _ source: ObjectSource, crc32c: UInt32, timeout: Duration
  ) async throws(MemQError)

  /// Reads exactly `range`. At most `ObjectStoreLimits.getByteCountMax` bytes.
  ///
  /// - Throws: `.objectNotFound`, `.rangeInvalid` (beyond the object's end).
  func get(
    _ key: ObjectKey, range: Range<Int64>, timeout: Duration
  ) async throws(MemQError)
    -> ByteBuffer

  /// - Throws: `.objectNotFound`.
  func head(_ key: ObjectKey, timeout: Duration) async throws(MemQError) -> ObjectHead

  /// Deletes the object and any unfinished body under the key. One that is not there is no error.
  func delete(_ key: ObjectKey, timeout: Duration) async throws(MemQError)

  /// Whole objects whose keys begin with `prefix`, in the byte order of their keys, after `after`.
  ///
  /// - Parameter limit: 1–10,000.
  func list(
    prefix: String, after: ObjectKey?, limit: Int, timeout: Duration
  ) async throws(MemQError) -> ObjectListing

  /// Begins a body of unknown size, or goes on with one: bytes below `offset` were durable before and stay, what lies
  /// beyond is dropped. One writer per key at a time.
  ///
  /// - Throws: `.uploadOffsetMismatch` (fewer durable bytes than `offset`; `actual` says how many),
  ///   `.uploadInProgress` (another writer holds it; retry).
  func openBody(
    _ key: ObjectKey, from offset: Int64, timeout: Duration
  ) async throws(MemQError)
    -> any ObjectBodyWriter

  /// Ends what runs and refuses the rest.
  func close() async
}

/// Writes one body in pieces. Not for concurrent use; a body that is not finished stays for a later `openBody`.
public protocol ObjectBodyWriter: AnyObject, Sendable {
  var key: ObjectKey { get }
  /// Bytes written, durable or not.
  var byteCount: Int64 { get async }
  /// Bytes that survive a crash.
  var durableByteCount: Int64 { get async }

  /// Appends bytes. Takes them off the caller's hands before it returns; not yet durable.
  func write(_ bytes: [ByteBuffer], timeout: Duration) async throws(MemQError)
  /// Makes everything written so far durable: the end of a part.
  func sync(timeout: Duration) async throws(MemQError)
  /// Makes the object whole and durable under its key; the writer is used up. The same again is no error.
  ///
  /// - Throws: `.uploadOffsetMismatch` when another number of bytes was written.
  func finish(byteCount: Int64, timeout: Duration) async throws(MemQError)
  /// Lets go of an unfinished body.
  func close() async
}

/// What a store says of an object without its bytes.
public struct ObjectHead: Hashable, Sendable {
  public var key: ObjectKey
  public var byteCount: Int64
  public init(key: ObjectKey, byteCount: Int64) {
    self.key = key
    self.byteCount = byteCount
  }
}

/// A page of keys.
public struct ObjectListing: Hashable, Sendable {
  public var objects: [ObjectHead]
  /// True when there are more after the last.
  public var hasMore: Bool
  public init(objects: [ObjectHead], hasMore: Bool) {
    self.objects = objects
    self.hasMore = hasMore
  }
}

public enum ObjectStoreLimits {
  /// One ranged read: bounds the memory of a call.
  public static let getByteCountMax: Int64 = 64 << 20
  public static let listMax = 10_000

  /// - Throws: `.invalidArgument` for what no store is asked for.
  static func checkList(prefix: String, limit: Int) throws(MemQError) {
    try ObjectKey.check(prefix, isPrefix: true)
    guard (1...self.listMax).contains(limit) else {
      throw MemQError(
        .invalidArgument, "a page has 1-10000 keys", limit: Int64(self.listMax),
        actual: Int64(limit))
    }
  }

  /// - Throws: `.rangeInvalid` for a read that no store carries out.
  static func check(_ range: Range<Int64>, of key: ObjectKey) throws(MemQError) {
    guard range.lowerBound >= 0, Int64(range.count) <= Self.getByteCountMax else {
      throw MemQError(
        .rangeInvalid, "a ranged read takes so many bytes at most", subject: key.text,
        limit: Self.getByteCountMax, actual: Int64(range.count))
    }
  }

  /// - Throws: `.uploadOffsetMismatch` when a body has other than the bytes it was finished with.
  static func check(_ byteCount: Int64, is there: Int64, of key: ObjectKey) throws(MemQError) {
    guard byteCount == there else {
      throw MemQError(
        .uploadOffsetMismatch, "the body does not have so many bytes", subject: key.text,
        limit: byteCount, actual: there)
    }
  }
}

/// Bytes of an object to put: their number, and a way to read them from the start, once per attempt.
public struct ObjectSource: Sendable {
  public let byteCount: Int64
  let open: @Sendable () -> (@Sendable () async throws(MemQError) -> ByteBuffer?)

  /// - Parameter open: gives a function that returns the next piece, nil at the end.
  public init(
    byteCount: Int64,
    open: @escaping @Sendable () -> (@Sendable () async throws(MemQError) -> ByteBuffer?)
  ) {
    self.byteCount = byteCount
    self.open = open
  }

  /// Bytes that are in memory.
  public init(slices: [ByteBuffer]) {
    self.byteCount = slices.reduce(0) { $0 + Int64($1.readableBytes) }
    self.open = {
      let position = PieceCounter()
      return { () async throws(MemQError) -> ByteBuffer? in
        let index = position.next()
        return index < slices.count ? slices[index] : nil
      }
    }
  }
}
