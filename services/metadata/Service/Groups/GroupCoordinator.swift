// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
import Logging
import MemQMetadata
import MemQModel
import MemQSystem

/// A sign of life of a group member.
struct GroupBeat: Sendable {
  var session: GroupSession
  /// All that it reads; nil: as it said before.
  var reading: [TopicPartition]?
  /// How long it would wait for something new.
  var waitMax: Duration
  /// Rises with each call of the member.
  var number: Int64
}

/// Keeps the sessions of group members: who is alive, who takes too long to give partitions back, whose connection broke. None of it
/// is stored: after a start everybody gets a full timeout. What the core decides on is stored before anybody is told.
actor GroupCoordinator {
  /// Time for a member whose connection broke to be heard over another one.
  private static let brokenOffGrace: Duration = .seconds(3)
  /// A heartbeat is answered after so long at the latest.
  private static let heldMax: Duration = .seconds(30)
  /// How often members are to be heard, unless their session is short.
  private static let beatMax: Duration = .seconds(5)
  /// Heartbeats that wait; each holds a call. Others are answered at once.
  private static let heldCountMax = 20_000

  private let runner: CommandRunner
  private let clock: any MemQClock
  private let metrics: MetadataMetrics
  private let logger: Logger
  private let startGrace: Duration
  private var sessions: Liveness<GroupMemberKey>
  /// Members that have partitions to give back, since when.
  private var revocations: Liveness<GroupMemberKey>
  /// What each of them had to give back when its time began. Others may have come in addition; they get a time of their own once one of
  /// these is left no more. So each partition is waited for twice as long at most, and who gives back in time is never taken out.
  private var awaited: [GroupMemberKey: Set<TopicPartition>] = [:]
  /// The latest heartbeat of each member.
  private var numbers: [GroupMemberKey: Int64] = [:]
  /// Members whose connection broke and that were not heard since.
  private var brokenOff: SortedMap<GroupMemberKey, Bool> = [:]
  private var held: [String: [Int: CheckedContinuation<Void, Never>]] = [:]
  private var heldCount = 0
  private var nextHeld = 0
  private var topicsRevision = Revision.zero
  private var isTicking = false
  private var isClosed = false

  init(
    _ configuration: MetadataNode.Configuration, runner: CommandRunner, clock: any MemQClock,
    metrics: MetadataMetrics, logger: Logger
  ) {
    self.runner = runner
    self.clock = clock
    self.metrics = metrics
    self.logger = logger
    self.startGrace = max(configuration.startGrace, configuration.sessionTimeout)
    let gap = max(configuration.tickInterval * 5, configuration.sessionTimeout / 3)
    self.sessions = Liveness(at: clock.monotonic, tickGapMax: gap)
    self.revocations = Liveness(at: clock.monotonic, tickGapMax: gap)
  }

  /// Takes over: everybody known gets time to be heard.
  func begin() {
    let groups = self.runner.cell.read { $0.groups.values.map(\.value) }
    let now = self.clock.monotonic
    for group in groups {
      for member in group.members.values {
        self.sessions.heard(
          GroupMemberKey(group: group.name, memberID: member.id), at: now,
          timeout: max(self.startGrace, member.sessionTimeout))
      }
      self.follow(group.name)
      for member in group.members.values where member.isRevoking {
        self.revocations.heard(
          GroupMemberKey(group: group.name, memberID: member.id), at: now,
          timeout: max(self.startGrace, member.rebalanceTimeout))
      }
    }
  }

  /// Answers those who wait.
  func close() {
    self.isClosed = true
    for group in Array(self.held.keys) { self.wake(group) }
  }

  // MARK: Members

  func join(_ join: GroupJoin) async throws(MemQError) -> GroupPlace {
    let gone = self.brokenOff.keys.filter { $0.group == join.group }.map(\.memberID)
    let place = try await self.runner.run("join-group") { (state) throws(MemQError) in
      try state.joinGroup(join, gone: gone)
    }
    let key = GroupMemberKey(group: join.group, memberID: place.memberID)
    self.heard(key, timeout: place.sessionTimeout)
    self.follow(join.group)
    return place
  }

  func leave(_ session: GroupSession) async throws(MemQError) {
    try await self.runner.run("leave-group") { (state) throws(MemQError) in
      try state.leaveGroup(session)
    }
    self.forget(GroupMemberKey(group: session.group, memberID: session.memberID))
    self.follow(session.group)
  }

  /// - Returns: the member's place, whether that is news to it, and when to be heard again.
  /// - Throws: `.groupMemberUnknown`, `.groupMemberFenced`, `.shuttingDown`.
  func heartbeat(
    _ beat: GroupBeat
  ) async throws(MemQError) -> (place: GroupPlace, isNews: Bool, next: Duration) {
    let session = beat.session
    let key = GroupMemberKey(group: session.group, memberID: session.memberID)
    let first = try self.member(session)
    self.numbers[key] = max(beat.number, self.numbers[key] ?? 0)
    self.heard(key, timeout: first.sessionTimeout)
    var member = first
    if let reading = beat.reading, first.isRevoking {
      try await self.runner.run("heartbeat-group") { (state) throws(MemQError) in
        try state.heartbeatGroup(session, reading: reading)
      }
      self.follow(session.group)
      member = try self.member(session)
    }
    let deadline =
      self.clock.monotonic + min(beat.waitMax, Self.heldMax, first.sessionTimeout / 2)
    var wasHeld = false
    while !Self.isNews(member, to: beat), !Task.isCancelled, self.heldCount < Self.heldCountMax {
      let left = deadline - self.clock.monotonic
      guard left > .zero else { break }
      wasHeld = true
      await self.waitForChange(of: session.group, atMost: left)
      guard !self.isClosed else {
        throw MemQError(.shuttingDown, "this metadata instance shuts down")
      }
      member = try self.member(session)
    }
    let isNews = Self.isNews(member, to: beat)
    let next = isNews || wasHeld ? Duration.zero : min(first.sessionTimeout / 4, Self.beatMax)
    return (GroupPlace(member), isNews, next)
  }

  /// An ingest says that the member's connection broke during a heartbeat. One heard later has come over another connection. A member
  /// with an instance id keeps its place for the whole session: whoever has the id may come back for it.
  func brokeOff(_ session: GroupSession, number: Int64) {
    let key = GroupMemberKey(group: session.group, memberID: session.memberID)
    guard let member = try? self.member(session), member.instanceID.isEmpty,
      (self.numbers[key] ?? 0) <= number
    else { return }
    self.brokenOff[key] = true
    self.sessions.heard(
      key, at: self.clock.monotonic, timeout: min(Self.brokenOffGrace, member.sessionTimeout))
  }

  private func member(_ session: GroupSession) throws(MemQError) -> GroupRecord.Member {
    try self.runner.cell.read { (state) throws(MemQError) in try state.member(of: session).member }
  }

  /// Whether the member believes something else than what is so.
  private static func isNews(_ member: GroupRecord.Member, to beat: GroupBeat) -> Bool {
    guard member.epoch == beat.session.epoch else { return true }
    guard let reading = beat.reading else { return false }
    let read = Set(reading)
    return !member.assigned.allSatisfy { read.contains($0) }
      || !read.isSubset(of: member.owned.map(\.partition))
  }

  private func heard(_ key: GroupMemberKey, timeout: Duration) {
    self.brokenOff[key] = nil
    self.sessions.heard(key, at: self.clock.monotonic, timeout: timeout)
  }

  private func forget(_ key: GroupMemberKey) {
    self.sessions.forget(key)
    self.returned(key)
    self.numbers[key] = nil
    self.brokenOff[key] = nil
  }

  /// The group has changed: who has to give back is given time for it, and all hear of it.
  private func follow(_ name: String) {
    let group = self.runner.cell.read { $0.groups[name]?.value }
    let now = self.clock.monotonic
    for member in group?.members.values ?? [] {
      let key = GroupMemberKey(group: name, memberID: member.id)
      guard member.isRevoking else {
        self.returned(key)
        continue
      }
      let left = member.revoking
      if self.revocations.isKnown(key), let awaited = self.awaited[key],
        left.contains(where: { awaited.contains($0) })
      {
        continue
      }
      self.revocations.heard(key, at: now, timeout: member.rebalanceTimeout)
      self.awaited[key] = Set(left)
    }
    self.wake(name)
  }

  /// The member has nothing to give back.
  private func returned(_ key: GroupMemberKey) {
    self.revocations.forget(key)
    self.awaited[key] = nil
  }

  // MARK: Waiting

  private func waitForChange(of group: String, atMost limit: Duration) async {
    let id = self.nextHeld
    self.nextHeld += 1
    let timer = Task {
      try? await Task.sleep(for: limit)
      self.resume(group, id)
    }
    self.heldCount += 1
    await withTaskCancellationHandler {
      await withCheckedContinuation { self.held[group, default: [:]][id] = $0 }
    } onCancel: {
      Task { await self.resume(group, id) }
    }
    self.heldCount -= 1
    timer.cancel()
  }

  private func resume(_ group: String, _ id: Int) {
    self.held[group]?.removeValue(forKey: id)?.resume()
    if self.held[group]?.isEmpty ?? false { self.held[group] = nil }
  }

  private func wake(_ group: String) {
    for waiter in (self.held.removeValue(forKey: group) ?? [:]).values { waiter.resume() }
  }

  // MARK: Time

  /// Acts on silence, on partitions that do not come back, and on topics that have changed.
  func tick() async {
    guard !self.isTicking else { return }
    self.isTicking = true
    defer { self.isTicking = false }
    let now = self.clock.monotonic
    let silent = self.sessions.tick(now)
    let overdue = self.revocations.tick(now)
    do throws(MemQError) {
      for key in silent where self.sessions.isSilent(key, at: self.clock.monotonic) {
        if try await self.expire(key) {
          self.metrics.expiredMembers.increment()
          self.logger.info(
            "Group member fell silent",
            metadata: ["group": "\(key.group)", "member": "\(key.memberID)"])
        }
      }
      for key in overdue where self.revocations.hasRunOut(key, at: self.clock.monotonic) {
        if try await self.expire(key) {
          self.metrics.overdueMembers.increment()
          self.logger.notice(
            "Group member did not give partitions back in time",
            metadata: ["group": "\(key.group)", "member": "\(key.memberID)"])
        }
      }
      try await self.refresh()
    } catch {
      self.logger.warning("Could not look after groups", metadata: ["error": "\(error)"])
    }
    self.metrics.groupMembers.record(self.sessions.count)
    self.metrics.heldHeartbeats.record(self.heldCount)
  }

  private func expire(_ key: GroupMemberKey) async throws(MemQError) -> Bool {
    let isNew = try await self.runner.run("expire-member") { $0.expireMember(key) }
    self.forget(key)
    self.follow(key.group)
    return isNew
  }

  private func refresh() async throws(MemQError) {
    let revision = self.runner.cell.read { $0.topicsRevision }
    guard revision != self.topicsRevision else { return }
    for name in self.runner.cell.read({ $0.outdatedGroups }) {
      if try await self.runner.run("refresh-group", { $0.refreshGroup(name) }) { self.follow(name) }
    }
    self.topicsRevision = revision
  }
}
