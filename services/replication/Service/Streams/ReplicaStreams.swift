// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQReplication
import MemQRuntime
import MemQSystem
import NIOCore
import SwiftProtobuf
import Synchronization

/// All streams between this node's replicas and those of others: links to leaders, feeds to followers.
final class ReplicaStreams: Sendable {
  private struct LinkKey: Hashable {
    let leader: NodeID
    let volume: VolumeID
  }

  private struct State {
    var shards: [PartitionShard] = []
    var links: [LinkKey: FollowerLink] = [:]
    var feeds: [ReplicaID: ReplicaFeed] = [:]
    var isClosed = false
  }

  private let cluster: ClusterSession
  private let clock: any MemQClock
  private let logger: Logger
  private let metrics: ReplicationMetrics
  private let silenceMax: Duration
  private let loops: any EventLoopGroup
  private let lastSession = Atomic<Int64>(0)
  private let state = Mutex(State())

  init(
    cluster: ClusterSession, clock: any MemQClock, logger: Logger, metrics: ReplicationMetrics,
    silenceMax: Duration, loops: any EventLoopGroup
  ) {
    self.cluster = cluster
    self.clock = clock
    self.logger = logger
    self.metrics = metrics
    self.silenceMax = silenceMax
    self.loops = loops
  }

  /// Before it, opens that come are refused.
  func start(_ shards: [PartitionShard]) { self.state.withLock { $0.shards = shards } }

  /// Ends every stream; later ones are refused.
  func close() {
    let (links, feeds) = self.state.withLock { state in
      state.isClosed = true
      defer {
        state.links = [:]
        state.feeds = [:]
        state.shards = []
      }
      return (Array(state.links.values), Array(state.feeds.values))
    }
    for link in links { link.post(.close) }
    for feed in feeds { feed.end(Self.stopping) }
    self.count()
  }

  private static let stopping = RPCStatus(
    MemQError(.shuttingDown, "the node is shutting down"))

  private func shard(of partition: TopicPartition) -> PartitionShard? {
    self.state.withLock { state in
      state.shards.isEmpty
        ? nil : state.shards[ReplicationNode.shardIndex(partition, of: state.shards.count)]
    }
  }

  private func count() {
    let (links, feeds) = self.state.withLock { ($0.links.count, $0.feeds.count) }
    self.metrics.setStreams(links: links, feeds: feeds)
  }

  // MARK: - As follower

  /// The way from one of this node's volumes to a leader. Nil: the node stops.
  func link(to leader: NodeID, for volume: VolumeID) -> FollowerLink? {
    let key = LinkKey(leader: leader, volume: volume)
    let (link, isNew) = self.state.withLock { state -> (FollowerLink?, Bool) in
      if state.isClosed { return (nil, false) }
      if let known = state.links[key] { return (known, false) }
      let made = FollowerLink(to: leader, for: volume, on: self.loops.next(), self.context)
      state.links[key] = made
      return (made, true)
    }
    if isNew { self.count() }
    return link
  }

  private var context: FollowerLink.Context {
    FollowerLink.Context(
      cluster: self.cluster, clock: self.clock, logger: self.logger, metrics: self.metrics,
      silenceMax: self.silenceMax,
      nextSession: { [weak self] in
        self?.lastSession.wrappingAdd(1, ordering: .relaxed).newValue ?? 0
      },
      shard: { [weak self] in self?.shard(of: $0) })
  }

  // MARK: - As leader

  /// Takes a stream of a follower's volume; an older pair of the same volume ends.
  ///
  /// - Throws: `.wrongCluster`, `.nodeUnknown`, `.staleNodeEpoch`, `.shuttingDown`, `.corruptMessage`; `.cancelled` where a newer pair
  ///   is there.
  func attach(
    _ hello: Memq_V1_ReplicaHello, _ call: RPCServerCall, as kind: ReplicaFeed.Kind
  ) throws(MemQError) -> ReplicaFeed {
    let follower = try self.check(hello)
    let session = hello.session
    let shard: @Sendable (TopicPartition) -> PartitionShard? = { [weak self] in
      self?.shard(of: $0)
    }
    let attached = self.state.withLock { state -> (ReplicaFeed?, replaced: ReplicaFeed?) in
      guard !state.isClosed, !state.shards.isEmpty else { return (nil, nil) }
      let known = state.feeds[follower.id]
      if let known, known.follower == follower, known.session == session {
        return (known, nil)
      }
      if let known, !known.isOlder(than: (follower.nodeEpoch, session)) { return (known, nil) }
      let feed = ReplicaFeed(to: follower, session: session, shard: shard)
      state.feeds[follower.id] = feed
      return (feed, known)
    }
    attached.replaced?.end(RPCStatus(MemQError(.cancelled, "a newer pair of streams took over")))
    self.count()
    guard let feed = attached.0 else {
      throw MemQError(.shuttingDown, "the node is starting or stopping")
    }
    guard feed.follower == follower, feed.session == session, feed.attach(call, as: kind) else {
      throw MemQError(.cancelled, "a newer pair of streams is there")
    }
    return feed
  }

  private func check(_ hello: Memq_V1_ReplicaHello) throws(MemQError) -> ReplicaMember {
    let cluster = try ClusterID(wire: hello.clusterID, "cluster_id")
    guard cluster == self.cluster.clusterID else {
      throw MemQError(
        .wrongCluster, "the follower belongs to cluster \(cluster), this node to another",
        subject: "\(self.cluster.clusterID)")
    }
    guard hello.leaderNodeID == self.cluster.nodeID.rawValue else {
      throw MemQError(
        .nodeUnknown, "the follower means another node", subject: "node \(self.cluster.nodeID)",
        actual: Int64(hello.leaderNodeID))
    }
    let node = NodeID(hello.nodeID)
    let epoch = NodeEpoch(hello.nodeEpoch)
    if let known = self.cluster.image.nodes[node]?.epoch, known > epoch {
      throw MemQError(
        .staleNodeEpoch, "the follower's node has a later life", subject: "node \(node)",
        limit: known.rawValue, actual: epoch.rawValue)
    }
    return ReplicaMember(
      ReplicaID(node, try VolumeID(wire: hello.volumeID, "volume_id")), epoch)
  }

  /// One of a feed's streams ended: so does the other.
  func ended(_ feed: ReplicaFeed, _ status: RPCStatus) {
    self.state.withLock { state in
      if state.feeds[feed.follower.id] === feed { state.feeds[feed.follower.id] = nil }
    }
    feed.end(status.isOK ? RPCStatus(.cancelled, "the other stream of the pair ended") : status)
    self.count()
  }

  func refused(_ error: MemQError) {
    self.logger.warning("Refuses a replica's stream", metadata: ["error": "\(error)"])
  }

  /// Batch bytes on their way to each follower volume.
  var inFlightBytes: [ReplicaID: Int] {
    self.state.withLock { $0.feeds }.mapValues(\.inFlightBytes)
  }
}
