// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A named value beside a record's own.
public struct RecordHeader: Hashable, Sendable {
  public var name: String
  /// Nil: null, which is not the same as empty.
  public var value: [UInt8]?

  public init(name: String, value: [UInt8]?) {
    self.name = name
    self.value = value
  }
}

/// One record, decoded.
public struct Record: Hashable, Sendable {
  /// Nil: null.
  public var key: [UInt8]?
  /// Nil: null, a tombstone in a compacted log.
  public var value: [UInt8]?
  public var headers: [RecordHeader]
  public var timestamp: Timestamp
  public var offset: Offset

  public init(
    key: [UInt8]? = nil, value: [UInt8]?, headers: [RecordHeader] = [],
    timestamp: Timestamp = .none, offset: Offset = .zero
  ) {
    self.key = key
    self.value = value
    self.headers = headers
    self.timestamp = timestamp
    self.offset = offset
  }
}
