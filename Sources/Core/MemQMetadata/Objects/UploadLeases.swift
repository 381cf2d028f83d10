// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// An uploader's request for leases.
public struct LeaseRequest: Hashable, Sendable {
  public var node: NodeID
  public var nodeEpoch: NodeEpoch
  /// Groups it believes to hold.
  public var held: [Int32]
  /// How many more it would take.
  public var moreMax: Int
  public var release: [Int32]

  public init(
    node: NodeID, nodeEpoch: NodeEpoch, held: [Int32] = [], moreMax: Int = 0, release: [Int32] = []
  ) {
    self.node = node
    self.nodeEpoch = nodeEpoch
    self.held = held
    self.moreMax = moreMax
    self.release = release
  }
}

/// Groups that change hands in one request; a transaction has room for twice as many.
private let groupsPerRequestMax = 60

extension MetadataState {
  /// Renews, grants and takes back leases of upload groups.
  ///
  /// An uploader keeps what it holds, up to its fair share while others have less; free groups, and those whose lease ran
  /// out (`isSilent`), go to who asks. Each grant raises the lease epoch. A group without partitions needs an owner, too:
  /// who holds it collects what deleted topics left in the bucket.
  ///
  /// - Returns: the groups it holds afterwards, by id.
  /// - Throws: `.nodeUnknown`, `.nodeFenced`, `.invalidArgument` when the node is no uploader.
  public func acquireLeases(
    _ request: LeaseRequest, isSilent: (Int32) -> Bool
  ) throws(MemQError) -> Plan<[UploadGroupRecord]> {
    let node = try self.session(request.node, request.nodeEpoch).value
    guard node.service == .uploader else {
      throw MemQError(
        .invalidArgument, "only uploaders hold upload leases", subject: "node \(node.id)")
    }
    var transaction = Transaction()
    var mine: [UploadGroupRecord] = []
    var free: [Versioned<UploadGroupRecord>] = []
    for group in self.uploadGroups.values {
      let holder = group.value.group.holder
      if holder == node.id {
        if request.release.contains(group.value.group.id) {
          self.release(group, in: &transaction)
        } else {
          mine.append(group.value)
        }
      } else if self.isFree(group.value.group, isSilent) {
        free.append(group)
      }
    }
    self.giveUpSurplus(&mine, node.id, in: &transaction)
    self.grant(free, to: node.id, atMost: request.moreMax, &mine, in: &transaction)
    return Plan([transaction], outcome: mine.sorted { $0.group.id < $1.group.id })
  }

  private func isFree(_ group: UploadGroupImage, _ isSilent: (Int32) -> Bool) -> Bool {
    guard let holder = group.holder else { return true }
    return !(self.nodes[holder]?.value.state.isLive ?? false) || isSilent(group.id)
  }

  private func release(_ group: Versioned<UploadGroupRecord>, in transaction: inout Transaction) {
    guard transaction.operations.count < groupsPerRequestMax else { return }
    var record = group.value
    record.group.holder = nil
    transaction.replace(.uploadGroup(record.group.id), group, with: record)
  }

  /// The rounded-up fair share of one uploader.
  private var fairShare: Int {
    let groups = self.uploadGroups.count
    let uploaders = self.nodes.values.count {
      $0.value.service == .uploader
        && ($0.value.state == .ready || $0.value.state == .starting)
    }
    return uploaders == 0 ? groups : (groups + uploaders - 1) / uploaders
  }

  /// The highest groups above the fair share become free: another uploader stands there with less.
  private func giveUpSurplus(
    _ mine: inout [UploadGroupRecord], _ node: NodeID, in transaction: inout Transaction
  ) {
    let share = self.fairShare
    while mine.count > share, transaction.operations.count < groupsPerRequestMax {
      let id = mine.removeLast().group.id
      self.release(self.uploadGroups[id]!, in: &transaction)
    }
  }

  private func grant(
    _ free: [Versioned<UploadGroupRecord>], to node: NodeID, atMost count: Int,
    _ mine: inout [UploadGroupRecord], in transaction: inout Transaction
  ) {
    let room = min(count, max(self.fairShare - mine.count, 0))
    for group in free.prefix(max(room, 0))
    where transaction.operations.count < groupsPerRequestMax {
      var record = group.value
      record.group.holder = node
      record.group.leaseEpoch = record.group.leaseEpoch.next
      transaction.replace(.uploadGroup(record.group.id), group, with: record)
      mine.append(record)
    }
  }

  /// Frees the leases of nodes that are gone, so that the image says who uploads.
  public func releaseLeases(of gone: (NodeID) -> Bool) -> Plan<Int> {
    var transaction = Transaction()
    for group in self.uploadGroups.values {
      guard let holder = group.value.group.holder, gone(holder) else { continue }
      self.release(group, in: &transaction)
    }
    return Plan([transaction], outcome: transaction.operations.count)
  }
}
