// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQRuntime
import MemQSystem
import NIOCore
import Synchronization

/// Every append lane of this ingest: one per event loop and leader.
final class AppendLanes: Sendable {
  private struct Key: Hashable {
    let loop: ObjectIdentifier
    let node: NodeID
  }

  /// Lanes kept: loops × leaders. Beyond, those to nodes that left are dropped.
  private static let lanesMax = 4_096

  private let cluster: any IngestCluster
  private let clock: any MemQClock
  private let lanes = Mutex<[Key: AppendLane]>([:])

  init(cluster: any IngestCluster, clock: any MemQClock) {
    self.cluster = cluster
    self.clock = clock
  }

  /// The lane from `loop` to `node`; to be used on that loop only.
  func lane(to node: NodeID, on loop: any EventLoop) -> AppendLane {
    let key = Key(loop: ObjectIdentifier(loop), node: node)
    return self.lanes.withLock { lanes in
      if let known = lanes[key] { return known }
      if lanes.count >= Self.lanesMax { self.dropGone(&lanes) }
      let cluster = self.cluster
      let lane = AppendLane(
        loop: loop, clock: self.clock,
        open: { () throws(MemQError) in try cluster.channel(to: node, lane: .append) },
        isAlive: { cluster.image.nodes[node]?.state.isLive ?? false })
      lanes[key] = lane
      return lane
    }
  }

  private func dropGone(_ lanes: inout [Key: AppendLane]) {
    let image = self.cluster.image
    for (key, lane) in lanes where image.nodes[key.node]?.state.isLive != true {
      lane.close()
      lanes[key] = nil
    }
  }

  func closeAll() {
    let all = self.lanes.withLock { lanes in
      defer { lanes = [:] }
      return Array(lanes.values)
    }
    for lane in all { lane.close() }
  }
}
