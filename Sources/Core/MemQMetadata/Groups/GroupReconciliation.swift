// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

// How a group moves on (KIP-848: the server shares, members follow by heartbeats; KIP-429: only what moves is stopped).
//
// Each member has two lists: its *target*, what it shall have, and *owned*, what it was given and has not said to be back. A
// partition stands in at most one member's `owned`. What a member may read, its *assignment*, is what stands in both.
//
//   event                             | what happens
//   ----------------------------------|------------------------------------------------------------------------------------
//   join, leave, silence, a topic     | new targets for everybody; a member that goes takes its `owned` along, so that its
//   grows, comes or goes              | partitions are free at once
//   join under an instance id in use  | the newcomer takes over target and `owned`; the one before is fenced
//   heartbeat: "I read these"         | partitions outside the target that it does not name leave its `owned`, when it knew
//                                     | its assignment as it is: its epoch is the member's
//   after each of them                | a partition of a target that nobody owns is given: it enters `owned` with a new epoch
//   time to give back is over         | as silence
//
// A member's epoch rises whenever its assignment changes, and the answer that tells the epoch tells the whole assignment. So a
// request that carries epoch e comes from a member that knew of all it was given up to e, and that begins to read nothing else before
// it hears of a higher epoch. So a delayed or repeated heartbeat frees nothing that was given, or taken and given back, since; and a
// commit with an epoch below the one that brought the partition is refused (KIP-1251).

extension GroupRecord.Member {
  /// What it may read: what it has and is to keep.
  public var assigned: [TopicPartition] { self.kept.map(\.partition) }

  /// What it has of its target.
  var kept: [GroupRecord.Owned] {
    var kept: [GroupRecord.Owned] = []
    kept.reserveCapacity(self.owned.count)
    var place = 0
    for owned in self.owned {
      while place < self.target.count, self.target[place] < owned.partition { place += 1 }
      if place < self.target.count, self.target[place] == owned.partition { kept.append(owned) }
    }
    return kept
  }

  /// What it has to give back.
  public var revoking: [TopicPartition] {
    let kept = self.assigned
    var place = 0
    return self.owned.map(\.partition).filter { partition in
      while place < kept.count, kept[place] < partition { place += 1 }
      return place == kept.count || kept[place] != partition
    }
  }

  public var isRevoking: Bool { self.assigned.count < self.owned.count }
  /// Whether partitions are still to come.
  public var isWaiting: Bool { self.assigned.count < self.target.count }

  /// The epoch that brought a partition; nil: it is not this member's.
  func epoch(of partition: TopicPartition) -> Int64? {
    var low = 0
    var high = self.owned.count
    while low < high {
      let middle = (low + high) / 2
      if self.owned[middle].partition < partition { low = middle + 1 } else { high = middle }
    }
    return low < self.owned.count && self.owned[low].partition == partition
      ? self.owned[low].since : nil
  }

  /// Takes out what has to go and is not named any more.
  ///
  /// - Parameter reading: what the member reads, ascending, as it said knowing its present epoch.
  mutating func release(allBut reading: [TopicPartition]) {
    let kept = self.assigned
    var (inReading, inKept) = (0, 0)
    self.owned = self.owned.filter { owned in
      while inReading < reading.count, reading[inReading] < owned.partition { inReading += 1 }
      while inKept < kept.count, kept[inKept] < owned.partition { inKept += 1 }
      let isRead = inReading < reading.count && reading[inReading] == owned.partition
      let isKept = inKept < kept.count && kept[inKept] == owned.partition
      return isRead || isKept
    }
  }
}

extension GroupRecord {
  public enum Phase: String, Sendable {
    case empty, reconciling, stable
  }

  public var phase: Phase {
    if self.members.isEmpty { return .empty }
    return self.members.values.contains { $0.isRevoking || $0.isWaiting } ? .reconciling : .stable
  }

  /// Whether some member has the partition or is to have it.
  func isTaken(_ partition: TopicPartition) -> Bool {
    self.members.values.contains { member in
      member.epoch(of: partition) != nil || member.target.contains(partition)
    }
  }

  /// New targets for the members there are.
  mutating func retarget(_ topics: [GroupTopic]) {
    self.topics = topics
    let members = self.members.values
    // Look-ups only. Who is on its way to a partition comes before who still has it: a move under way is not turned round.
    var holders: [TopicPartition: Int] = [:]
    for (index, member) in members.enumerated() {
      for owned in member.owned { holders[owned.partition] = index }
    }
    for (index, member) in members.enumerated() {
      for partition in member.target { holders[partition] = index }
    }
    let shares = GroupAssignor.assign(
      members.map { .init(topics: $0.topics, only: $0.only) }, topics
    ) { holders[$0] }
    for (index, id) in self.members.keys.enumerated() { self.members[id]!.target = shares[index] }
  }

  /// Gives what is free and wanted, and counts epochs.
  ///
  /// - Parameter before: the group before the event; the epoch rises when it is another one now.
  mutating func settle(after before: GroupRecord?) {
    let next = (before?.epoch ?? 0) + 1
    // Look-ups only.
    var owned: Set<TopicPartition> = []
    for member in self.members.values { owned.formUnion(member.owned.lazy.map(\.partition)) }
    for id in self.members.keys {
      let member = self.members[id]!
      let granted = member.target.filter { !owned.contains($0) }
      guard !granted.isEmpty else { continue }
      self.members[id]!.owned =
        (member.owned + granted.map { Owned($0, since: next) }).sorted {
          $0.partition < $1.partition
        }
    }
    for id in self.members.keys where before?.members[id]?.assigned != self.members[id]!.assigned {
      self.members[id]!.epoch = next
    }
    if before != self { self.epoch = next }
  }
}
