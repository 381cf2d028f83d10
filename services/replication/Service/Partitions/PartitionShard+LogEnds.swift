// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQMetadata
import MemQModel
import MemQReplication
import MemQSystem

/// Partitions of a shard that nobody leads: metadata may have to elect by where their logs end.
struct AskedLogEnds {
  /// Of one request, as metadata takes them.
  static let perRequestMax = 1_000
  /// Between two tellings of the same: metadata keeps it in memory only.
  static let pause: Duration = .seconds(1)
  /// Where a log was still being written.
  static let unsettledPause: Duration = .milliseconds(200)
  /// So many rounds what is being written is waited for. A full volume may keep it for ever, and what is durable has an end, too.
  static let unsettledRoundsMax = 5

  var asked: Set<TopicPartition> = []
  /// What is still to be told in this round.
  var round: [TopicPartition] = []
  var isTelling = false
  /// Rounds in which a log was still being written.
  var unsettledRounds: [TopicPartition: Int] = [:]
  /// The next round; nil: at once.
  var roundAt: MonotonicInstant?
}

// Told again until the image shows a leader: neither a lost message nor another controller leaves anything behind.
extension PartitionShard {
  /// Takes note of what an image says of a partition here.
  func noteLogEndAsked(_ desired: DesiredPartition, before: DesiredPartition?) {
    guard desired.isAskedForLogEnd else {
      self.logEnds.asked.remove(desired.id)
      self.logEnds.unsettledRounds[desired.id] = nil
      return
    }
    let isNew = self.logEnds.asked.insert(desired.id).inserted
    // Another election than the one that was told of.
    if isNew || before?.assignment.leaderEpoch != desired.assignment.leaderEpoch {
      self.logEnds.roundAt = nil
    }
  }

  func tellLogEnds(at now: MonotonicInstant) {
    guard !self.logEnds.asked.isEmpty, !self.logEnds.isTelling, !self.isStopped else { return }
    if self.logEnds.round.isEmpty {
      if let roundAt = self.logEnds.roundAt, now < roundAt { return }
      self.logEnds.round = Array(self.logEnds.asked)
      self.logEnds.roundAt = now + AskedLogEnds.pause
    }
    var told: [LogEndStatement] = []
    var node: ReplicaMember?
    while told.count < AskedLogEnds.perRequestMax, let partition = self.logEnds.round.popLast() {
      guard let owner = self.partitions[partition], owner.lane.failure == nil,
        owner.desired.isAskedForLogEnd
      else {
        // It is asked anew once it is here again.
        self.logEnds.asked.remove(partition)
        self.logEnds.unsettledRounds[partition] = nil
        continue
      }
      // What is filed with the volume and not durable yet may be gone after all.
      let log = owner.core.log
      let rounds = self.logEnds.unsettledRounds[partition] ?? 0
      guard log.isSettled || rounds >= AskedLogEnds.unsettledRoundsMax, owner.damage == nil else {
        self.logEnds.unsettledRounds[partition] = rounds + 1
        self.logEnds.roundAt = now + AskedLogEnds.unsettledPause
        continue
      }
      if log.isSettled { self.logEnds.unsettledRounds[partition] = nil }
      let member = owner.desired.member
      node = member
      told.append(
        LogEndStatement(
          partition, on: member.id.volume, owner.desired.assignment.leaderEpoch,
          log.isSettled
            ? LogEnd(log.epochs.lastEpoch, log.durableEnd)
            : LogEnd(
              log.epochs.epoch(at: Offset(log.durableEnd.rawValue - 1)), log.durableEnd)))
    }
    guard let node, !told.isEmpty else { return }
    self.logEnds.isTelling = true
    let (metadata, mailbox, logger, statements) = (self.metadata, self.mailbox!, self.logger, told)
    Task {
      do throws(MemQError) {
        try await metadata.state(statements, of: node.id.node, node.nodeEpoch)
      } catch {
        logger.warning(
          "Could not tell the cluster where logs end that nobody leads",
          metadata: ["partitions": "\(statements.count)", "error": "\(error)"])
      }
      mailbox.post(.run { $0.logEnds.isTelling = false })
    }
  }
}
