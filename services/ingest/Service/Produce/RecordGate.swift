// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRPC
import MemQRecords
import MemQRuntime
import NIOCore

/// The gate in front of topics with `scan.policy=gate`: every value of a batch is judged, each on its own, before the
/// batch may be appended.
struct RecordGate: Sendable {
  /// Values of one batch being judged at a time.
  static let concurrencyMax = 8

  let scans: ScanCalls

  /// - Throws: `.infected` with the signature's name, `.notScanned` or `.scanHeld` as the topic's policy says, or why the
  ///   records can't be read.
  func check(_ batch: RPCMessage, name: String, settings: TopicSettings) async throws(MemQError) {
    var values: [ByteBuffer] = []
    try batch.contiguous().withBytes { bytes throws(MemQError) in
      try RecordBatch.forEachValue(bytes) { value in
        if let value, !value.isEmpty { values.append(ByteBuffer(bytes: value)) }
      }
    }
    let outcomes = await self.judge(values, name: name)
    for outcome in outcomes { try Self.enforce(outcome, name: name, settings: settings) }
  }

  private func judge(_ values: [ByteBuffer], name: String) async -> [ScanOutcome] {
    await withTaskGroup(of: ScanOutcome.self) { group in
      var outcomes: [ScanOutcome] = []
      var next = 0
      while next < values.count || outcomes.count < next {
        if next < values.count, next - outcomes.count < Self.concurrencyMax {
          let value = values[next]
          next += 1
          group.addTask { await self.scans.bytes(RPCMessage(value), name: name).outcome }
        } else if let outcome = await group.next() {
          outcomes.append(outcome)
          if case .infected = outcome { group.cancelAll() }
        }
      }
      return outcomes
    }
  }

  private static func enforce(
    _ outcome: ScanOutcome, name: String, settings: TopicSettings
  ) throws(MemQError) {
    switch outcome {
    case .clean: return
    case .infected(let signature):
      throw MemQError(
        .infected, "a record holds malware: \(signature); nothing was appended", subject: name)
    case .notScanned(let reason):
      switch settings.scanNotScanned {
      case .passMarked: return
      case .hold:
        // Records can't wait outside the log; their producer can.
        throw MemQError(
          .scanHeld, "a record could not be scanned (\(reason)); nothing was appended, retry later",
          subject: name)
      case .quarantine:
        throw MemQError(
          .notScanned, "a record could not be scanned (\(reason)); nothing was appended",
          subject: name)
      }
    }
  }
}
