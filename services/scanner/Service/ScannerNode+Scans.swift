// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQEngines
import MemQModel
import MemQObjectStore
import MemQRPC
import SwiftProtobuf
import MemQScreening
import NIOCore

extension ScannerNode {
  func registerScans(on router: inout RPCRouter) {
    router.handleHot(ScannerMethods.scanBytes) { request, _ in
      let verdict = try await self.scan(
        request.payload, parts: try Self.parts(request), name: request.header.name)
      return Self.response(verdict)
    }
    router.handle(ScannerMethods.scanBody) { request, _ in
      Self.response(try await self.scan(try Self.body(request)))
    }
    router.handle(ScannerMethods.status) { _, _ in
      let running = try self.whileRunning()
      return self.status(running.engine.status)
    }
  }

  /// Parts of one call: their bookkeeping stays small beside the bytes.
  private static let partsMax = 200_000

  private static func parts(_ request: Hot<Memq_V1_ScanBytesRequest>) throws(MemQError) -> [Int] {
    let byteCount = request.payload.byteCount
    let sizes = request.header.partSizes
    guard !sizes.isEmpty else { return [byteCount] }
    guard sizes.count <= Self.partsMax else {
      throw MemQError(
        .invalidArgument, "too many parts in one call", subject: "part_sizes",
        limit: Int64(Self.partsMax), actual: Int64(sizes.count))
    }
    var left = Int64(byteCount)
    for size in sizes {
      guard size >= 0, size <= left else {
        throw MemQError(
          .invalidArgument, "the parts are larger than the content", subject: "part_sizes",
          limit: left, actual: size)
      }
      left -= size
    }
    guard left == 0 else {
      // What no part covers would be judged by nobody.
      throw MemQError(
        .invalidArgument, "the parts are smaller than the content", subject: "part_sizes",
        limit: Int64(byteCount), actual: Int64(byteCount) - left)
    }
    return sizes.map { Int($0) }
  }

  private static func body(_ request: Memq_V1_ScanBodyRequest) throws(MemQError) -> BodyScan {
    guard request.size >= 0, request.sha256.count == 32, request.maxBytes > 0 else {
      throw MemQError(
        .invalidArgument, "a body has a size, a SHA-256 of 32 bytes and a limit above 0",
        subject: request.name)
    }
    return BodyScan(
      key: try ObjectKey(request.bodyKey), byteCount: request.size,
      byteCountMax: request.maxBytes, name: request.name, sha256: Array(request.sha256))
  }

  private static func response(_ verdict: ScreeningVerdict) -> Memq_V1_ScanResponse {
    .with {
      $0.verdict.engine = verdict.engine
      $0.verdict.databaseVersion = verdict.databaseVersion
      $0.verdict.sha256 = .init(verdict.sha256)
      $0.verdict.durationMs = verdict.duration.milliseconds
      switch verdict.outcome {
      case .clean: $0.verdict.kind = .clean
      case .infected(let signature):
        $0.verdict.kind = .infected
        $0.verdict.signature = signature
      case .notScanned(let reason):
        $0.verdict.kind = .notScanned
        $0.verdict.reason = reason.rawValue
      }
    }
  }

  private func status(_ engine: EngineStatus) -> Memq_V1_ScanStatusResponse {
    let (running, waiting, scratch) = self.desk.counts
    let counts = self.tally.counts
    return .with {
      $0.engines = [
        .with {
          $0.name = engine.name
          $0.databaseVersion = engine.databaseVersion
          $0.rules = Int64(engine.rules)
          $0.ready = engine.isReady
          $0.problem = engine.problem
        }
      ]
      $0.queued = Int64(waiting)
      $0.running = Int64(running)
      $0.clean = counts.clean
      $0.infected = counts.infected
      $0.notScanned = counts.notScanned
      $0.scannedBytes = counts.bytes
      $0.scratchUsedBytes = scratch
      $0.scratchMaxBytes = self.configuration.scratchBytesMax
    }
  }
}
