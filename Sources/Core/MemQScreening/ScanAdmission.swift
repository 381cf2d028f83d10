// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Who may scan now: so many at a time, so many that wait, and a scratch disk that is never overdrawn.
///
/// Scratch room is taken when a scan is admitted, not when it starts: what waits is sure to run.
public struct ScanAdmission: Sendable {
  public struct Configuration: Hashable, Sendable {
    /// Scans at a time: one for each engine thread.
    public var runningMax: Int
    /// Scans that wait; more are turned away. 256 inline bodies of 16 MiB at most wait in their callers' windows.
    public var waitingMax: Int
    /// Scratch disk for bodies, bytes.
    public var scratchBytesMax: Int64
    public init(runningMax: Int = 2, waitingMax: Int = 256, scratchBytesMax: Int64 = 8 << 30) {
      self.runningMax = runningMax
      self.waitingMax = waitingMax
      self.scratchBytesMax = scratchBytesMax
    }
  }

  public typealias ScanID = UInt64

  public enum Answer: Hashable, Sendable {
    case start
    /// `end` or `cancel` of another one will name it.
    case wait
    /// It never fits the scratch disk: not scanned, "too large".
    case tooLarge
    /// `.resourceExhausted`, to be tried again.
    case refuse(MemQError)
  }

  public let configuration: Configuration
  /// Scratch bytes of those that run or wait.
  public private(set) var scratchBytes: Int64 = 0
  private var running: SortedMap<ScanID, Int64> = [:]
  private var waiting: [(id: ScanID, scratchBytes: Int64)] = []

  public init(configuration: Configuration = Configuration()) {
    self.configuration = configuration
  }

  public var runningCount: Int { self.running.count }
  public var waitingCount: Int { self.waiting.count }

  public func isWaiting(_ id: ScanID) -> Bool { self.waiting.contains { $0.id == id } }

  /// - Parameters:
  ///   - id: new.
  ///   - scratchBytes: what it will put on the scratch disk; 0 for bytes in memory.
  public mutating func request(_ id: ScanID, scratchBytes: Int64) -> Answer {
    guard scratchBytes <= self.configuration.scratchBytesMax else { return .tooLarge }
    let mustWait = self.running.count >= self.configuration.runningMax || !self.waiting.isEmpty
    guard !mustWait || self.waiting.count < self.configuration.waitingMax else {
      return .refuse(
        MemQError(
          .resourceExhausted, "too many scans wait; try again", subject: "scan queue",
          limit: Int64(self.configuration.waitingMax), actual: Int64(self.waiting.count) + 1))
    }
    guard self.scratchBytes + scratchBytes <= self.configuration.scratchBytesMax else {
      return .refuse(
        MemQError(
          .resourceExhausted, "the scratch disk is full; try again", subject: "scan scratch",
          limit: self.configuration.scratchBytesMax, actual: self.scratchBytes + scratchBytes))
    }
    self.scratchBytes += scratchBytes
    guard mustWait else {
      self.running[id] = scratchBytes
      return .start
    }
    self.waiting.append((id, scratchBytes))
    return .wait
  }

  /// A scan is over, or its caller went before it started.
  ///
  /// - Returns: those that start now.
  public mutating func end(_ id: ScanID) -> [ScanID] {
    if let bytes = self.running.removeValue(forKey: id) {
      self.scratchBytes -= bytes
    } else if let index = self.waiting.firstIndex(where: { $0.id == id }) {
      self.scratchBytes -= self.waiting.remove(at: index).scratchBytes
    }
    var started: [ScanID] = []
    while self.running.count < self.configuration.runningMax, !self.waiting.isEmpty {
      let next = self.waiting.removeFirst()
      self.running[next.id] = next.scratchBytes
      started.append(next.id)
    }
    return started
  }
}
