// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRPC
import MemQRecords
import MemQRuntime
import MemQScreening
import NIOCore

/// The gate in front of topics with `scan.policy=gate`: everything in a batch that its producer chose is judged before the
/// batch may be appended: keys, values, names and values of headers.
///
/// Each of these parts is judged by itself, so that a rule that looks at the start or the size of a file works on it.
/// They travel together: a batch costs one call, or a few when it is large.
struct RecordGate: Sendable {
  let scans: ScanCalls
  let quarantine: RecordQuarantine

  /// - Throws: `.infected` with the signature's name, `.notScanned` or `.scanHeld` as the topic's policy says, or why the
  ///   records can't be read.
  func check(
    _ batch: RPCMessage, of partition: TopicPartition, name: String, settings: TopicSettings
  ) async throws(MemQError) {
    var parts = ScanParts()
    try batch.contiguous().withBytes { bytes throws(MemQError) in
      try RecordBatch.forEachPart(bytes) { parts.add($0) }
    }
    let policy = ScreeningPolicy(settings)
    for call in parts.finish() {
      let answer = await self.scans.parts(call, name: name)
      do throws(MemQError) {
        try Self.enforce(answer.outcome, policy, name: name)
      } catch {
        guard error.code == .infected else { throw error }
        var named = error
        let copy = await self.quarantine.keep(
          batch, of: partition, name: name, verdict: answer.verdict)
        named.message += copy.map { "; a copy is in quarantine: \($0)" } ?? "; no copy was kept"
        throw named
      }
    }
  }

  /// A batch is let through or refused; it can't be held: its producer has it and hears why.
  private static func enforce(
    _ outcome: ScanOutcome, _ policy: ScreeningPolicy, name: String
  ) throws(MemQError) {
    switch policy.decide(outcome.said) {
    case .publish, .passMarked: return
    case .hold:
      // Records can't wait outside the log; their producer can.
      throw MemQError(
        .scanHeld,
        "a record could not be scanned (\(outcome.words)); nothing was appended, retry later",
        subject: name)
    case .refuse:
      throw MemQError(
        .notScanned, "a record could not be scanned (\(outcome.words)); nothing was appended",
        subject: name)
    case .quarantine:
      guard case .infected(let signature) = outcome.said else {
        throw MemQError(
          .notScanned, "a record could not be scanned (\(outcome.words)); nothing was appended",
          subject: name)
      }
      throw MemQError(
        .infected, "a record holds malware: \(signature); nothing was appended", subject: name)
    }
  }
}
