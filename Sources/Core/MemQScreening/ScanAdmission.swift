// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Decides which scans run, which wait and which are sent away: first come, first served, within three bounds.
///
/// Invariants: running ≤ `runningMax`; waiting ≤ `waitingMax`; scratch of running scans ≤ `scratchBytesMax`.
/// A scan at the head that needs more scratch than is free holds the ones behind it back, so that a large body is
/// never starved by small ones.
public struct ScanAdmission: Sendable {
  public struct Limits: Hashable, Sendable {
    public var runningMax: Int
    public var waitingMax: Int
    public var scratchBytesMax: Int64

    public init(runningMax: Int, waitingMax: Int, scratchBytesMax: Int64) {
      self.runningMax = runningMax
      self.waitingMax = waitingMax
      self.scratchBytesMax = scratchBytesMax
    }
  }

  public typealias ScanID = UInt64

  public enum Event: Hashable, Sendable {
    /// A scan that needs so much scratch disk; 0 for bytes that ride along.
    case arrived(ScanID, scratchBytes: Int64)
    /// The caller gave up, or its deadline passed.
    case abandoned(ScanID)
    /// A running scan ended.
    case finished(ScanID)
  }

  public enum Effect: Hashable, Sendable {
    case start(ScanID)
    case refuse(ScanID, MemQError)
  }

  public let limits: Limits
  private var running: SortedMap<ScanID, Int64> = [:]
  private var waiting: [(id: ScanID, scratchBytes: Int64)] = []
  public private(set) var scratchBytes: Int64 = 0

  public init(_ limits: Limits) { self.limits = limits }

  public var runningCount: Int { self.running.count }
  public var waitingCount: Int { self.waiting.count }

  public mutating func handle(_ event: Event, into effects: inout [Effect]) {
    switch event {
    case .arrived(let id, let bytes):
      guard bytes <= self.limits.scratchBytesMax else {
        effects.append(.refuse(id, Self.tooLarge(bytes, self.limits)))
        return
      }
      guard self.waiting.count < self.limits.waitingMax else {
        effects.append(.refuse(id, Self.queueFull(self.limits)))
        return
      }
      self.waiting.append((id, bytes))
    case .abandoned(let id):
      self.waiting.removeAll { $0.id == id }
    case .finished(let id):
      if let bytes = self.running.removeValue(forKey: id) { self.scratchBytes -= bytes }
    }
    self.startWaiting(into: &effects)
  }

  private mutating func startWaiting(into effects: inout [Effect]) {
    while let head = self.waiting.first, self.running.count < self.limits.runningMax,
      self.scratchBytes + head.scratchBytes <= self.limits.scratchBytesMax
    {
      self.waiting.removeFirst()
      self.running[head.id] = head.scratchBytes
      self.scratchBytes += head.scratchBytes
      effects.append(.start(head.id))
    }
  }

  private static func tooLarge(_ bytes: Int64, _ limits: Limits) -> MemQError {
    MemQError(
      .resourceExhausted, "the body does not fit the scanner's scratch disk",
      subject: "scratch.bytes.max", limit: limits.scratchBytesMax, actual: bytes,
      isRetriable: false)
  }

  private static func queueFull(_ limits: Limits) -> MemQError {
    MemQError(
      .resourceExhausted, "too many scans wait", subject: "scan.queue.max",
      limit: Int64(limits.waitingMax), actual: Int64(limits.waitingMax) + 1)
  }
}
