// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// How far a log goes. Of two logs of a partition the later epoch is the further one, then the higher end: an epoch begins with all
/// that was committed before it.
public struct LogEnd: Hashable, Sendable, Comparable {
  public var lastEpoch: LeaderEpoch
  public var end: Offset

  public init(_ lastEpoch: LeaderEpoch, _ end: Offset) {
    self.lastEpoch = lastEpoch
    self.end = end
  }

  public static func < (a: Self, b: Self) -> Bool { (a.lastEpoch, a.end) < (b.lastEpoch, b.end) }
}

/// What a node says of one of its replicas that nobody leads: where its log ends, durably.
public struct LogEndStatement: Hashable, Sendable {
  public var partition: TopicPartition
  public var volume: VolumeID
  /// The partition's, as the node knows it: a statement from before an election counts for nothing.
  public var leaderEpoch: LeaderEpoch
  public var log: LogEnd

  public init(
    _ partition: TopicPartition, on volume: VolumeID, _ leaderEpoch: LeaderEpoch, _ log: LogEnd
  ) {
    self.partition = partition
    self.volume = volume
    self.leaderEpoch = leaderEpoch
    self.log = log
  }
}

/// An election by what replicas said of their logs.
public struct RecoveryElection: Hashable, Sendable {
  public let partition: TopicPartition
  public let leader: NodeID
  public let log: LogEnd
  /// How many of the candidates answered.
  public let answers: Int
  public let candidates: Int
}

/// What is known of the logs of partitions that nobody leads, for elections in which every candidate restarted without a goodbye: a disk
/// may have lost what it confirmed, so the one whose log goes furthest leads (the field's unclean recovery, KIP-966). All are waited for,
/// but for no longer than `wait` from when the partition lost its leader, or the controller took over.
///
/// Held by the controller only and never stored. Bounded: one entry for each leaderless partition, one answer for each of its replicas.
public struct RecoveryElections: Sendable {
  struct Answer: Hashable, Sendable {
    var node: NodeID
    var nodeEpoch: NodeEpoch
    var volume: VolumeID
    var log: LogEnd
  }

  struct Entry: Hashable, Sendable {
    let leaderEpoch: LeaderEpoch
    var since: MonotonicInstant
    var answers: [Answer] = []
    /// That its time is over was said.
    var isLate = false
  }

  /// Between two looks for partitions that are led again.
  private static let sweepInterval: Duration = .seconds(1)

  public let wait: Duration
  /// A tick later than this after the one before it means that the controller stood still: it could hear nobody.
  private let tickGapMax: Duration
  private var entries: PartitionMap<Entry> = [:]
  private var lastTick: MonotonicInstant
  /// Nothing is due before.
  private var nextLook: MonotonicInstant

  public init(wait: Duration, at now: MonotonicInstant, tickGapMax: Duration = .milliseconds(500)) {
    self.wait = wait
    self.tickGapMax = tickGapMax
    self.lastTick = now
    self.nextLook = now
  }

  /// Partitions that are waited for.
  public var count: Int { self.entries.count }

  /// Takes note of partitions that lost their leader, with what `reconcile` found. One that it did not hear of counts from its first
  /// answer on.
  public mutating func note(_ elected: [PartitionImage], at now: MonotonicInstant) {
    for partition in elected where partition.leader == nil {
      self.begin(partition.id, partition.leaderEpoch, at: now)
    }
  }

  private mutating func begin(
    _ id: TopicPartition, _ epoch: LeaderEpoch, at now: MonotonicInstant
  ) {
    guard self.entries[id]?.leaderEpoch != epoch else { return }
    self.entries[id] = Entry(leaderEpoch: epoch, since: now)
    self.nextLook = min(self.nextLook, now + self.wait)
  }

  /// Nobody could be heard until now: the wait of every partition without a leader begins.
  public mutating func beginAnew(_ state: MetadataState, at now: MonotonicInstant) {
    for partition in state.partitions.values where partition.value.leader == nil {
      self.begin(partition.value.id, partition.value.leaderEpoch, at: now)
    }
    for id in Array(self.entries.keys) {
      self.entries[id]!.since = now
      self.entries[id]!.isLate = false
    }
    self.nextLook = now
  }

  /// Takes in what a node says. What it does not hold in this life, and what is led or was led since, counts for nothing.
  ///
  /// - Returns: partitions of which something is known now that was not: to be looked at again.
  /// - Throws: `.nodeUnknown`, `.nodeFenced` for another life of the node.
  public mutating func take(
    _ statements: [LogEndStatement], of node: NodeID, _ epoch: NodeEpoch, _ state: MetadataState,
    at now: MonotonicInstant
  ) throws(MemQError) -> [TopicPartition] {
    _ = try state.session(node, epoch)
    var news: [TopicPartition] = []
    for statement in statements {
      guard let known = state.partitions[statement.partition]?.value, known.leader == nil,
        known.leaderEpoch == statement.leaderEpoch,
        known.replicas.contains(ReplicaID(node, statement.volume))
      else { continue }
      self.begin(known.id, known.leaderEpoch, at: now)
      let answer = Answer(
        node: node, nodeEpoch: epoch, volume: statement.volume, log: statement.log)
      var answers = self.entries[known.id]!.answers
      guard !answers.contains(answer) else { continue }
      // Those of replicas that are elsewhere by now go, too.
      answers.removeAll { old in
        old.node == node || !known.replicas.contains { $0.node == old.node }
      }
      answers.append(answer)
      self.entries[known.id]!.answers = answers
      news.append(known.id)
    }
    return news
  }

  /// Moves time on, and forgets what is led again.
  ///
  /// - Returns: partitions for which the wait is over now; each once.
  public mutating func tick(_ now: MonotonicInstant, _ state: MetadataState) -> [TopicPartition] {
    let gap = now - self.lastTick
    self.lastTick = now
    guard self.count > 0 else { return [] }
    if gap > self.tickGapMax {
      for id in Array(self.entries.keys) {
        // Some of it counts, so that a controller that is always slow gets on, too.
        let counted = min(self.tickGapMax, self.wait / 20)
        self.entries[id]!.since = min(self.entries[id]!.since + (gap - counted), now)
      }
      self.nextLook = now
    }
    guard now >= self.nextLook else { return [] }
    self.nextLook = now + Self.sweepInterval
    var due: [TopicPartition] = []
    for id in Array(self.entries.keys) {
      let entry = self.entries[id]!
      guard let partition = state.partitions[id]?.value, partition.leader == nil,
        partition.leaderEpoch <= entry.leaderEpoch
      else {
        self.entries[id] = nil
        continue
      }
      guard !entry.isLate else { continue }
      if now - entry.since >= self.wait {
        self.entries[id]!.isLate = true
        due.append(id)
      } else {
        self.nextLook = min(self.nextLook, entry.since + self.wait)
      }
    }
    return due
  }

  func entry(_ partition: PartitionImage) -> Entry? {
    guard let entry = self.entries[partition.id], entry.leaderEpoch == partition.leaderEpoch,
      partition.leader == nil
    else { return nil }
    return entry
  }

  /// Who said where its log ends, and may be elected: for the simulator's checks.
  package func logs(
    of partition: PartitionImage, in state: MetadataState
  ) -> [(node: NodeID, nodeEpoch: NodeEpoch)] {
    let answers = self.entry(partition)?.answers ?? []
    return answers.filter { state.isAnswerable($0.node, $0.nodeEpoch, $0.volume, partition) }
      .map { ($0.node, $0.nodeEpoch) }
  }
}

/// What is known of logs at one moment.
struct LogsKnown {
  let recovery: RecoveryElections
  let now: MonotonicInstant

  /// The replica whose log goes furthest; the preferred order decides between equals. Nil: somebody is still waited for, or nobody
  /// answered.
  func longest(
    of candidates: [NodeID], _ partition: PartitionImage, _ state: MetadataState
  ) -> RecoveryElection? {
    guard let entry = self.recovery.entry(partition) else { return nil }
    let answers = entry.answers.filter {
      candidates.contains($0.node)
        && state.isAnswerable($0.node, $0.nodeEpoch, $0.volume, partition)
    }
    guard answers.count == candidates.count || self.now - entry.since >= self.recovery.wait else {
      return nil
    }
    var longest: RecoveryElections.Answer?
    for node in candidates {
      guard let answer = answers.first(where: { $0.node == node }) else { continue }
      guard let known = longest else {
        longest = answer
        continue
      }
      if known.log < answer.log && !state.weaknesses.contains(.electFirstAnswer) {
        longest = answer
      }
    }
    return longest.map {
      RecoveryElection(
        partition: partition.id, leader: $0.node, log: $0.log, answers: answers.count,
        candidates: candidates.count)
    }
  }
}
