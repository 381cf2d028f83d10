// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime
import SwiftProtobuf

/// Asks scanners. What they can't be asked, or don't answer, is "not scanned", never clean.
struct ScanCalls: Sendable {
  /// What a scanner said, as the wire has it.
  struct Answer: Sendable {
    var verdict: Memq_V1_Verdict
    /// No scanner was there to look at it; one may be back in a moment.
    var isNobodyThere = false

    init(_ verdict: Memq_V1_Verdict) { self.verdict = verdict }

    init(notScanned reason: String) {
      self.verdict = .with {
        $0.kind = .notScanned
        $0.reason = reason
      }
    }

    var outcome: ScanOutcome { ScanOutcome(self.verdict) }
  }

  let cluster: any IngestCluster
  let permits: Permits
  let bytesTimeout: Duration
  let bodyTimeout: Duration

  /// Judges bytes that ride along.
  func bytes(_ content: RPCMessage, name: String) async -> Answer {
    var header = Memq_V1_ScanBytesRequest()
    header.name = name
    return await self.bytes(Hot(header, payload: content))
  }

  private func bytes(_ request: Hot<Memq_V1_ScanBytesRequest>) async -> Answer {
    let options = Self.options(self.bytesTimeout)
    return await self.ask { channel throws(MemQError) in
      try await channel.callHot(ScannerMethods.scanBytes, request, options)
    }
  }

  /// Judges parts that ride along, each by itself.
  func parts(_ parts: ScanParts.Call, name: String) async -> Answer {
    var header = Memq_V1_ScanBytesRequest()
    header.name = name
    header.partSizes = parts.sizes
    return await self.bytes(Hot(header, payload: RPCMessage(parts.content)))
  }

  /// Judges a body in the object store.
  func body(_ request: Memq_V1_ScanBodyRequest) async -> Answer {
    let options = Self.options(self.bodyTimeout)
    return await self.ask { channel throws(MemQError) in
      try await channel.call(ScannerMethods.scanBody, request, options)
    }
  }

  /// A scan that ran out of time is a judgement, and it stays: only our own time may make it, never a caller's who is in a hurry.
  private static func options(_ timeout: Duration) -> RPCCallOptions {
    var options = RPCCallOptions(timeout: timeout)
    options.inherits = false
    return options
  }

  private func ask(
    _ call: @Sendable (any RPCChannel) async throws(MemQError) -> Memq_V1_ScanResponse
  ) async -> Answer {
    do throws(MemQError) {
      let response = try await self.permits.with { () async throws(MemQError) in
        try await call(try self.cluster.channel(.scanner, lane: .append))
      }
      guard response.hasVerdict else { return Answer(notScanned: "engine error") }
      return Answer(response.verdict)
    } catch {
      switch error.code {
      case .deadlineExceeded: return Answer(notScanned: "timed out")
      case .messageTooLarge: return Answer(notScanned: "too large")
      case .unavailable, .shuttingDown:
        var answer = Answer(notScanned: "engine error: \(error.message)")
        answer.isNobodyThere = true
        return answer
      default: return Answer(notScanned: "engine error: \(error.message)")
      }
    }
  }
}
