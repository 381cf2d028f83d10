// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
public import MemQScreening

/// Something that judges bytes. It never blocks the caller's thread and never says clean of what it did not read whole.
public protocol ScanEngine: Sendable {
  /// What it is and what it knows, now.
  var status: EngineStatus { get }
  /// Judges bytes in memory.
  ///
  /// - Parameters:
  ///   - parts: sizes that add up to the bytes: each part is judged by itself, and the answer is the worst of them.
  ///   - name: for rules that look at it.
  ///   - timeout: for all of it.
  func scan(bytes: [UInt8], parts: [Int], name: String, timeout: Duration) async -> EngineAnswer
  /// Judges a file of this machine, whole.
  func scan(file path: String, name: String, timeout: Duration) async -> EngineAnswer
  /// Refuses what comes and waits for what runs, until the deadline.
  func close(deadline: Duration) async
}

extension ScanEngine {
  /// Judges bytes in memory as one thing.
  public func scan(bytes: [UInt8], name: String, timeout: Duration) async -> EngineAnswer {
    await self.scan(bytes: bytes, parts: [bytes.count], name: name, timeout: timeout)
  }
}

/// An engine's answer and what it was given by.
public struct EngineAnswer: Hashable, Sendable {
  public var outcome: ScreeningVerdict.Outcome
  public var engine: String
  public var databaseVersion: String
  /// What went wrong, for the log; empty else.
  public var detail: String
  /// Time the engine took.
  public var duration: Duration

  public init(
    _ outcome: ScreeningVerdict.Outcome, engine: String, databaseVersion: String,
    detail: String = "", duration: Duration = .zero
  ) {
    self.outcome = outcome
    self.engine = engine
    self.databaseVersion = databaseVersion
    self.detail = detail
    self.duration = duration
  }
}

/// One engine at a glance.
public struct EngineStatus: Hashable, Sendable {
  /// Name and version: "yara 4.2.3".
  public var name: String
  /// Digest of its rules, hexadecimal.
  public var databaseVersion: String
  public var rules: Int
  public var isReady: Bool
  /// Why it is not ready, or why its newest rules are not in use; empty else.
  public var problem: String

  public init(
    name: String, databaseVersion: String, rules: Int, isReady: Bool, problem: String = ""
  ) {
    self.name = name
    self.databaseVersion = databaseVersion
    self.rules = rules
    self.isReady = isReady
    self.problem = problem
  }
}
