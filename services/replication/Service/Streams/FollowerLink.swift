// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQModel
import MemQRPC
import MemQReplication
import MemQRuntime
import MemQSystem
import NIOCore
import SwiftProtobuf
import Synchronization

/// A follower volume's way to one leader node: the two streams, tail and catch-up, opened when a partition wants one.
///
///     state       event                      state
///     idle        an open                    waiting, for what is left of the back-off
///     waiting     time is up                 connected: hello, then what is to be sent
///     connected   either stream ends         idle; its partitions hear `.disconnected`
///     connected   silence                    idle, the same
///     connected   an open of a later life    waiting, the same
///
/// What it keeps is one open and one position for each partition. All state lives on `loop`; batches go from the stream's loop
/// straight to their partition's shard.
final class FollowerLink: @unchecked Sendable {
  enum Note: Sendable {
    case open(TopicPartition, OpenRequest)
    case position(TopicPartition, FollowerPosition)
    case ended(LinkStream, RPCStatus)
    case writable(LinkStream)
    case close
  }

  /// What all links of a node share.
  struct Context: Sendable {
    let cluster: ClusterSession
    let clock: any MemQClock
    let logger: Logger
    let metrics: ReplicationMetrics
    let silenceMax: Duration
    /// Numbers the pairs of streams of this process.
    let nextSession: @Sendable () -> Int64
    let shard: @Sendable (TopicPartition) -> PartitionShard?
  }

  /// Waits between attempts to reach a leader.
  private static let backoffRange: ClosedRange<Duration> = .milliseconds(50)...(.seconds(1))
  private static let watchInterval: TimeAmount = .milliseconds(500)

  private struct Pair {
    let nodeEpoch: NodeEpoch
    let tail: LinkStream
    let catchUp: LinkStream
    var isWritable = true
  }

  let leader: NodeID
  let volume: VolumeID
  let context: Context
  private let loop: any EventLoop
  private var notes: Mailbox<Note>!
  private var pair: Pair?
  /// To be sent, the newest of each partition.
  private var opens: [TopicPartition: OpenRequest] = [:]
  private var positions: [TopicPartition: FollowerPosition] = [:]
  /// Partitions with an open on the pair.
  private var carried: Set<TopicPartition> = []
  private var backoff = Backoff(FollowerLink.backoffRange)
  private var retryAt: MonotonicInstant
  private var attempt: Scheduled<Void>?
  private var watch: RepeatedTask?
  private var isClosed = false

  init(
    to leader: NodeID, for volume: VolumeID, on loop: any EventLoop, _ context: Context
  ) {
    self.leader = leader
    self.volume = volume
    self.loop = loop
    self.context = context
    self.retryAt = context.clock.monotonic
    self.notes = Mailbox(on: loop) { [weak self] notes in self?.take(notes) }
  }

  /// From any thread.
  func post(_ note: Note) { self.notes.post(note) }

  // MARK: - On the loop

  private func take(_ notes: [Note]) {
    for note in notes {
      switch note {
      case .open(let partition, let request): self.open(partition, request)
      case .position(let partition, let position):
        guard position.follower.nodeEpoch == self.pair?.nodeEpoch else { continue }
        self.positions[partition] = position
      case .ended(let stream, let status): self.ended(stream, status)
      case .writable(let stream): if stream === self.pair?.tail { self.pair?.isWritable = true }
      case .close: self.close()
      }
    }
    self.flush()
  }

  private func open(_ partition: TopicPartition, _ request: OpenRequest) {
    guard !self.isClosed else { return self.tell([partition]) }
    if let pair = self.pair, pair.nodeEpoch != request.follower.nodeEpoch {
      // A partition that hasn't heard of its node's later life yet.
      guard pair.nodeEpoch < request.follower.nodeEpoch else { return self.tell([partition]) }
      self.breakPair(RPCStatus(.cancelled, "the node lives anew"))
    }
    self.opens[partition] = request
    self.positions[partition] = nil
  }

  private func flush() {
    guard let pair = self.pair else {
      self.positions = [:]
      if !self.opens.isEmpty { self.connectWhenDue() }
      return
    }
    guard pair.isWritable, !self.opens.isEmpty || !self.positions.isEmpty else { return }
    let request = Memq_V1_ReplicateRequest.with { request in
      request.opens = self.opens.map { $0.value.wire(of: $0.key) }
      request.positions = self.positions.map { $0.value.wire(of: $0.key) }
    }
    self.carried.formUnion(self.opens.keys)
    self.opens = [:]
    self.positions = [:]
    self.pair?.isWritable = pair.tail.send(request)
  }

  private func connectWhenDue() {
    guard self.attempt == nil, !self.isClosed else { return }
    let wait = self.retryAt - self.context.clock.monotonic
    guard wait > .zero else { return self.connect() }
    self.attempt = self.loop.scheduleTask(in: .nanoseconds(wait.nanoseconds)) { [weak self] in
      guard let self else { return }
      self.attempt = nil
      if self.pair == nil && !self.opens.isEmpty { self.connect() }
    }
  }

  private func connect() {
    guard let epoch = self.opens.values.map(\.follower.nodeEpoch).max() else { return }
    self.retryAt = self.context.clock.monotonic + self.backoff.next()
    let stale = self.opens.filter { $0.value.follower.nodeEpoch != epoch }.map(\.key)
    for partition in stale { self.opens[partition] = nil }
    self.tell(stale)
    let channel: any RPCChannel
    do throws(MemQError) {
      channel = try self.context.cluster.channel(to: self.leader, lane: .replicas)
    } catch {
      return self.lost("\(error)")
    }
    var hello = Memq_V1_ReplicaHello()
    hello.clusterID = self.context.cluster.clusterID.wire
    hello.nodeID = self.context.cluster.nodeID.rawValue
    hello.nodeEpoch = epoch.rawValue
    hello.volumeID = self.volume.wire
    hello.leaderNodeID = self.leader.rawValue
    hello.session = self.context.nextSession()
    self.pair = Pair(
      nodeEpoch: epoch, tail: self.start(.tail, hello, channel),
      catchUp: self.start(.catchUp, hello, channel))
    self.watchForSilence()
    self.flush()
  }

  private func start(
    _ kind: Memq_V1_ReplicaStreamKind, _ hello: Memq_V1_ReplicaHello, _ channel: any RPCChannel
  ) -> LinkStream {
    var stream: LinkStream!
    _ = channel.start(ReplicationMethods.replicate.rpc) { call in
      stream = LinkStream(self, call, isTail: kind == .tail)
      return stream
    }
    var hello = hello
    hello.kind = kind
    _ = stream.send(.with { $0.hello = hello })
    return stream
  }

  /// A leader that says nothing on its tail stream is as good as gone, long before the connection notices.
  private func watchForSilence() {
    self.watch?.cancel()
    self.watch = self.loop.scheduleRepeatedTask(
      initialDelay: Self.watchInterval, delay: Self.watchInterval
    ) { [weak self] _ in
      guard let self, let pair = self.pair else { return }
      if pair.tail.hasSpoken { self.backoff.reset() }
      let silence = self.context.clock.monotonic - pair.tail.lastHeard
      // What waits here for the disk keeps the leader from saying more.
      guard silence > self.context.silenceMax, pair.tail.heldBytes == 0 else { return }
      self.breakPair(RPCStatus(.unavailable, "the leader is silent"))
      self.flush()
    }
  }

  private func ended(_ stream: LinkStream, _ status: RPCStatus) {
    guard let pair = self.pair, stream === pair.tail || stream === pair.catchUp else { return }
    self.breakPair(status)
  }

  private func breakPair(_ status: RPCStatus) {
    guard let pair = self.pair else { return }
    self.pair = nil
    self.watch?.cancel()
    self.watch = nil
    pair.tail.cancel()
    pair.catchUp.cancel()
    self.lost("\(status)")
  }

  private func lost(_ why: String) {
    self.context.logger.info(
      "No streams to a leader",
      metadata: ["node.id": "\(self.leader)", "volume": "\(self.volume)", "reason": "\(why)"])
    let partitions = self.carried.union(self.opens.keys)
    self.carried = []
    self.opens = [:]
    self.positions = [:]
    self.tell(partitions)
  }

  private func tell(_ partitions: some Sequence<TopicPartition>) {
    for partition in partitions {
      self.context.shard(partition)?.mailbox.post(
        .followerNews(partition, .disconnected(self.leader)))
    }
  }

  private func close() {
    self.isClosed = true
    self.attempt?.cancel()
    self.attempt = nil
    self.breakPair(RPCStatus(.cancelled, "the node stops"))
  }

  // MARK: - On a stream's loop

  /// - Throws: `.corruptMessage` and as `BatchCheck`: the stream is not what it should be.
  fileprivate func deliver(
    _ hot: Hot<Memq_V1_ReplicateResponse>, on stream: LinkStream, messageBytes: Int
  ) throws(MemQError) {
    let follower = ReplicaID(self.context.cluster.nodeID, self.volume)
    for wire in hot.header.answers {
      self.post(
        .answered(try OpenAnswer(wire, to: follower)), to: try TopicPartition(wire.topicPartition))
    }
    if hot.header.hasPush {
      let partition = try TopicPartition(hot.header.push.topicPartition)
      let push = try InboundPush(hot.header.push, payload: hot.payload) { [weak stream] in
        stream?.consumed(messageBytes)
      }
      if !self.post(.pushed(push), to: partition) { push.taken() }
    } else {
      stream.consumed(messageBytes)
    }
    for wire in hot.header.heartbeats {
      self.post(.heartbeat(Heartbeat(wire)), to: try TopicPartition(wire.topicPartition))
    }
  }

  @discardableResult
  private func post(_ news: FollowerNews, to partition: TopicPartition) -> Bool {
    guard let shard = self.context.shard(partition) else { return false }
    shard.mailbox.post(.followerNews(partition, news))
    return true
  }
}

/// One stream of a link, on whatever loop its call lives.
final class LinkStream: RPCClientHandler, @unchecked Sendable {
  private let link: FollowerLink
  private let call: RPCClientCall
  private let isTail: Bool
  private let heard: Atomic<Int64>
  private let spoken = Atomic(false)
  /// Of messages that the shards have not taken yet.
  private let held = Atomic(0)

  init(_ link: FollowerLink, _ call: RPCClientCall, isTail: Bool) {
    self.link = link
    self.call = call
    self.isTail = isTail
    self.heard = Atomic(link.context.clock.monotonic.nanoseconds)
  }

  var lastHeard: MonotonicInstant {
    MonotonicInstant(nanoseconds: self.heard.load(ordering: .relaxed))
  }
  var hasSpoken: Bool { self.spoken.load(ordering: .relaxed) }
  var heldBytes: Int { self.held.load(ordering: .relaxed) }

  func send(_ request: Memq_V1_ReplicateRequest) -> Bool { self.call.send(request.encoded()) }
  func cancel() { self.call.cancel() }

  func consumed(_ bytes: Int) {
    self.held.subtract(bytes, ordering: .relaxed)
    self.call.consumed(bytes)
  }

  func received(_ message: RPCMessage) {
    self.heard.store(self.link.context.clock.monotonic.nanoseconds, ordering: .relaxed)
    self.spoken.store(true, ordering: .relaxed)
    self.held.add(message.byteCount, ordering: .relaxed)
    do throws(MemQError) {
      let hot = try Hot<Memq_V1_ReplicateResponse>(decoding: message)
      try self.link.deliver(hot, on: self, messageBytes: message.byteCount)
    } catch {
      self.link.context.logger.error(
        "A leader's stream is damaged",
        metadata: ["node.id": "\(self.link.leader)", "error": "\(error)"])
      self.call.cancel()
    }
  }

  func writable() { if self.isTail { self.link.post(.writable(self)) } }

  func ended(_ status: RPCStatus, trailers: RPCMetadata) { self.link.post(.ended(self, status)) }
}
