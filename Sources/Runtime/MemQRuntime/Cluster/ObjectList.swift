// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
public import MemQModel
public import MemQPacking
public import MemQRPC
import SwiftProtobuf

/// MetadataService.ListObjects.
public enum ObjectList {
  /// Objects of an upload group behind a sequence number, in the order of their commits.
  public static func page(
    _ group: Int32, after: Int64, _ metadata: any RPCChannel
  ) async throws(MemQError) -> (objects: [ObjectRef], hasMore: Bool) {
    // Readers share what comes: the deadline of whoever asked first must not end it for all.
    var options = RPCCallOptions(timeout: .seconds(10))
    options.inherits = false
    let response = try await metadata.call(
      MetadataMethods.listObjects,
      .with {
        $0.groupID = group
        $0.afterSequence = after
      }, options)
    var objects: [ObjectRef] = []
    for record in response.objects {
      objects.append(
        ObjectRef(
          id: try ObjectID(wire: record.objectID, "object_id"), groupID: record.groupID,
          sequence: record.sequence, key: record.key, byteCount: record.size,
          footerByteCount: record.footerBytes,
          minTimestamp: Timestamp(milliseconds: record.minTimestampMs),
          maxTimestamp: Timestamp(milliseconds: record.maxTimestampMs),
          leaseEpoch: LeaseEpoch(record.leaseEpoch),
          announcedAt: Timestamp(milliseconds: record.announcedAtMs)))
    }
    return (objects, response.more)
  }
}
