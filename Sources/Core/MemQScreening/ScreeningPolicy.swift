// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// What becomes of something that was judged, or could not be, by its topic's settings. One table:
///
/// | `scan.policy` | outcome                 | decided by         | becomes                          |
/// |---------------|-------------------------|--------------------|----------------------------------|
/// | off           | (nobody looks)          |                    | published                        |
/// | gate          | clean                   |                    | published                        |
/// | gate          | infected                |                    | quarantined                      |
/// | gate          | not scanned: too large  | `scan.oversize`    | refused, held or marked          |
/// | gate          | not scanned: any other  | `scan.not.scanned` | held, marked or quarantined      |
public struct ScreeningPolicy: Hashable, Sendable {
  public enum Decision: Hashable, Sendable {
    case publish
    /// Published with the verdict "not scanned" on it.
    case passMarked
    /// Waits until a scanner can judge it.
    case hold
    case quarantine
    case refuse
  }

  public var scan: TopicSettings.ScanPolicy
  public var notScanned: TopicSettings.NotScannedPolicy
  public var oversize: TopicSettings.OversizePolicy
  /// Larger ones are not scanned, bytes.
  public var bytesMax: Int64

  public init(
    scan: TopicSettings.ScanPolicy, notScanned: TopicSettings.NotScannedPolicy = .hold,
    oversize: TopicSettings.OversizePolicy = .refuse, bytesMax: Int64 = Int64(Int32.max)
  ) {
    self.scan = scan
    self.notScanned = notScanned
    self.oversize = oversize
    self.bytesMax = bytesMax
  }

  public init(_ settings: TopicSettings) {
    self.init(
      scan: settings.scanPolicy, notScanned: settings.scanNotScanned,
      oversize: settings.scanOversize, bytesMax: settings.scanBytesMax)
  }

  /// What becomes of it.
  public func decide(_ outcome: ScreeningVerdict.Outcome) -> Decision {
    switch (self.scan, outcome) {
    case (.off, _): .publish
    case (.gate, .clean): .publish
    case (.gate, .infected): .quarantine
    case (.gate, .notScanned(.tooLarge)):
      switch self.oversize {
      case .refuse: .refuse
      case .hold: .hold
      case .passMarked: .passMarked
      }
    case (.gate, .notScanned(.encrypted)), (.gate, .notScanned(.timedOut)),
      (.gate, .notScanned(.unsupported)), (.gate, .notScanned(.engineError)):
      switch self.notScanned {
      case .hold: .hold
      case .passMarked: .passMarked
      case .quarantine: .quarantine
      }
    }
  }

  /// What is known of it by its declared size alone, before a byte is taken; nil: it must be judged first.
  public func decide(declaredByteCount: Int64) -> Decision? {
    switch self.scan {
    case .off: .publish
    case .gate: declaredByteCount > self.bytesMax ? self.decide(.notScanned(.tooLarge)) : nil
    }
  }
}
