// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Why something could not be judged. Raw values are the words in `Verdict.reason` on the wire.
public enum NotScannedReason: String, Hashable, Sendable, CaseIterable {
  case tooLarge = "too large"
  case encrypted
  case timedOut = "timed out"
  case unsupported
  case engineError = "engine error"
}

/// What one engine says of one thing.
public enum Finding: Hashable, Sendable {
  /// Read whole, nothing found.
  case clean
  case infected(signature: String)
  case notScanned(NotScannedReason)
}

/// What the scanner says, with everything needed to judge it later.
public struct Verdict: Hashable, Sendable {
  public var finding: Finding
  /// Names and versions of the engines, as "yara 4.2.3".
  public var engine: String
  /// Digest of the rules they used.
  public var databaseVersion: String
  /// Digest of the scanned bytes; empty when they were not read.
  public var sha256: [UInt8]
  public var duration: Duration

  public init(
    finding: Finding, engine: String, databaseVersion: String, sha256: [UInt8], duration: Duration
  ) {
    self.finding = finding
    self.engine = engine
    self.databaseVersion = databaseVersion
    self.sha256 = sha256
    self.duration = duration
  }
}

extension Finding {
  /// Several engines' findings as one: anything found counts; clean only when every engine read it whole.
  ///
  /// Without an engine nothing was read, so nothing is clean.
  public static func combined(_ findings: [Finding]) -> Finding {
    var result: Finding = findings.isEmpty ? .notScanned(.engineError) : .clean
    for finding in findings {
      switch (result, finding) {
      case (.infected, _): return result
      case (_, .infected): return finding
      case (.notScanned, _): break
      case (.clean, .notScanned), (.clean, .clean): result = finding
      }
    }
    return result
  }
}
