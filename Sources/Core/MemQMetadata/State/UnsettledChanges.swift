// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What changed of all that decides who leads and who is in sync, and when: so that a change of one partition needs no look at a hundred
/// thousand.
struct UnsettledChanges: Hashable, Sendable {
  /// Of each kind; more are taken as a change of everything.
  private static let entriesMax = 4_096

  /// The last change of a node, or of more than is kept one by one: it concerns all partitions.
  private(set) var everything = Revision.zero
  private(set) var topics: SortedMap<TopicID, Revision> = [:]
  private(set) var partitions: SortedMap<TopicPartition, Revision> = [:]
  /// Of the last change.
  private(set) var latest = Revision.zero

  mutating func changed(at revision: Revision) {
    self.latest = max(self.latest, revision)
    // Also what was kept one by one and is newer: all entries of a reading come in the order of their keys.
    self.everything = self.latest
    self.topics = [:]
    self.partitions = [:]
  }

  /// The topic is new, or its settings changed.
  mutating func changed(_ topic: TopicID, at revision: Revision) {
    guard self.topics.count < Self.entriesMax || self.topics[topic] != nil else {
      return self.changed(at: revision)
    }
    self.latest = max(self.latest, revision)
    self.topics[topic] = revision
  }

  mutating func changed(_ partition: TopicPartition, at revision: Revision) {
    guard self.partitions.count < Self.entriesMax || self.partitions[partition] != nil else {
      return self.changed(at: revision)
    }
    self.latest = max(self.latest, revision)
    self.partitions[partition] = revision
  }
}

extension MetadataState {
  /// Partitions that changes after a revision may concern, and others, in their order; `.zero`: all.
  func unsettledPartitions(
    since revision: Revision, also others: [TopicPartition]
  ) -> [Versioned<PartitionImage>] {
    if revision == .zero || self.unsettled.everything > revision {
      return Array(self.partitions.values)
    }
    var found: [Versioned<PartitionImage>] = []
    var topics: SortedMap<TopicID, Bool> = [:]
    for (id, at) in self.unsettled.topics where at > revision { topics[id] = true }
    var partitions: SortedMap<TopicPartition, Bool> = [:]
    for (id, at) in self.unsettled.partitions where at > revision { partitions[id] = true }
    for id in others { partitions[id] = true }
    for id in partitions.keys where topics[id.topic] == nil {
      if let partition = self.partitions[id] { found.append(partition) }
    }
    for topic in topics.keys { found += self.partitions(of: topic) }
    return found.sorted { $0.value.id < $1.value.id }
  }
}
