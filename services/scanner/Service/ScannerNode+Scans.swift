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
        Array(buffer: request.payload.contiguous()), name: request.header.name)
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
