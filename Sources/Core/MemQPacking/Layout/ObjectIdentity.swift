// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Who made an object, and for which cluster: what header and footer both state.
public struct ObjectIdentity: Hashable, Sendable {
  public var clusterID: ClusterID
  public var incarnation: Incarnation
  public var incarnationID: UniqueID
  public var objectID: ObjectID
  /// The upload group whose partitions it holds.
  public var groupID: Int32
  /// The lease it was written under.
  public var leaseEpoch: LeaseEpoch

  public init(
    clusterID: ClusterID, incarnation: Incarnation, incarnationID: UniqueID, objectID: ObjectID,
    groupID: Int32, leaseEpoch: LeaseEpoch
  ) {
    self.clusterID = clusterID
    self.incarnation = incarnation
    self.incarnationID = incarnationID
    self.objectID = objectID
    self.groupID = groupID
    self.leaseEpoch = leaseEpoch
  }

  /// The same bytes in header and footer.
  static let byteCount = 68

  func write(into writer: inout ByteWriter) {
    writer.integer(self.groupID)
    writer.id(self.clusterID)
    writer.integer(self.incarnation.rawValue)
    writer.raw(self.incarnationID.bytes)
    writer.id(self.objectID)
    writer.integer(self.leaseEpoch.rawValue)
  }

  init(from reader: inout ByteReader) throws(MemQError) {
    self.groupID = try reader.integer()
    self.clusterID = try reader.id()
    self.incarnation = Incarnation(try reader.integer())
    self.incarnationID = UniqueID(bytes: try reader.raw(16))!
    self.objectID = try reader.id()
    self.leaseEpoch = LeaseEpoch(try reader.integer())
  }
}
