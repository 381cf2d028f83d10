// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQScreening

/// What an engine is and knows.
public struct EngineIdentity: Hashable, Sendable {
  /// "yara 4.2.3".
  public var name: String
  /// Digest of its rules, lowercase hexadecimal.
  public var databaseVersion: String
  public var ruleCount: Int
  /// Why the newest rules are not in use; nil when they are.
  public var problem: String?
}

/// Judges bytes. Its calls block: run them on threads of your own.
public protocol ScanEngine: Sendable {
  var identity: EngineIdentity { get }
  /// Judges bytes in memory, whole.
  func scan(_ bytes: UnsafeRawBufferPointer, timeout: Duration) -> Finding
  /// Judges a file, whole.
  func scan(file path: String, timeout: Duration) -> Finding
}
