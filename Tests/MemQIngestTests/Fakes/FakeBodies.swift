// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQObjectStore
import MemQRPC
import NIOCore
import SwiftProtobuf
import Synchronization

@testable import MemQIngestService

/// Writes bodies into a folder store, as an uploader does, and can break off.
final class FakeUploader: Sendable {
  private let store: any ObjectStore
  private let breaksAfter = Mutex<Int64?>(nil)
  private let stall = Mutex<(after: Int64, until: Outcome<Void>)?>(nil)
  private let deletedKeys = Mutex<[String]>([])

  init(store: any ObjectStore) { self.store = store }

  /// Ends the next body's stream once so many bytes are durable.
  func breakOnce(after bytes: Int64) { self.breaksAfter.withLock { $0 = bytes } }
  /// Stops reading the next body once so many bytes came, until the returned outcome is set.
  func stallOnce(after bytes: Int64) -> Outcome<Void> {
    let until = Outcome<Void>()
    self.stall.withLock { $0 = (bytes, until) }
    return until
  }
  var deleted: [String] { self.deletedKeys.withLock { $0 } }

  func register(on router: inout RPCRouter) {
    router.handleHotBidirectional(UploaderMethods.writeBody) { reader, _, writer in
      guard let first = try await reader.next(), case .start(let start)? = first.header.part else {
        throw MemQError(.invalidArgument, "a body begins with a start")
      }
      let body = try await self.store.openBody(
        try ObjectKey(start.bodyKey), from: start.offset, timeout: .seconds(60))
      do {
        try await self.write(body, reader, writer)
      } catch {
        await body.close()
        throw error
      }
    }
    router.handle(UploaderMethods.deleteBody) { request, _ in
      try await self.store.delete(try ObjectKey(request.bodyKey), timeout: .seconds(60))
      self.deletedKeys.withLock { $0.append(request.bodyKey) }
      return Memq_V1_DeleteBodyResponse()
    }
  }

  private func write(
    _ body: any ObjectBodyWriter, _ reader: TypedReader<Hot<Memq_V1_WriteBodyRequest>>,
    _ writer: TypedWriter<Memq_V1_WriteBodyResponse>
  ) async throws(MemQError) {
    var received: Int64 = 0
    while let message = try await reader.next() {
      received += Int64(message.payload.byteCount)
      let until = self.stall.withLock { stall -> Outcome<Void>? in
        guard let known = stall, received >= known.after else { return nil }
        stall = nil
        return known.until
      }
      if let until { _ = await until.wait(.seconds(120)) }
      switch message.header.part {
      case .chunkHeader(let header):
        guard message.payload.byteCount <= Limits.fileChunkBytesMax else {
          throw MemQError(.messageTooLarge, "a chunk is not so large")
        }
        try await body.write(message.payload.slices, timeout: .seconds(60))
        guard header.endOfPart else { continue }
        try await body.sync(timeout: .seconds(60))
        let durable = await body.durableByteCount
        try await writer.send(.with { $0.durableBelow = durable })
        let breaks = self.breaksAfter.withLock { limit in
          guard let at = limit, durable >= at else { return false }
          limit = nil
          return true
        }
        if breaks { throw MemQError(.unavailable, "the uploader went away") }
      case .finish(let finish):
        try await body.finish(byteCount: finish.size, timeout: .seconds(60))
        try await writer.send(
          .with {
            $0.durableBelow = finish.size
            $0.complete = true
          })
      case .start, nil: throw MemQError(.invalidArgument, "no second start")
      }
    }
  }
}

/// Finds the word EVIL.
final class FakeScanner: Sendable {
  private let store: any ObjectStore
  private let isAway = Mutex(false)
  private let scanCount = Mutex(0)
  private let refusalCount = Mutex(0)

  init(store: any ObjectStore) { self.store = store }

  func setAway(_ away: Bool) { self.isAway.withLock { $0 = away } }
  var scans: Int { self.scanCount.withLock { $0 } }
  /// Scans asked for while it was away.
  var refusals: Int { self.refusalCount.withLock { $0 } }

  func register(on router: inout RPCRouter) {
    router.handleHot(ScannerMethods.scanBytes) { request, _ in
      try self.judge(Array(request.payload.contiguous().readableBytesView))
    }
    router.handle(ScannerMethods.scanBody) { request, _ in
      let end = min(request.size, 1 << 20)
      let head = try await self.store.get(
        try ObjectKey(request.bodyKey), range: 0..<end, timeout: .seconds(60))
      return try self.judge(Array(head.readableBytesView))
    }
  }

  private func judge(_ bytes: [UInt8]) throws(MemQError) -> Memq_V1_ScanResponse {
    guard !self.isAway.withLock({ $0 }) else {
      self.refusalCount.withLock { $0 += 1 }
      throw MemQError(.unavailable, "no engine")
    }
    self.scanCount.withLock { $0 += 1 }
    let isEvil = String(decoding: bytes, as: UTF8.self).contains("EVIL")
    return .with {
      $0.verdict.kind = isEvil ? .infected : .clean
      $0.verdict.signature = isEvil ? "Test.Evil" : ""
      $0.verdict.engine = "fake 1"
    }
  }
}
