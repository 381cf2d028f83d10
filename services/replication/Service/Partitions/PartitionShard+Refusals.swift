// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQModel
import MemQReplication
import MemQSystem

/// Partitions of a shard that are to be led here under an epoch that their logs already hold: nobody leads them until metadata has chosen
/// another one.
struct RefusedLeaderships {
  /// Pause between two tellings of the same.
  static let pause: Duration = .seconds(1)

  var waiting: Set<TopicPartition> = []
  var isTelling = false
  /// Not before; nil: at once.
  var tellAt: MonotonicInstant?
}

// Told again until the image shows another leader epoch: a lost message leaves nothing behind.
extension PartitionShard {
  func tellRefusals(at now: MonotonicInstant) {
    guard !self.refusals.waiting.isEmpty, !self.refusals.isTelling, !self.isStopped,
      self.refusals.tellAt.map({ now >= $0 }) ?? true
    else { return }
    var told: [LeadershipRefusal] = []
    var node: ReplicaMember?
    for partition in self.refusals.waiting {
      guard told.count < LeadershipRefusal.perRequestMax else { break }
      guard let (member, refusal) = self.refusal(of: partition) else {
        self.refusals.waiting.remove(partition)
        continue
      }
      node = member
      told.append(refusal)
    }
    guard let node, !told.isEmpty else { return }
    self.refusals.isTelling = true
    self.refusals.tellAt = now + RefusedLeaderships.pause
    let (metadata, mailbox, logger, refusals) = (self.metadata, self.mailbox!, self.logger, told)
    Task {
      let errors = await metadata.refuse(refusals, of: node.id.node, node.nodeEpoch)
      for (refusal, error) in zip(refusals, errors) {
        guard let error else { continue }
        logger.warning(
          "Could not have the cluster choose another leader epoch",
          metadata: ["partition": "\(refusal.partition)", "error": "\(error)"])
      }
      mailbox.post(.run { $0.refusals.isTelling = false })
    }
  }

  /// Nil: it does not wait any more.
  private func refusal(of partition: TopicPartition) -> (ReplicaMember, LeadershipRefusal)? {
    guard let owner = self.partitions[partition], owner.lane.failure == nil,
      owner.core.leader == nil, owner.desired.assignment.leader == owner.desired.member.id
    else { return nil }
    let elected = owner.desired.assignment.leaderEpoch
    let held = owner.core.log.epochs.lastEpoch
    guard held >= elected else { return nil }
    return (
      owner.desired.member,
      LeadershipRefusal(partition: partition, leaderEpoch: elected, logEpoch: held)
    )
  }
}
