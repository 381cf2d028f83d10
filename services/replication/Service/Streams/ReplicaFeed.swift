// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQAPI
import MemQModel
import MemQRPC
import MemQReplication
import MemQRuntime
import NIOCore
import SwiftProtobuf
import Synchronization

/// A leader node's way to one follower volume: the two streams that volume opened, and how much is on its way on each.
///
/// Shards of any loop push onto it. What was pushed and is not durable at the follower counts as on its way: above the
/// limit shards read nothing more from their logs, so a slow follower costs this node no memory beyond it.
final class ReplicaFeed: Sendable {
  enum Kind: Int, Sendable {
    case tail
    case catchUp
  }

  /// Batch bytes on their way on one stream, and one message more from each shard: enough for a 10 Gbit/s link at 6 ms from push
  /// to durable.
  static let inFlightBytesMax = 8 << 20
  /// Heartbeats wait while so much else does.
  private static let queuedBytesMax = 1 << 20

  private struct State {
    var tail: RPCServerCall?
    var catchUp: RPCServerCall?
    /// What it carries, to be closed with it.
    var opens: [TopicPartition: OpenNumber] = [:]
    var inFlight = [0, 0]
    /// Shards that wait for room.
    var waiting: [PartitionShard] = []
    var isOver = false
  }

  let follower: ReplicaMember
  let session: Int64
  private let shard: @Sendable (TopicPartition) -> PartitionShard?
  private let state = Mutex(State())

  init(
    to follower: ReplicaMember, session: Int64,
    shard: @escaping @Sendable (TopicPartition) -> PartitionShard?
  ) {
    self.follower = follower
    self.session = session
    self.shard = shard
  }

  /// A later life of the follower's node replaces an earlier one, and within one life a later pair of streams.
  func isOlder(than other: (epoch: NodeEpoch, session: Int64)) -> Bool {
    (self.follower.nodeEpoch.rawValue, self.session) < (other.epoch.rawValue, other.session)
  }

  // MARK: - Streams

  /// False when it has that stream already, or is over.
  func attach(_ call: RPCServerCall, as kind: Kind) -> Bool {
    self.state.withLock { state in
      guard !state.isOver else { return false }
      switch kind {
      case .tail:
        guard state.tail == nil else { return false }
        state.tail = call
      case .catchUp:
        guard state.catchUp == nil else { return false }
        state.catchUp = call
      }
      return true
    }
  }

  /// What the follower's tail stream brings.
  ///
  /// - Throws: `.corruptMessage`.
  func received(_ request: Memq_V1_ReplicateRequest) throws(MemQError) {
    for wire in request.opens {
      let partition = try TopicPartition(wire.topicPartition)
      let open = try OpenRequest(wire, from: self.follower)
      let isOver = self.state.withLock { state in
        state.opens[partition] = open.number
        return state.isOver
      }
      guard !isOver else { return }
      self.shard(partition)?.mailbox.post(.leaderNews(partition, .opened(open, self)))
    }
    for wire in request.positions {
      let partition = try TopicPartition(wire.topicPartition)
      let position = FollowerPosition(wire, from: self.follower)
      self.shard(partition)?.mailbox.post(.leaderNews(partition, .positioned(position)))
    }
  }

  /// Ends both streams and closes what they carried. Once.
  func end(_ status: RPCStatus) {
    let (calls, opens) = self.state.withLock { state in
      defer {
        state.isOver = true
        state.tail = nil
        state.catchUp = nil
        state.opens = [:]
        state.waiting = []
      }
      return ([state.tail, state.catchUp].compactMap { $0 }, state.opens)
    }
    for call in calls { call.finish(status) }
    for (partition, number) in opens {
      self.shard(partition)?.mailbox.post(
        .leaderNews(partition, .closed(self.follower.id, number)))
    }
  }

  var isOver: Bool { self.state.withLock { $0.isOver } }

  // MARK: - Sending

  /// Bytes that may be pushed now; zero: the shard is called once there is room.
  func room(_ kind: Kind, for shard: PartitionShard) -> Int {
    self.state.withLock { state in
      guard !state.isOver, kind == .tail ? state.tail != nil : state.catchUp != nil else {
        return 0
      }
      let room = Swift.max(0, Self.inFlightBytesMax - state.inFlight[kind.rawValue])
      if room == 0, !state.waiting.contains(where: { $0 === shard }) {
        state.waiting.append(shard)
      }
      return room
    }
  }

  func charge(_ bytes: Int, _ kind: Kind) {
    guard bytes > 0 else { return }
    self.state.withLock { $0.inFlight[kind.rawValue] += bytes }
  }

  func release(_ bytes: Int, _ kind: Kind) {
    guard bytes > 0 else { return }
    let waiting = self.state.withLock { state in
      state.inFlight[kind.rawValue] -= bytes
      precondition(state.inFlight[kind.rawValue] >= 0, "more is released than was charged")
      guard state.inFlight[kind.rawValue] < Self.inFlightBytesMax else {
        return [PartitionShard]()
      }
      defer { state.waiting = [] }
      return state.waiting
    }
    for shard in waiting { shard.mailbox.post(.run { $0.pushWaiting() }) }
  }

  var inFlightBytes: Int { self.state.withLock { $0.inFlight.reduce(0, +) } }

  /// From any thread; those of one thread keep their order on one stream.
  func send(_ message: RPCMessage, on kind: Kind) {
    let call = self.state.withLock { kind == .tail ? $0.tail : $0.catchUp }
    call?.send(message)
  }

  /// A sign of life, on a call's own loop.
  static func keepAlive(_ call: RPCServerCall) {
    guard call.queuedBytes <= Self.queuedBytesMax else { return }
    call.send(Memq_V1_ReplicateResponse().encoded())
  }
}

/// The Replicate call on its connection's loop.
final class ReplicateStream: RPCServerHandler, @unchecked Sendable {
  /// The follower gives a stream up after 3 s of silence.
  private static let keepAliveInterval: TimeAmount = .seconds(1)

  private let call: RPCServerCall
  private let streams: ReplicaStreams
  private var feed: ReplicaFeed?
  private var isTail = false
  private var isEnded = false
  private var keepAlive: RepeatedTask?

  init(_ call: RPCServerCall, _ streams: ReplicaStreams) {
    self.call = call
    self.streams = streams
  }

  func received(_ message: RPCMessage) {
    guard !self.isEnded else { return }
    self.call.consumed(message.byteCount)
    do throws(MemQError) {
      let request = try Memq_V1_ReplicateRequest(decoding: message)
      if self.feed == nil { try self.begin(request) }
      guard self.isTail || request.opens.isEmpty && request.positions.isEmpty else {
        throw MemQError(.corruptMessage, "nothing goes up the catch-up stream but its hello")
      }
      try self.feed?.received(request)
    } catch {
      self.streams.refused(error)
      self.finish(RPCStatus(error))
    }
  }

  private func begin(_ request: Memq_V1_ReplicateRequest) throws(MemQError) {
    guard request.hasHello else {
      throw MemQError(.corruptMessage, "a replica's stream begins with its hello")
    }
    let kind: ReplicaFeed.Kind
    switch request.hello.kind {
    case .tail: kind = .tail
    case .catchUp: kind = .catchUp
    case .unspecified, .UNRECOGNIZED:
      throw MemQError(
        .corruptMessage, "no such kind of stream", actual: Int64(request.hello.kind.rawValue))
    }
    self.feed = try self.streams.attach(request.hello, self.call, as: kind)
    self.isTail = kind == .tail
    let call = self.call
    self.keepAlive = call.eventLoop.scheduleRepeatedTask(
      initialDelay: .zero, delay: Self.keepAliveInterval
    ) { _ in ReplicaFeed.keepAlive(call) }
  }

  private func finish(_ status: RPCStatus) {
    guard !self.isEnded else { return }
    self.end(status)
    self.call.finish(status)
  }

  private func end(_ status: RPCStatus) {
    self.isEnded = true
    self.keepAlive?.cancel()
    self.keepAlive = nil
    if let feed = self.feed { self.streams.ended(feed, status) }
    self.feed = nil
  }

  func halfClosed() { self.finish(RPCStatus(.ok, "")) }

  func writable() {}

  func ended(_ status: RPCStatus) {
    guard !self.isEnded else { return }
    self.end(RPCStatus(.cancelled, "the other stream of the pair ended"))
  }
}
