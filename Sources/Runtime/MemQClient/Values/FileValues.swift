// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// What a scan said.
public struct Verdict: Hashable, Sendable {
  public enum Kind: String, Sendable {
    /// Read whole, nothing found.
    case clean
    case infected
    /// Could not be judged; never to be read as clean.
    case notScanned = "not-scanned"
    /// The topic's policy is off: nobody looked.
    case off
  }

  public var kind: Kind
  /// What was found, when infected.
  public var signature: String
  /// Why it was not scanned.
  public var reason: String
  /// Engine's name and version.
  public var engine: String
  public var databaseVersion: String
}

/// One published file.
public struct FileInfo: Hashable, Sendable {
  public var topic: String
  public var name: String
  /// Rises with each publication of the name, from 1.
  public var version: Int64
  /// Bytes.
  public var size: Int64
  /// 32 bytes.
  public var sha256: [UInt8]
  public var contentType: String
  public var verdict: Verdict
  /// Place of its record.
  public var partition: PartitionIndex
  public var offset: Offset
  public var publishedAt: Timestamp
  public var attributes: [String: String]
}

/// One quarantined file.
public struct QuarantineEntry: Hashable, Sendable {
  /// The put's UUID.
  public var id: String
  public var topic: String
  public var name: String
  public var size: Int64
  public var sha256: [UInt8]
  public var verdict: Verdict
  public var quarantinedAt: Timestamp
}

/// A scanner at a glance. Counts are since its start.
public struct ScanStatus: Hashable, Sendable {
  public struct Engine: Hashable, Sendable {
    public var name: String
    public var databaseVersion: String
    public var rules: Int64
    public var isReady: Bool
    public var problem: String
  }

  public var engines: [Engine]
  public var queued: Int64
  public var running: Int64
  public var clean: Int64
  public var infected: Int64
  public var notScanned: Int64
  public var scannedBytes: Int64
  public var scratchUsedBytes: Int64
  public var scratchMaxBytes: Int64
}
