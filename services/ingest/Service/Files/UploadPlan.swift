// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQScreening

/// Where a file put stands. Raw values are those of memq.v1.UploadState.
enum UploadStage: Int, Equatable {
  case open = 1
  case sealed, judged, publishing, published, abandoned, quarantined
}

/// What to do next for a put whose bytes are all there. A rule: whoever takes the put over reaches the same answer. What
/// a topic's settings make of a verdict is `ScreeningPolicy`'s to say.
enum UploadPlan {
  enum Step: Equatable {
    /// Let a scanner judge it.
    case scan
    /// Nobody judges here, or the policy lets it pass: take this verdict down and go on to publish.
    case judge(Judgement)
    /// Bind its record (producer id and partition), then append it.
    case beginPublishing
    /// Append its record.
    case append
    /// Nothing to do: visible.
    case published
    /// Wait; somebody tries again later. With the reason for a person.
    case hold(reason: String)
    case quarantine(Judgement)
    /// Give it up, telling why.
    case refuse(MemQError)
  }

  enum Judgement: Equatable {
    /// The policy is off.
    case off
    /// As the scanner said.
    case scanned
    /// Above the scan limit: not scanned, "too large".
    case tooLarge
  }

  /// The next step of a put at `stage`.
  static func next(_ stage: UploadStage, size: Int64, settings: TopicSettings) -> Step {
    switch stage {
    case .open: return .hold(reason: "its bytes are not all there")
    case .sealed: return Self.beforeScan(size: size, settings: settings)
    case .judged: return .beginPublishing
    case .publishing: return .append
    case .published: return .published
    case .abandoned:
      return .refuse(
        MemQError(.uploadAbandoned, "the put was given up or refused; begin a new one"))
    case .quarantined:
      return .refuse(MemQError(.infected, "the file is in quarantine"))
    }
  }

  /// Whether a declared size can never be published: refused before its bytes are sent.
  ///
  /// - Throws: `.fileTooLarge`.
  static func checkDeclared(size: Int64, settings: TopicSettings) throws(MemQError) {
    guard ScreeningPolicy(settings).decide(declaredByteCount: size) == .refuse else { return }
    throw Self.tooLarge(size, settings)
  }

  private static func beforeScan(size: Int64, settings: TopicSettings) -> Step {
    switch ScreeningPolicy(settings).decide(declaredByteCount: size) {
    case nil: return .scan
    case .publish: return .judge(.off)
    case .passMarked: return .judge(.tooLarge)
    case .hold: return .hold(reason: "it is larger than scan.max.bytes")
    case .quarantine: return .quarantine(.tooLarge)
    case .refuse: return .refuse(Self.tooLarge(size, settings))
    }
  }

  private static func tooLarge(_ size: Int64, _ settings: TopicSettings) -> MemQError {
    MemQError(
      .fileTooLarge, "the topic takes no file above scan.max.bytes (scan.oversize is refuse)",
      limit: settings.scanBytesMax, actual: size)
  }

  /// The step after a scan.
  static func after(_ outcome: ScanOutcome, settings: TopicSettings) -> Step {
    switch ScreeningPolicy(settings).decide(outcome.said) {
    case .publish, .passMarked: return .judge(.scanned)
    case .quarantine: return .quarantine(.scanned)
    case .hold: return .hold(reason: "it could not be scanned: \(outcome.words)")
    case .refuse:
      return .refuse(
        MemQError(
          .fileTooLarge, "the file is too large for the scanner (scan.oversize is refuse)"))
    }
  }
}
