// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQModel
import MemQReplication
import MemQStorage

/// Batches of one partition on their way to one follower, for one open. Lives on its partition's shard.
///
///     kind       event                                   kind
///     tail       next is not in memory any more          catch-up, once all that was pushed is confirmed
///     catch-up   next is in memory                       tail, once all that was pushed is confirmed
///
/// Each stream keeps its order and the two have none between them: so nothing is on its way on one when the other is used.
final class ReplicaPusher {
  /// Batches of one message; one batch may be larger.
  static let messageBytes = 1 << 20

  let feed: ReplicaFeed
  let number: OpenNumber
  /// All below was pushed.
  private(set) var next: Offset
  private(set) var kind = ReplicaFeed.Kind.tail
  /// The disk was asked for what is next.
  var isReading = false
  /// False until the follower confirmed something on this open: it may not have the answer yet.
  private var isConfirmed = false
  private var sent: Deque<(end: Offset, bytes: Int)> = []
  /// Pushed on earlier opens: it stands before this open's pushes on the same streams.
  private var inherited: [(bytes: Int, kind: ReplicaFeed.Kind)] = []
  /// What the last heartbeat said, and when.
  private var told: (heartbeat: Heartbeat, at: MonotonicInstant)?

  init(_ feed: ReplicaFeed, _ number: OpenNumber, from: Offset) {
    self.feed = feed
    self.number = number
    self.next = from
  }

  /// Takes over what the same follower's last open had on its way, so that opening again makes no room.
  func inherit(_ earlier: ReplicaPusher) {
    guard earlier.feed === self.feed else { return earlier.end() }
    self.inherited = earlier.inherited
    let bytes = earlier.sent.reduce(0) { $0 + $1.bytes }
    if bytes > 0 { self.inherited.append((bytes, earlier.kind)) }
    earlier.inherited = []
    earlier.sent = []
  }

  func pushed(_ bytes: Int, through end: Offset) {
    self.sent.append((end, bytes))
    self.next = end
    self.feed.charge(bytes, self.kind)
  }

  /// All below `end` is durable at the follower.
  func confirm(_ end: Offset) {
    self.isConfirmed = true
    for (bytes, kind) in self.inherited { self.feed.release(bytes, kind) }
    self.inherited = []
    var bytes = 0
    while let first = self.sent.first, first.end <= end {
      bytes += first.bytes
      self.sent.removeFirst()
    }
    self.feed.release(bytes, self.kind)
  }

  /// True once the kind is `kind`; else what is on its way has to be confirmed first.
  func turn(to kind: ReplicaFeed.Kind) -> Bool {
    if kind == self.kind { return true }
    guard self.isConfirmed, self.sent.isEmpty else { return false }
    self.kind = kind
    return true
  }

  /// Nothing counts as on its way any more.
  func end() {
    self.feed.release(self.sent.reduce(0) { $0 + $1.bytes }, self.kind)
    for (bytes, kind) in self.inherited { self.feed.release(bytes, kind) }
    self.sent = []
    self.inherited = []
  }

  /// The heartbeat, where it says something new or the last one was long ago.
  func news(_ heartbeat: Heartbeat, at now: MonotonicInstant) -> Heartbeat? {
    if let told, told.heartbeat == heartbeat, now - told.at < Self.repeatInterval { return nil }
    self.told = (heartbeat, now)
    return heartbeat
  }

  /// An idle partition's heartbeat is repeated so often; its follower opens again after 3 s without.
  private static let repeatInterval: Duration = .seconds(1)
}

/// What the disk had for a pusher.
struct PushRead: Sendable {
  let replica: ReplicaID
  let number: OpenNumber
  let feed: ReplicaFeed
  /// Kept free on the feed meanwhile.
  let charged: Int
  let result: Result<Volume.ReadResult, MemQError>
}
