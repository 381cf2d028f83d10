// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQSystem
import NIOCore

/// Appends single batches for ingest's own purposes (files' records), trying again until a deadline.
struct Appender: Sendable {
  let cluster: any IngestCluster
  let lanes: AppendLanes
  let clock: any MemQClock
  let loops: any EventLoopGroup

  /// - Parameter isIdempotent: the batch carries a producer id, so that it may be sent again whatever happened.
  /// - Throws: what the leader refused it with, or the last failure when the deadline passed.
  func append(
    _ batch: [UInt8], to partition: TopicPartition, isIdempotent: Bool, timeout: Duration
  ) async throws(MemQError) -> AppendReply {
    let deadline = self.clock.monotonic + timeout
    let message = RPCMessage(ByteBuffer(bytes: batch))
    var attempts = 0
    while true {
      attempts += 1
      switch await self.once(message, to: partition, deadline: deadline) {
      case .success(let reply): return reply
      case .failure(let error):
        let step = RetryDecision.step(
          after: error, attempts: attempts, now: self.clock.monotonic, deadline: deadline,
          isIdempotent: isIdempotent, hasFailedPredecessor: false, jitter: .random(in: 0..<1))
        guard case .again(let wait) = step else { throw error }
        do {
          try await Task.sleep(for: wait)
        } catch {
          throw MemQError(.cancelled, "the append was given up")
        }
      }
    }
  }

  private func once(
    _ batch: RPCMessage, to partition: TopicPartition, deadline: MonotonicInstant
  ) async -> AppendResult {
    let image: (epoch: LeaderEpoch, node: NodeID)
    do throws(MemQError) {
      let (known, node) = try self.cluster.image.leader(of: partition)
      image = (known.leaderEpoch, node)
    } catch {
      return .failure(error)
    }
    let job = AppendJob(
      partition: partition, leaderEpoch: image.epoch, acks: .all, deadline: deadline, batch: batch)
    let loop = self.loops.any()
    return await withUnsafeContinuation { continuation in
      loop.execute {
        self.lanes.lane(to: image.node, on: loop).append(job) { continuation.resume(returning: $0) }
      }
    }
  }
}
