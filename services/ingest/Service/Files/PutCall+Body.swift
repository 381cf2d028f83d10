// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQObjectStore
import MemQRPC
import MemQRuntime
import MemQSystem
import Synchronization

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// The put's record in metadata while its body is being written: one owner, changed by one call at a time.
actor BodyRecord {
  private(set) var upload: Memq_V1_UploadRecord
  private let uploads: UploadCalls

  init(_ upload: Memq_V1_UploadRecord, _ uploads: UploadCalls) {
    self.upload = upload
    self.uploads = uploads
  }

  /// Changes the record in metadata by compare-and-set. Callers follow one another: the part's end, then the seal.
  func change(
    _ body: @Sendable (inout Memq_V1_UploadRecord) -> Void
  ) async throws(MemQError) -> Memq_V1_UploadRecord {
    var next = self.upload
    body(&next)
    self.upload = try await self.uploads.advance(next)
    return self.upload
  }
}

extension PutCall {
  // MARK: Larger files

  /// Goes on with a put that metadata knows.
  func resume(_ start: Start, _ known: Memq_V1_UploadRecord) async throws(MemQError) {
    try self.checkSame(known, start)
    guard let stage = known.stage else {
      throw MemQError(.internalError, "a put of unknown state", subject: known.label)
    }
    switch stage {
    case .abandoned:
      throw MemQError(
        .uploadAbandoned, "the put was given up (\(known.reason)); begin a new one",
        subject: start.name)
    case .open:
      let digest = known.offset == 0 ? SHA256() : try SHA256(state: [UInt8](known.digestState))
      let mine = try await self.takeOver(known)
      try await self.tell(.beginAt(mine.offset))
      try await self.body(
        start, mine, digest, PutProgress(declaredSize: start.size, begin: mine.offset),
        gathered: RPCMessage())
    case .sealed, .judged, .publishing, .published, .quarantined:
      try await self.tell(.beginAt(known.offset))
      var progress = PutProgress(declaredSize: known.offset, begin: known.offset)
      guard case .finish(let finish) = try await self.chunkOrFinish(&progress) else {
        throw MemQError(
          .uploadOffsetMismatch, "all bytes of the put are there", limit: known.offset,
          actual: progress.offset)
      }
      try Self.compare([UInt8](known.sha256), finish)
      try await self.complete(known, finish)
    }
  }

  /// Makes this ingest the put's driver.
  ///
  /// - Throws: `.uploadInProgress` while another one is.
  private func takeOver(
    _ known: Memq_V1_UploadRecord
  ) async throws(MemQError) -> Memq_V1_UploadRecord {
    let me = self.context.cluster.nodeID
    let image = self.context.cluster.image
    let idle = Duration.milliseconds(
      max(0, self.context.service.clock.wall.milliseconds - known.updatedAtMs))
    guard
      UploadOwnership.mayTake(
        driver: known.driver == 0 ? nil : NodeID(known.driver), me: me, isDrivenHere: false,
        idle: idle, isLive: { image.nodes[$0]?.state.isLive == true })
    else {
      throw MemQError(
        .uploadInProgress, "another ingest works on this put; retry in a moment",
        subject: known.label, actual: Int64(known.driver))
    }
    var mine = known
    mine.driver = me.rawValue
    do throws(MemQError) {
      return try await self.context.uploads.advance(mine)
    } catch {
      guard error.code == .revisionConflict else { throw error }
      throw MemQError(
        .uploadInProgress, "another stream goes on with this put; retry in a moment",
        subject: known.label)
    }
  }

  /// Begins a new put with a body of its own.
  ///
  /// - Parameter gathered: bytes that came before it was clear that they are too many to ride inline.
  func openBody(_ start: Start, gathered: RPCMessage) async throws(MemQError) {
    var upload = start.record(.open)
    upload.bodyKey = ObjectKey.body(start.id, topic: start.topic.id).text
    upload.driver = self.context.cluster.nodeID.rawValue
    let known = try await self.context.uploads.create(upload)
    try self.checkSame(known, start)
    guard known.stage == .open, known.offset == 0 else {
      // Somebody else made it in just this moment.
      throw MemQError(
        .uploadInProgress, "another stream began this put; retry in a moment", subject: known.label)
    }
    var progress = PutProgress(declaredSize: start.size, begin: 0)
    if gathered.isEmpty {
      try await self.tell(.beginAt(0))
    } else {
      progress = PutProgress(declaredSize: start.size, begin: Int64(gathered.byteCount))
    }
    try await self.body(start, known, SHA256(), progress, gathered: gathered)
  }

  /// Passes the body on until it is whole, then ends the put.
  private func body(
    _ start: Start, _ upload: Memq_V1_UploadRecord, _ digest: SHA256, _ progress: PutProgress,
    gathered: RPCMessage
  ) async throws(MemQError) {
    let record = BodyRecord(upload, self.context.uploads)
    let finish: Memq_V1_PutFinish
    do throws(MemQError) {
      let stream = try await BodyStream.open(
        upload, at: upload.offset, digest: digest, cluster: self.context.cluster)
      finish = try await self.transfer(stream, record, progress, gathered)
    } catch {
      await self.letGo(record, error)
      throw error
    }
    try await self.complete(await record.upload, finish)
  }

  /// The stream broke: who resumes need not wait for us. Bytes that can never be right are given up.
  private func letGo(_ record: BodyRecord, _ error: MemQError) async {
    // Not a child: the call may be cancelled already.
    await RPCScope.beyondCall {
      Task {
        switch error.code {
        case .digestMismatch, .fileTooLarge:
          await self.context.driver.abandon(await record.upload, reason: error.message)
        default:
          // A conflict means that somebody has taken it over already.
          _ = try? await record.change { $0.driver = 0 }
        }
      }
    }.value
  }

  /// How long an uploader may take, once the client is gone, to tell what became durable.
  private static let drainMax = Duration.seconds(5)

  private func transfer(
    _ stream: BodyStream, _ record: BodyRecord, _ progress: PutProgress, _ gathered: RPCMessage
  ) async throws(MemQError) -> Memq_V1_PutFinish {
    typealias Sent = (finish: Memq_V1_PutFinish, digest: [UInt8], size: Int64)
    enum Side: Sendable {
      case sender(Result<Sent, MemQError>)
      case acknowledger(Result<Void, MemQError>)
    }
    // Not a child: what became durable is stored even when the client is gone and its call cancelled.
    let acknowledging = RPCScope.beyondCall {
      Task {
        await Result { () async throws(MemQError) in try await self.acknowledge(stream, record) }
      }
    }
    let result: Result<Sent, MemQError> = await withTaskCancellationHandler {
      await withTaskGroup(of: Side.self) { group in
        group.addTask {
          .sender(
            await Result { () async throws(MemQError) in
              try await self.send(stream, progress, gathered)
            })
        }
        group.addTask { .acknowledger(await acknowledging.value) }
        var sent: Sent?
        var failure: MemQError?
        for await side in group {
          switch side {
          case .sender(.success(let value)): sent = value
          case .sender(.failure(let error)):
            failure = failure ?? error
            stream.endUnfinished(within: Self.drainMax)
          case .acknowledger(.success): break
          case .acknowledger(.failure(let error)):
            failure = failure ?? error
            // First the stream: a write that waits for room sees nothing else.
            stream.cancel()
            group.cancelAll()
          }
        }
        if let failure { return .failure(failure) }
        guard let sent else {
          return .failure(MemQError(.internalError, "a body ended without its finish"))
        }
        return .success(sent)
      }
    } onCancel: {
      stream.cancelUnfinished(after: Self.drainMax)
    }
    stream.cancel()
    let (finish, digest, size) = try result.get()
    _ = try await record.change {
      $0.state = .sealed
      $0.offset = size
      $0.sha256 = Data(digest)
      $0.digestState = Data()
    }
    return finish
  }

  private func send(
    _ stream: BodyStream, _ progress: PutProgress, _ gathered: RPCMessage
  ) async throws(MemQError) -> (Memq_V1_PutFinish, [UInt8], Int64) {
    var progress = progress
    if !gathered.isEmpty { try await stream.write(gathered) }
    while true {
      switch try await self.chunkOrFinish(&progress) {
      case .chunk(let bytes): try await stream.write(bytes)
      case .finish(let finish):
        let digest = stream.digest
        try Self.compare(digest, finish)
        try await stream.finish(size: progress.offset)
        return (finish, digest, progress.offset)
      }
    }
  }

  /// Stores each durable part's end with the digest's state there, then tells the client, if it is still there.
  private func acknowledge(_ stream: BodyStream, _ record: BodyRecord) async throws(MemQError) {
    var isHeard = true
    while case .part(let mark) = try await stream.nextDurable() {
      _ = try await record.change {
        $0.offset = mark.end
        $0.digestState = Data(mark.digestState)
      }
      guard isHeard else { continue }
      do throws(MemQError) {
        try await self.tell(.durableBelow(mark.end))
      } catch {
        // The sender's side learns why; parts still on their way are stored all the same.
        isHeard = false
      }
    }
  }
}
