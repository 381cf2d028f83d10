// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Who may scan now: so many at a time, so many that wait, and a scratch disk and memory that are never overdrawn.
///
/// Room is taken when a scan is admitted, not when it starts: what waits is sure to run.
public struct ScanAdmission: Sendable {
  public struct Configuration: Hashable, Sendable {
    /// Scans at a time: one for each engine thread.
    public var runningMax: Int
    /// Scans that wait; more are turned away.
    public var waitingMax: Int
    /// Scratch disk for bodies, bytes.
    public var scratchBytesMax: Int64
    /// Memory for bytes that ride along, of scans that run or wait.
    public var memoryBytesMax: Int64
    public init(
      runningMax: Int = 2, waitingMax: Int = 256, scratchBytesMax: Int64 = 8 << 30,
      memoryBytesMax: Int64 = 256 << 20
    ) {
      self.runningMax = runningMax
      self.waitingMax = waitingMax
      self.scratchBytesMax = scratchBytesMax
      self.memoryBytesMax = memoryBytesMax
    }
  }

  public typealias ScanID = UInt64

  private struct Charge {
    var scratchBytes: Int64
    var memoryBytes: Int64
  }

  public enum Answer: Hashable, Sendable {
    case start
    /// `end` or `cancel` of another one will name it.
    case wait
    /// It never fits the scratch disk, or memory: not scanned, "too large".
    case tooLarge
    /// `.resourceExhausted`, to be tried again.
    case refuse(MemQError)
  }

  public let configuration: Configuration
  /// Scratch bytes of those that run or wait.
  public private(set) var scratchBytes: Int64 = 0
  /// Bytes in memory of those that run or wait.
  public private(set) var memoryBytes: Int64 = 0
  private var running: SortedMap<ScanID, Charge> = [:]
  private var waiting: [(id: ScanID, charge: Charge)] = []

  public init(configuration: Configuration = Configuration()) {
    self.configuration = configuration
  }

  public var runningCount: Int { self.running.count }
  public var waitingCount: Int { self.waiting.count }

  public func isWaiting(_ id: ScanID) -> Bool { self.waiting.contains { $0.id == id } }

  /// - Parameters:
  ///   - id: new.
  ///   - scratchBytes: what it will put on the scratch disk.
  ///   - memoryBytes: what it holds in memory, waiting or running.
  public mutating func request(
    _ id: ScanID, scratchBytes: Int64 = 0, memoryBytes: Int64 = 0
  )
    -> Answer
  {
    guard scratchBytes <= self.configuration.scratchBytesMax,
      memoryBytes <= self.configuration.memoryBytesMax
    else { return .tooLarge }
    let mustWait = self.running.count >= self.configuration.runningMax || !self.waiting.isEmpty
    guard !mustWait || self.waiting.count < self.configuration.waitingMax else {
      return self.refuse(
        "too many scans wait", "scan queue", Int64(self.configuration.waitingMax),
        Int64(self.waiting.count) + 1)
    }
    let scratch = self.scratchBytes + scratchBytes
    guard scratch <= self.configuration.scratchBytesMax else {
      return self.refuse(
        "the scratch disk is full", "scan scratch", self.configuration.scratchBytesMax, scratch)
    }
    let memory = self.memoryBytes + memoryBytes
    guard memory <= self.configuration.memoryBytesMax else {
      return self.refuse(
        "the memory for scans is full", "scan memory", self.configuration.memoryBytesMax, memory)
    }
    self.scratchBytes = scratch
    self.memoryBytes = memory
    let charge = Charge(scratchBytes: scratchBytes, memoryBytes: memoryBytes)
    guard mustWait else {
      self.running[id] = charge
      return .start
    }
    self.waiting.append((id, charge))
    return .wait
  }

  private func refuse(
    _ message: String, _ subject: String, _ limit: Int64, _ actual: Int64
  ) -> Answer {
    .refuse(
      MemQError(
        .resourceExhausted, "\(message); try again", subject: subject, limit: limit, actual: actual)
    )
  }

  /// A scan is over, or its caller went before it started.
  ///
  /// - Returns: those that start now.
  public mutating func end(_ id: ScanID) -> [ScanID] {
    if let charge = self.running.removeValue(forKey: id) {
      self.giveBack(charge)
    } else if let index = self.waiting.firstIndex(where: { $0.id == id }) {
      self.giveBack(self.waiting.remove(at: index).charge)
    }
    var started: [ScanID] = []
    while self.running.count < self.configuration.runningMax, !self.waiting.isEmpty {
      let next = self.waiting.removeFirst()
      self.running[next.id] = next.charge
      started.append(next.id)
    }
    return started
  }

  private mutating func giveBack(_ charge: Charge) {
    self.scratchBytes -= charge.scratchBytes
    self.memoryBytes -= charge.memoryBytes
  }
}
