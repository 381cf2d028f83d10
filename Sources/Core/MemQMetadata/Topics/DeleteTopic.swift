// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Keys of one transaction that clears something away.
public let clearingKeysPerTransaction = 100
/// Upload groups changed in one of them: a transaction has room for 128 operations.
private let clearingGroupsPerTransaction = 20

extension MetadataState {
  /// Deletes a topic: from now on nobody sees it; a grave says that its remains are to be cleared away.
  ///
  /// - Throws: `.topicNotFound`.
  public func deleteTopic(_ name: String, at now: Timestamp) throws(MemQError) -> Plan<TopicID> {
    let topic = try self.topic(named: name)
    let id = topic.value.id
    var transaction = Transaction()
    transaction.require(.revision(.topic(id), topic.revision))
    transaction.delete(.topic(id))
    transaction.delete(.topicName(name))
    transaction.put(.grave(id), GraveRecord(id: id, name: name, deletedAt: now))
    return Plan([transaction], outcome: id)
  }

  /// Graves for partitions whose topic was never finished: a creation that broke off. Only for a controller that begins:
  /// later, creations may be under way.
  public func buryOrphans(at now: Timestamp) -> Plan<Int> {
    var orphans: [TopicID] = []
    for partition in self.partitions.keys where orphans.last != partition.topic {
      if self.topics[partition.topic] == nil, self.graves[partition.topic] == nil {
        orphans.append(partition.topic)
      }
    }
    let transactions = orphans.map { id in
      var transaction = Transaction()
      transaction.require(.absent(.topic(id)))
      transaction.put(.grave(id), GraveRecord(id: id, name: "", deletedAt: now))
      return transaction
    }
    return Plan(transactions, outcome: orphans.count)
  }

  /// Takes out a deleted topic's partitions and upload positions, a bounded number of keys at a time.
  ///
  /// - Returns: false when nothing was left.
  public func clearPartitions(of topic: TopicID) -> Plan<Bool> {
    let partitions = self.partitions(of: topic).prefix(clearingKeysPerTransaction)
    var transaction = Transaction()
    var groups: SortedMap<Int32, UploadGroupRecord> = [:]
    for partition in partitions {
      let id = partition.value.uploadGroup
      // Both or neither: a partition that is gone leaves nobody who knows of its position.
      guard groups[id] != nil || groups.count < clearingGroupsPerTransaction else { break }
      transaction.delete(.partition(partition.value.id))
      guard var record = groups[id] ?? self.uploadGroups[id]?.value else { continue }
      record.positions[partition.value.id] = nil
      groups[id] = record
    }
    for (id, record) in groups {
      transaction.replace(.uploadGroup(id), self.uploadGroups[id], with: record)
    }
    return Plan([transaction], outcome: !partitions.isEmpty)
  }

  /// The last step: nothing is left of the topic here. A node that was away may still hold records of it, and drops what it
  /// holds only by the tombstone: that a topic is unknown alone proves nothing.
  public func closeGrave(_ topic: TopicID) -> Plan<Void> {
    guard let grave = self.graves[topic] else { return Plan(outcome: ()) }
    var transaction = Transaction()
    transaction.require(.revision(.grave(topic), grave.revision))
    transaction.delete(.grave(topic))
    transaction.put(.tombstone(topic), grave.value)
    return Plan([transaction], outcome: ())
  }
}
