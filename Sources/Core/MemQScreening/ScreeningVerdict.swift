// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Why something could not be judged. Raw values are the words of memq.v1.Verdict.reason.
public enum NotScannedReason: String, Hashable, Sendable, CaseIterable {
  case tooLarge = "too large"
  case encrypted
  case timedOut = "timed out"
  case unsupported
  case engineError = "engine error"
}

/// What a scan said, with everything needed to judge it later.
public struct ScreeningVerdict: Hashable, Sendable {
  public enum Outcome: Hashable, Sendable {
    /// Read whole, nothing found. Never said of anything else.
    case clean
    case infected(signature: String)
    case notScanned(NotScannedReason)
  }

  public var outcome: Outcome
  /// Name and version: "yara 4.2.3".
  public var engine: String
  /// Digest of the rules the engine used.
  public var databaseVersion: String
  /// SHA-256 of the scanned bytes; empty when they were not read.
  public var sha256: [UInt8]
  /// Time the engine took.
  public var duration: Duration

  public init(
    _ outcome: Outcome, engine: String = "", databaseVersion: String = "", sha256: [UInt8] = [],
    duration: Duration = .zero
  ) {
    self.outcome = outcome
    self.engine = engine
    self.databaseVersion = databaseVersion
    self.sha256 = sha256
    self.duration = duration
  }
}
