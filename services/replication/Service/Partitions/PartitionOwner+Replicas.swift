// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQModel
import MemQRPC
import MemQReplication
import MemQStorage
import MemQSystem
import SwiftProtobuf

// What the partition says to its other replicas, and hears from them.
extension PartitionOwner {
  // MARK: - As leader

  func take(_ news: LeaderNews) {
    switch news {
    case .opened(let request, let feed):
      guard !feed.isOver else { return }
      guard self.core.leader != nil else {
        return feed.refuse(request, of: self.id, self.rejection(of: request))
      }
      self.asking = feed
      self.feed(.leader(.opened(request)))
      self.asking = nil
    case .positioned(let position):
      if let pusher = self.pushers[position.follower.id], pusher.number == position.number,
        position.leaderEpoch == self.core.leaderEpoch
      {
        pusher.confirm(position.durableEnd)
      }
      self.feed(.leader(.positioned(position)))
    case .closed(let replica, let number):
      if self.pushers[replica]?.number == number { self.stopPushing(to: replica) }
      self.feed(.leader(.closed(replica, number)))
    }
  }

  /// Followers may hear of an election before their leader: to say so brings them back sooner than silence would.
  private func rejection(of request: OpenRequest) -> OpenRejection {
    request.leaderEpoch < self.core.leaderEpoch
      ? .fencedLeaderEpoch(current: self.core.leaderEpoch)
      : .unknownLeaderEpoch(current: self.core.leaderEpoch)
  }

  func send(_ answer: OpenAnswer) {
    guard let feed = self.asking else { return }
    var response = Memq_V1_ReplicateResponse()
    response.answers = [answer.wire(of: self.id)]
    if case .accepted(let from) = answer.result, let leader = self.core.leader {
      let pusher = ReplicaPusher(feed, answer.number, from: from)
      if let earlier = self.stopped.removeValue(forKey: answer.follower) { pusher.inherit(earlier) }
      self.pushers[answer.follower] = pusher
      // The position it brings back shows that the answer was taken.
      response.heartbeats = [
        leader.heartbeat(answer.number, pushedThrough: from).wire(of: self.id)
      ]
    }
    feed.send(response.encoded(), on: .tail)
  }

  func stopPushing(to replica: ReplicaID) {
    self.pushers.removeValue(forKey: replica)?.end()
  }

  /// Pushes what followers lack, as far as there is room.
  ///
  /// - Returns: true when something is left that only other partitions, the disk or time can make way for.
  func push() -> Bool {
    guard !self.pushers.isEmpty, let leader = self.core.leader else { return false }
    let (epoch, end, highWatermark) = (leader.epoch, leader.log.end, leader.highWatermark)
    var isLeft = false
    for (replica, pusher) in self.pushers
    where self.push(to: replica, pusher, epoch, end, highWatermark) {
      isLeft = true
    }
    return isLeft
  }

  private func push(
    to replica: ReplicaID, _ pusher: ReplicaPusher, _ epoch: LeaderEpoch, _ end: Offset,
    _ highWatermark: Offset
  ) -> Bool {
    while pusher.next < end, !pusher.isReading {
      let room = pusher.feed.room(pusher.kind, for: self.shard)
      guard room > 0 else { return true }
      let maxBytes = Swift.min(room, ReplicaPusher.messageBytes)
      let inMemory: Volume.ReadResult?
      do throws(MemQError) {
        inMemory = try self.lane.volume.readFromMemory(
          self.id, from: pusher.next, below: end, maxBytes: maxBytes)
      } catch {
        self.cannotPush(to: replica, error)
        return false
      }
      guard let found = inMemory else {
        guard pusher.turn(to: .catchUp) else { return false }
        if pusher.feed.room(.catchUp, for: self.shard) == 0 { return true }
        self.read(for: pusher, to: replica, below: end, maxBytes: maxBytes)
        return false
      }
      // Decided on, and still waiting for the volume.
      guard !found.batches.isEmpty else { return true }
      guard pusher.turn(to: .tail) else { return false }
      self.push(found, on: pusher, epoch, highWatermark)
    }
    return false
  }

  private func push(
    _ found: Volume.ReadResult, on pusher: ReplicaPusher, _ epoch: LeaderEpoch,
    _ highWatermark: Offset
  ) {
    var response = Memq_V1_ReplicateResponse()
    response.push = Push.wire(
      of: self.id, epoch, pusher.number, found.batches, highWatermark: highWatermark)
    let payload = RPCMessage(slices: found.slices)
    pusher.pushed(payload.byteCount, through: found.nextOffset)
    pusher.feed.send(Hot(response, payload: payload).encoded(), on: pusher.kind)
    self.shard.metrics.pushed(bytes: payload.byteCount, from: pusher.kind)
  }

  private func read(
    for pusher: ReplicaPusher, to replica: ReplicaID, below end: Offset, maxBytes: Int
  ) {
    pusher.isReading = true
    pusher.feed.charge(maxBytes, .catchUp)
    let (partition, volume, mailbox) = (self.id, self.lane.volume, self.shard.mailbox!)
    let (feed, number, from) = (pusher.feed, pusher.number, pusher.next)
    Task {
      let result: Result<Volume.ReadResult, MemQError>
      do throws(MemQError) {
        result = .success(
          try await volume.read(partition, from: from, below: end, maxBytes: maxBytes))
      } catch {
        result = .failure(error)
      }
      mailbox.post(
        .pushRead(
          partition,
          PushRead(
            replica: replica, number: number, feed: feed, charged: maxBytes, result: result)))
    }
  }

  /// Pause before a disk that is too busy is asked again.
  private static let busyPause: Duration = .milliseconds(50)

  func take(_ read: PushRead) {
    guard let pusher = self.pushers[read.replica], pusher.number == read.number,
      let leader = self.core.leader
    else { return }
    switch read.result {
    case .success(let found) where !found.batches.isEmpty:
      pusher.isReading = false
      self.push(found, on: pusher, leader.epoch, leader.highWatermark)
      self.shard.wantsToPush(self)
    case .failure(let error) where error.code == .resourceExhausted:
      self.shard.after(Self.busyPause) { [weak self, weak pusher] in
        pusher?.isReading = false
        if let self { self.shard.wantsToPush(self) }
      }
    case .success:
      self.cannotPush(
        to: read.replica,
        MemQError(
          .logCorrupt, "the log has nothing at offset \(pusher.next), below its end",
          subject: self.name))
    case .failure(let error):
      self.cannotPush(to: read.replica, error)
    }
  }

  /// The follower hears no more of this open and asks again, where things may stand otherwise.
  private func cannotPush(to replica: ReplicaID, _ error: MemQError) {
    self.shard.logger.warning(
      "Can't send a follower what it lacks",
      metadata: ["partition": "\(self.name)", "replica": "\(replica)", "error": "\(error)"])
    self.stopPushing(to: replica)
  }

  /// Adds what followers must hear now and then.
  func addHeartbeats(to batch: inout HeartbeatBatch, at now: MonotonicInstant) {
    guard !self.pushers.isEmpty, let leader = self.core.leader else { return }
    for pusher in self.pushers.values {
      let heartbeat = leader.heartbeat(pusher.number, pushedThrough: pusher.next)
      guard let news = pusher.news(heartbeat, at: now) else { continue }
      batch.add(news.wire(of: self.id), to: pusher.feed, pusher.kind)
    }
  }

  // MARK: - As follower

  func take(_ news: FollowerNews) {
    switch news {
    case .answered(let answer):
      guard answer.follower == self.desired.member.id else { return }
      self.feed(.follower(.answered(answer)))
    case .heartbeat(let heartbeat): self.feed(.follower(.heartbeat(heartbeat)))
    case .disconnected(let node):
      guard self.core.follower?.leader.node == node else { return }
      self.feed(.follower(.disconnected))
    case .pushed(let push):
      for batch in push.batches {
        guard self.fits(batch) else { break }
        self.write(batch, of: push)
      }
      push.taken()
    }
  }

  private func write(_ batch: InboundPush.Batch, of push: InboundPush) {
    let token = self.nextToken()
    self.writing = (token, batch.slices, batch.byteCount)
    self.feed(
      .follower(
        .pushed(
          Push(
            leaderEpoch: push.leaderEpoch, number: push.number, batch: batch.summary,
            highWatermark: push.highWatermark), token: token)))
    self.writing = nil
  }

  /// A leader with larger segments may hold batches that this volume can't.
  private func fits(_ batch: InboundPush.Batch) -> Bool {
    guard batch.byteCount > self.lane.batchBytesMax else { return true }
    self.shard.logger.error(
      "A batch is larger than this volume's segments take: make segment.bytes as large as the leader's",
      metadata: [
        "partition": "\(self.name)", "limit": "\(self.lane.batchBytesMax)",
        "actual": "\(batch.byteCount)",
      ])
    self.feed(.follower(.disconnected))
    return false
  }

  func send(_ request: OpenRequest) {
    guard let leader = self.core.follower?.leader else { return }
    self.shard.streams.link(to: leader.node, for: self.lane.volume.id)?.post(
      .open(self.id, request))
  }

  func send(_ position: FollowerPosition) {
    guard let leader = self.core.follower?.leader else { return }
    self.shard.streams.link(to: leader.node, for: self.lane.volume.id)?.post(
      .position(self.id, position))
  }
}

extension ReplicaFeed {
  /// Answers an open that no leader's rules see.
  func refuse(_ request: OpenRequest, of partition: TopicPartition, _ why: OpenRejection) {
    let answer = OpenAnswer(
      follower: request.follower.id, leaderEpoch: request.leaderEpoch, number: request.number,
      result: .rejected(why))
    self.send(
      Memq_V1_ReplicateResponse.with { $0.answers = [answer.wire(of: partition)] }.encoded(),
      on: .tail)
  }
}

/// Heartbeats of a shard's partitions, by the streams they leave on.
struct HeartbeatBatch {
  /// Of one message.
  private static let countMax = 10_000

  private struct Key: Hashable {
    let feed: ObjectIdentifier
    let kind: ReplicaFeed.Kind
  }

  private var batches: [Key: (feed: ReplicaFeed, heartbeats: [Memq_V1_ReplicaHeartbeat])] = [:]

  mutating func add(
    _ heartbeat: Memq_V1_ReplicaHeartbeat, to feed: ReplicaFeed, _ kind: ReplicaFeed.Kind
  ) {
    let key = Key(feed: ObjectIdentifier(feed), kind: kind)
    self.batches[key, default: (feed, [])].heartbeats.append(heartbeat)
    if self.batches[key]!.heartbeats.count >= Self.countMax {
      self.send(key)
      self.batches[key] = nil
    }
  }

  private func send(_ key: Key) {
    guard let batch = self.batches[key] else { return }
    batch.feed.send(
      Memq_V1_ReplicateResponse.with { $0.heartbeats = batch.heartbeats }.encoded(), on: key.kind)
  }

  func send() { for key in self.batches.keys { self.send(key) } }
}
