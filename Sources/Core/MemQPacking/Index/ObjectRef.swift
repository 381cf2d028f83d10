// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// One announced object as metadata lists it.
public struct ObjectRef: Hashable, Sendable {
  public var id: ObjectID
  public var groupID: Int32
  /// Its number in the group, from 1, in commit order.
  public var sequence: Int64
  /// Its key in the store.
  public var key: String
  public var byteCount: Int64
  /// Bytes from the footer's start to the object's end.
  public var footerByteCount: Int64
  public var minTimestamp: Timestamp
  public var maxTimestamp: Timestamp
  public var leaseEpoch: LeaseEpoch
  /// Nothing in it was appended later; none: not known.
  public var announcedAt: Timestamp

  public init(
    id: ObjectID, groupID: Int32, sequence: Int64, key: String, byteCount: Int64,
    footerByteCount: Int64, minTimestamp: Timestamp = .none, maxTimestamp: Timestamp = .none,
    leaseEpoch: LeaseEpoch = .zero, announcedAt: Timestamp = .none
  ) {
    self.id = id
    self.groupID = groupID
    self.sequence = sequence
    self.key = key
    self.byteCount = byteCount
    self.footerByteCount = footerByteCount
    self.minTimestamp = minTimestamp
    self.maxTimestamp = maxTimestamp
    self.leaseEpoch = leaseEpoch
    self.announcedAt = announcedAt
  }
}
