// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRecords
import MemQRPC
import MemQRuntime
import MemQSystem
import NIOCore
import Synchronization

/// Passes a file's bytes to an uploader, cut at the ends of parts, and tells as parts become durable.
///
/// One caller writes; another reads `nextDurable`. Nothing is held: what the uploader does not take yet waits in its
/// flow-control window, and the writer with it.
final class BodyStream: Sendable {
  /// The end of a part that is on its way: the digest's state right there, for a resume.
  struct Mark: Sendable {
    let end: Int64
    let digestState: [UInt8]
  }

  private struct State {
    var offset: Int64
    var partEnd: Int64
    var digest: SHA256
    /// Ends of parts that are not known to be durable, first to last.
    var marks: [Mark] = []
    /// All bytes and the finish are on their way.
    var isFinished = false
  }

  private let stream: TypedStream<Hot<Memq_V1_WriteBodyRequest>, Memq_V1_WriteBodyResponse>
  private let state: Mutex<State>

  /// Opens the body at an uploader, going on at `offset`.
  ///
  /// - Parameter digest: of the bytes before `offset`.
  static func open(
    _ upload: Memq_V1_UploadRecord, at offset: Int64, digest: SHA256, cluster: any IngestCluster
  ) async throws(MemQError) -> BodyStream {
    let channel = try cluster.channel(.uploader, lane: .bodies)
    // What became durable is told and kept even when the put that brought it is over.
    var options = RPCCallOptions()
    options.inherits = false
    let stream = try await channel.openHot(UploaderMethods.writeBody, options)
    var start = Memq_V1_WriteBodyRequest()
    start.start.uploadID = upload.uploadID
    start.start.bodyKey = upload.bodyKey
    start.start.offset = offset
    try await stream.send(Hot(start))
    return BodyStream(stream, offset: offset, digest: digest)
  }

  private init(
    _ stream: TypedStream<Hot<Memq_V1_WriteBodyRequest>, Memq_V1_WriteBodyResponse>,
    offset: Int64, digest: SHA256
  ) {
    self.stream = stream
    self.state = Mutex(
      State(offset: offset, partEnd: PartSchedule.end(ofPartAt: offset), digest: digest))
  }

  /// The digest of everything written so far.
  var digest: [UInt8] { self.state.withLock { $0.digest.digest() } }

  /// Writes the next bytes. Whoever is cancelled meanwhile still waits for room: what came can become durable. `cancel`
  /// ends the wait.
  func write(_ bytes: RPCMessage) async throws(MemQError) {
    var rest = bytes
    while !rest.isEmpty {
      let (place, end) = self.state.withLock { ($0.offset, $0.partEnd) }
      // What was gathered before the size was known is larger than a chunk.
      let count = Int(min(Int64(min(rest.byteCount, Limits.fileChunkBytesMax)), end - place))
      let piece = count == rest.byteCount ? rest : rest.range(from: 0, count: count)
      rest =
        count == rest.byteCount
        ? RPCMessage() : rest.range(from: count, count: rest.byteCount - count)
      try await self.send(piece, at: place)
    }
  }

  private func send(_ piece: RPCMessage, at place: Int64) async throws(MemQError) {
    let endsPart: Bool = self.state.withLock { state in
      for index in 0..<piece.sliceCount {
        piece.slice(index).withUnsafeReadableBytes { state.digest.update($0) }
      }
      state.offset += Int64(piece.byteCount)
      guard state.offset == state.partEnd else { return false }
      state.marks.append(Mark(end: state.partEnd, digestState: state.digest.state))
      state.partEnd = PartSchedule.end(ofPartAt: state.partEnd)
      return true
    }
    var header = Memq_V1_WriteBodyRequest()
    header.chunkHeader.offset = place
    header.chunkHeader.crc32C = piece.crc32c().value
    header.chunkHeader.endOfPart = endsPart
    try await self.stream.sendShielded(Hot(header, payload: piece))
  }

  /// Makes the object whole; `nextDurable` then reports the end.
  func finish(size: Int64) async throws(MemQError) {
    var message = Memq_V1_WriteBodyRequest()
    message.finish.size = size
    try await self.stream.sendShielded(Hot(message))
    self.state.withLock { $0.isFinished = true }
    try await self.stream.halfClose()
  }

  enum Progress: Sendable {
    /// The last part end that is durable now.
    case part(Mark)
    /// The object is whole and durable under its key.
    case complete
  }

  /// Waits for the uploader's next news.
  ///
  /// - Throws: what the uploader ended with; `.unavailable` when it ended without completing.
  func nextDurable() async throws(MemQError) -> Progress {
    while let reply = try await self.stream.responses.next() {
      if reply.complete { return .complete }
      let mark: Mark? = self.state.withLock { state in
        let done = state.marks.prefix { $0.end <= reply.durableBelow }
        state.marks.removeFirst(done.count)
        return done.last
      }
      if let mark { return .part(mark) }
    }
    throw MemQError(.unavailable, "the uploader ended before the body was whole; retry")
  }

  /// No more bytes will come: the uploader tells what it made durable and ends; after `limit` the call is cancelled.
  func endUnfinished(within limit: Duration) {
    let stream = self.stream
    Task {
      do throws(MemQError) {
        try await stream.halfClose()
      } catch {
        // It is over already.
        return
      }
      try? await Task.sleep(for: limit)
      stream.cancel()
    }
  }

  /// The client is gone: a write that waits for room may still get it, for so long. A finished body needs nobody any more.
  func cancelUnfinished(after limit: Duration) {
    Task {
      try? await Task.sleep(for: limit)
      if !self.state.withLock({ $0.isFinished }) { self.cancel() }
    }
  }

  func cancel() { self.stream.cancel() }
}
