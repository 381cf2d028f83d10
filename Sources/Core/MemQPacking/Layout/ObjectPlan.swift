// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// An object before it is written: its size and every byte that is not a record batch.
///
/// The object is `head`, then the bytes of each run in the order of `footer.runs`, then `tail`.
public struct ObjectPlan: Sendable {
  public let head: [UInt8]
  public let tail: [UInt8]
  public let footer: ObjectFooter

  public var byteCount: Int64 { self.footer.objectByteCount }

  /// - Parameter runs: any order; one per partition, none empty.
  /// - Throws: `.limitReached` when the object would be larger than allowed.
  public init(identity: ObjectIdentity, runs: [RunBuilder]) throws(MemQError) {
    var placed: [ObjectRun] = []
    var position = Int64(ObjectLayout.headerByteCount)
    for run in runs.sorted(by: { $0.partition < $1.partition }) {
      precondition(placed.last?.partition != run.partition, "two runs of one partition")
      placed.append(run.run(at: position))
      position += run.byteCount
    }
    self.head = ObjectLayout.header(identity)
    self.tail = ObjectFooter.encode(identity, placed)
    let byteCount = position + Int64(self.tail.count)
    guard byteCount <= ObjectLayout.objectByteCountMax else {
      throw MemQError(
        .limitReached, "the object would have too many bytes",
        limit: ObjectLayout.objectByteCountMax, actual: byteCount)
    }
    guard self.tail.count <= ObjectLayout.footerByteCountMax else {
      throw MemQError(
        .limitReached, "the object's footer would have too many bytes",
        limit: Int64(ObjectLayout.footerByteCountMax), actual: Int64(self.tail.count))
    }
    self.footer = ObjectFooter(
      identity: identity, runs: placed, objectByteCount: byteCount,
      footerByteCount: Int64(self.tail.count))
  }
}

extension ObjectFooter {
  init(
    identity: ObjectIdentity, runs: [ObjectRun], objectByteCount: Int64, footerByteCount: Int64
  ) {
    self.identity = identity
    self.runs = runs
    self.objectByteCount = objectByteCount
    self.footerByteCount = footerByteCount
  }
}
