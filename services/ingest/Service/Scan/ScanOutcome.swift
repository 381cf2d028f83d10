// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQScreening

/// What a scan said, for the rules and for a person.
struct ScanOutcome: Equatable {
  var said: ScreeningVerdict.Outcome
  /// The signature, or why it was not scanned; empty when clean.
  var words: String

  static let clean = Self(said: .clean, words: "")

  static func infected(signature: String) -> Self {
    Self(said: .infected(signature: signature), words: signature)
  }

  /// - Parameter words: those of `NotScannedReason`, or any other ones, which count as a failing engine.
  static func notScanned(_ words: String) -> Self {
    Self(said: .notScanned(NotScannedReason(rawValue: words) ?? .engineError), words: words)
  }

  init(said: ScreeningVerdict.Outcome, words: String) {
    self.said = said
    self.words = words
  }

  init(_ verdict: Memq_V1_Verdict) {
    switch verdict.kind {
    case .clean: self = .clean
    case .infected: self = .infected(signature: verdict.signature)
    case .notScanned, .off, .unspecified, .UNRECOGNIZED:
      self = .notScanned(verdict.reason.isEmpty ? "no verdict" : verdict.reason)
    }
  }
}
