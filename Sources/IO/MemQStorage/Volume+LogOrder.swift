// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog
public import MemQModel
import MemQSystem

extension Volume {
  /// One partition's part of a read in the order of the log.
  public struct LogOrderWant: Hashable, Sendable {
    public var partition: TopicPartition
    /// A batch's base offset, or one within it.
    public var from: Offset
    /// Exclusive: batches that end above stay out.
    public var below: Offset
    /// Batch bytes, but at least one batch.
    public var maxBytes: Int

    public init(partition: TopicPartition, from: Offset, below: Offset, maxBytes: Int) {
      self.partition = partition
      self.from = from
      self.below = below
      self.maxBytes = maxBytes
    }
  }

  /// Partitions that one read in log order may name.
  public static let logOrderWantsMax = 10_000
  /// Places are found for so many partitions at a time, so that appends get their turn in between.
  private static let findCountMax = 256

  /// Reads for many partitions that are far behind, in the order of the log: the oldest segment that any of them wants, with
  /// large reads, each byte of it once. Batches come back regrouped, those of each partition in offset order.
  ///
  /// Call it again from each result's `nextOffset` until no result has batches: then nothing is left. A want whose batches are not in
  /// this segment, or did not fit into `maxBytes`, comes back empty meanwhile; each call serves at least one batch while there
  /// is one. Runs on the volume's catch-up threads.
  ///
  /// - Parameters:
  ///   - maxBytes: of all together, but at least one batch; at most 16 MiB count.
  ///   - deadline: for its turn on the threads; nil: 30 s.
  /// - Returns: a result for each want, in their order. Errors as `read`, of that want alone.
  /// - Throws: `.limitReached` for too many wants; `.volumeFailed`, `.cancelled`, `.deadlineExceeded`; retriable `.resourceExhausted`.
  public func readInLogOrder(
    _ wants: [LogOrderWant], maxBytes: Int, deadline: MonotonicInstant? = nil
  ) async throws(MemQError) -> [Result<ReadResult, MemQError>] {
    guard wants.count <= Self.logOrderWantsMax else {
      throw MemQError(
        .limitReached, "too many partitions in one read", subject: "volume \(self.id)",
        limit: Int64(Self.logOrderWantsMax), actual: Int64(wants.count))
    }
    var results = wants.map {
      Result<ReadResult, MemQError>.success(ReadResult(nextOffset: $0.from))
    }
    let (found, places) = try self.find(wants, &results)
    defer { for place in found { self.engine.send(.readEnded(place.plan.place!.slot)) } }
    guard !found.isEmpty else {
      self.serveFromMemory(wants, places, maxBytes, &results)
      return results
    }
    let now = self.engine.clock.monotonic
    let outcomes = try await self.catchUp.run(
      found.map(\.plan), limits: found.map { wants[$0.want].maxBytes },
      passBytes: min(maxBytes, CatchUpQueue.passBytesMax), since: now,
      deadline: deadline ?? now + Self.catchUpWaitMax)
    if Task.isCancelled { throw MemQError(.cancelled, "the reader is gone") }
    for (outcome, place) in zip(outcomes, found) {
      switch outcome {
      case .found(let result):
        self.engine.metrics.caughtUp(result.byteCount)
        results[place.want] = .success(result)
      case .notReached: break
      case .failed(let error):
        if error.code == .logCorrupt {
          let want = wants[place.want]
          self.note(error, want.partition, from: place.plan.from ?? want.from)
        }
        results[place.want] = .failure(error)
      }
    }
    return results
  }

  private struct Placed {
    let want: Int
    let plan: ReadPlan
  }

  /// What of the wants is in the oldest segment, each with its slot held; and those that are in memory. Errors go to `results`.
  private func find(
    _ wants: [LogOrderWant], _ results: inout [Result<ReadResult, MemQError>]
  ) throws(MemQError) -> (found: [Placed], inMemory: [Int]) {
    var found: [Placed] = []
    var inMemory: [Int] = []
    var start = 0
    while start < wants.count {
      let part = start..<min(start + Self.findCountMax, wants.count)
      start = part.upperBound
      let failure: MemQError? = self.engine.update { state, now, wall in
        if let failure = state.core.failure { return failure }
        for index in part {
          let want = wants[index]
          let cached = state.cache.start(of: want.partition)
          do throws(MemQError) {
            let below = try state.limit(want.partition, from: want.from, below: want.below)
            let plan = try state.core.locate(
              want.partition, from: want.from, below: min(below, cached ?? below),
              maxBytes: want.maxBytes)
            guard let (slot, segment) = plan.place else {
              if cached != nil { inMemory.append(index) }
              continue
            }
            let oldest = found.first?.plan.place!.segment ?? segment
            guard segment <= oldest else { continue }
            if segment < oldest {
              for place in found {
                state.core.handle(
                  .readEnded(place.plan.place!.slot), at: now, wall: wall, into: &state.effects)
              }
              found = []
            }
            state.core.handle(.readBegan(slot), at: now, wall: wall, into: &state.effects)
            found.append(Placed(want: index, plan: plan))
          } catch {
            results[index] = .failure(error)
          }
        }
        return nil
      }
      if let failure {
        for place in found { self.engine.send(.readEnded(place.plan.place!.slot)) }
        throw failure
      }
    }
    return (found, inMemory)
  }

  /// Nothing is on the disk alone any more.
  private func serveFromMemory(
    _ wants: [LogOrderWant], _ indices: [Int], _ maxBytes: Int,
    _ results: inout [Result<ReadResult, MemQError>]
  ) {
    var left = maxBytes
    for index in indices where left > 0 {
      let want = wants[index]
      let found = self.engine.monitor.withLock {
        $0.cache.read(
          want.partition, from: want.from, below: want.below, maxBytes: min(want.maxBytes, left))
      }
      guard let found else { continue }
      left -= found.byteCount
      results[index] = .success(found)
    }
  }
}
