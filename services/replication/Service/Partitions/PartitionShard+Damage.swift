// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQLog
import MemQModel
import MemQReplication
import MemQStorage
import MemQSystem

/// What of a replica does not read.
struct ReplicaDamage: Sendable {
  /// Records below are whole.
  var from: Offset
  var error: MemQError
  /// A read failed right there: another one tells whether the disk gives it again.
  var isPlaceKnown: Bool
}

/// Which replicas of a shard there is something to tell metadata of, or to wait for.
struct DamageWatch {
  /// Pause between reports that say the same, and between looks at a place that did not read.
  static let pause: Duration = .seconds(2)

  /// Found damaged here, or marked so in the image.
  var suspects: Set<TopicPartition> = []
  var isReporting = false
  /// Not before.
  var reportAt: MonotonicInstant
  /// The replica whose damage is being looked at again.
  var checking: TopicPartition?
  var checkAt: MonotonicInstant
}

// Damage of single replicas: told to metadata, which has another replica lead; then filled anew. What the image marks and what is
// known here are brought in line again and again, so that neither a lost message nor a restart leaves anything behind.
extension PartitionShard {
  /// A read, or the cleaner, met damage.
  func damaged(_ found: Volume.DamagedPartition, on volume: VolumeID) {
    guard let owner = self.partitions[found.partition], owner.lane.volume.id == volume,
      owner.lane.failure == nil
    else { return }
    // Where the place is not known, the object tier may lack it.
    if found.isPlaceKnown, owner.giveUpUploaded(from: found.from) {
      self.logger.warning(
        "Damaged records are in the object tier and are read from there",
        metadata: ["partition": "\(owner.name)", "error": "\(found.error)"])
      owner.lane.volume.forgetDamage(found.partition, reads: false)
      return self.damageChanged()
    }
    owner.damage = ReplicaDamage(
      from: found.from, error: found.error, isPlaceKnown: found.isPlaceKnown)
    self.damageWatch.suspects.insert(found.partition)
    self.damageWatch.reportAt = self.clock.monotonic
    self.reportDamage(at: self.clock.monotonic)
  }

  /// Tells metadata what the image does not show, and looks again at what nobody else can replace.
  func watchDamage(at now: MonotonicInstant) {
    guard !self.damageWatch.suspects.isEmpty, !self.isStopped else { return }
    self.reportDamage(at: now)
    self.checkAgain(at: now)
  }

  private func reportDamage(at now: MonotonicInstant) {
    guard !self.damageWatch.isReporting, now >= self.damageWatch.reportAt else { return }
    var reports: [DamageReport] = []
    var node: ReplicaMember?
    for partition in self.damageWatch.suspects {
      guard reports.count < DamageReport.perRequestMax else { break }
      switch self.standing(of: partition) {
      case .settled: self.damageWatch.suspects.remove(partition)
      case .waits: break
      case .report(let member, let from):
        node = member
        reports.append(
          DamageReport(partition: partition, volume: member.id.volume, damagedFrom: from))
      }
    }
    guard let node, !reports.isEmpty else { return }
    self.damageWatch.isReporting = true
    self.damageWatch.reportAt = now + DamageWatch.pause
    let (metadata, mailbox, logger) = (self.metadata, self.mailbox!, self.logger)
    let told = reports
    Task {
      let errors = await metadata.report(told, of: node.id.node, node.nodeEpoch)
      for (report, error) in zip(told, errors) {
        guard let error else { continue }
        // Said again as long as it holds.
        logger.warning(
          "Could not tell the cluster of a replica's damage",
          metadata: ["partition": "\(report.partition)", "error": "\(error)"])
      }
      mailbox.post(.run { $0.damageWatch.isReporting = false })
    }
  }

  private enum Standing {
    /// The image shows what is so.
    case settled
    case waits
    /// Nil: whole.
    case report(ReplicaMember, damagedFrom: Offset?)
  }

  private func standing(of partition: TopicPartition) -> Standing {
    if let owner = self.partitions[partition] {
      guard owner.lane.failure == nil else { return .settled }
      let mark = owner.desired.damagedFrom
      if let damage = owner.damage {
        return mark.map { $0 <= damage.from } == true
          ? .waits : .report(owner.desired.member, damagedFrom: damage.from)
      }
      guard mark != nil else { return .settled }
      return owner.isKnownWhole ? .report(owner.desired.member, damagedFrom: nil) : .waits
    }
    if let (desired, found) = self.foundDamaged(partition) {
      let from = found.damagedFrom ?? found.logStart
      return desired.damagedFrom.map { $0 <= from } == true
        ? .waits : .report(desired.member, damagedFrom: from)
    }
    return self.isChanging(partition) ? .waits : .settled
  }

  /// What a disk did not give once it may give again; and what a repair cut off is no part of the log any more. Where others can lead,
  /// the replica is filled anew instead.
  private func checkAgain(at now: MonotonicInstant) {
    guard self.damageWatch.checking == nil, now >= self.damageWatch.checkAt else { return }
    self.damageWatch.checkAt = now + DamageWatch.pause
    for partition in self.damageWatch.suspects {
      // Found damaged again, maybe, since the image was last told of.
      if let owner = self.partitions[partition] { self.fillAnew(owner) }
    }
    for partition in self.damageWatch.suspects {
      guard let owner = self.partitions[partition], owner.lane.failure == nil,
        let mark = owner.desired.damagedFrom, owner.desired.isTrusted, !owner.isKnownWhole,
        owner.damage?.isPlaceKnown ?? true
      else { continue }
      let from = Swift.max(
        Swift.min(mark, owner.damage?.from ?? mark), owner.core.log.localStart)
      self.damageWatch.checking = partition
      let (mailbox, volume, end) = (self.mailbox!, owner.lane.volume, owner.core.log.durableEnd)
      Task {
        var isWhole = from >= end
        if !isWhole {
          // A failure has been noted by the volume.
          let read = try? await volume.read(partition, from: from, below: end, maxBytes: 1)
          isWhole = read?.batches.isEmpty == false
        }
        let (volumeID, answer) = (volume.id, isWhole)
        mailbox.post(.run { $0.checkedAgain(partition, on: volumeID, isWhole: answer) })
      }
      return
    }
  }

  private func checkedAgain(_ partition: TopicPartition, on volume: VolumeID, isWhole: Bool) {
    self.damageWatch.checking = nil
    guard isWhole, let owner = self.partitions[partition], owner.lane.volume.id == volume else {
      return
    }
    self.logger.notice(
      "What did not read reads again", metadata: ["partition": "\(owner.name)"])
    owner.damage = nil
    owner.isKnownWhole = true
    owner.lane.volume.forgetDamage(partition)
    self.damageChanged()
    self.damageWatch.reportAt = self.clock.monotonic
    self.reportDamage(at: self.clock.monotonic)
  }
}

extension PartitionOwner {
  /// Lets go of damaged records that the object tier has: from now on readers and followers find them there.
  ///
  /// - Returns: false: it does not have them.
  func giveUpUploaded(from offset: Offset) -> Bool {
    let uploaded = Swift.min(
      Swift.max(self.core.log.uploadedOffset, self.desired.uploadedOffset), self.core.highWatermark)
    guard self.desired.hasObjectTier, offset < uploaded else { return false }
    self.feed(.localStartMoved(uploaded))
    return true
  }

  /// What a leader says whose records do not read: who is in sync besides it takes over, and has them.
  func damageError(_ error: MemQError, at offset: Offset) -> MemQError {
    if offset < self.core.log.localStart {
      return MemQError(
        .offsetOutOfRange, "the offset is no longer on the SSD: read it from the object tier",
        subject: self.name, limit: self.core.log.localStart.rawValue, actual: offset.rawValue)
    }
    guard self.core.leader != nil else { return AppendRefusal.notLeader.error(self.name) }
    return self.desired.hasSoundPeer ? self.handsOver(error) : error
  }

  private func handsOver(_ error: MemQError) -> MemQError {
    MemQError(
      .leaderNotAvailable, "the leader's records are damaged, another replica takes over: \(error)",
      subject: self.name)
  }

  /// A damaged replica that nobody can replace gives what is whole and takes nothing more: a repair may have to cut it.
  func checkDamage() throws(MemQError) {
    guard let from = self.desired.damagedFrom, !self.isKnownWhole else { return }
    let error = MemQError(
      .logCorrupt,
      "the partition is damaged and no other replica is in sync: it is read-only until it is repaired (memq log repair)",
      subject: self.name, actual: from.rawValue)
    // The mark comes a moment before the election.
    throw self.desired.hasSoundPeer ? self.handsOver(error) : error
  }
}
