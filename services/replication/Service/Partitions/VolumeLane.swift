// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import Logging
import MemQModel
import MemQRecords
import MemQReplication
import MemQStorage
import MemQSystem

/// One shard's way to one volume: everything for the volume passes here in order.
///
/// Appends gather while the shard works through its mailbox and leave together. Where the volume has no room, what was
/// decided stays here, and what was not yet decided parks in front of the rules; both go on when writes complete.
final class VolumeLane {
  /// Appends leave at this many bytes at the latest, so that one call never asks for more than the volume ever takes.
  private static let gatherBytesMax = 4 << 20

  let volume: Volume
  private unowned let shard: PartitionShard
  private var gathered: [Volume.Append] = []
  private var gatheredBytes = 0
  private var numbers: [(partition: TopicPartition, number: WriteNumber)] = []
  /// Decided on and not taken by the volume, oldest first; nothing else passes before.
  private var held: Deque<Held> = []
  private var parked: Deque<InboundAppend> = []
  private(set) var failure: MemQError?
  /// The largest batch the volume takes.
  let batchBytesMax: Int

  private enum Held {
    case appends([Volume.Append], [(partition: TopicPartition, number: WriteNumber)])
    /// False: the volume has no room for it, it waits.
    case call(() -> Bool)
  }

  init(_ volume: Volume, shard: PartitionShard) {
    self.volume = volume
    self.batchBytesMax = volume.batchBytesMax
    self.shard = shard
  }

  var parkedCount: Int { self.parked.count }

  /// True: the batch may be decided on now; else it was parked, or refused because the volume is full.
  func admit(_ append: InboundAppend) -> Bool {
    let bytes = self.gatheredBytes + append.header.batchLength
    if self.parked.isEmpty && self.held.isEmpty && self.volume.hasRoom(for: bytes) { return true }
    if self.volume.isFull(for: bytes) {
      self.shard.refuse(append, self.full)
    } else if append.parkedUntil <= self.shard.clock.monotonic {
      self.shard.refuse(append, self.late(append))
    } else {
      self.parked.append(append)
    }
    return false
  }

  /// Why a batch that nobody decided on waits no longer.
  private func late(_ append: InboundAppend) -> MemQError {
    if !self.held.isEmpty || !self.volume.hasSpace(for: append.header.batchLength) {
      return self.full
    }
    return MemQError(
      .resourceExhausted, "the volume did not take the batch in time: its disk is too slow",
      limit: (append.parkedUntil - append.receivedAt).milliseconds,
      actual: (self.shard.clock.monotonic - append.receivedAt).milliseconds)
  }

  private var full: MemQError {
    let damaged = self.volume.damagedPartitions.count
    let also =
      damaged == 0
      ? "" : "; damaged partitions (\(damaged)) hold segments back: repair or delete them"
    return MemQError(
      .volumeFull,
      "the volume has no room above its reserve; upload, delete or retain less, or add capacity\(also)",
      subject: "volume \(self.volume.id)")
  }

  func append(_ append: Volume.Append, byteCount: Int, number: WriteNumber) {
    self.gathered.append(append)
    self.numbers.append((append.partition, number))
    self.gatheredBytes += byteCount
    if self.gatheredBytes >= Self.gatherBytesMax { self.flush() }
  }

  /// Runs `body` after everything before it has gone to the volume.
  func inOrder(_ body: @escaping () -> Void) {
    self.inOrderOnceTaken {
      body()
      return true
    }
  }

  /// Runs `body` after everything before it, again later while it says that the volume is full; nothing passes it.
  func inOrderOnceTaken(_ body: @escaping () -> Bool) {
    self.flush()
    if !self.held.isEmpty || !body() { self.held.append(.call(body)) }
  }

  /// Gives what gathered to the volume.
  func flush() {
    guard !self.gathered.isEmpty else { return }
    let (appends, numbers) = (self.gathered, self.numbers)
    (self.gathered, self.numbers, self.gatheredBytes) = ([], [], 0)
    if !self.held.isEmpty || !self.give(appends, numbers) {
      self.held.append(.appends(appends, numbers))
    }
  }

  private func give(
    _ appends: [Volume.Append], _ numbers: [(partition: TopicPartition, number: WriteNumber)]
  ) -> Bool {
    let mailbox = self.shard.mailbox!
    let id = self.volume.id
    do throws(MemQError) {
      try self.volume.append(appends) { result in
        switch result {
        case .success: mailbox.post(.durable(numbers))
        case .failure(let error): mailbox.post(.refused(id, error))
        }
      }
      return true
    } catch {
      switch error.code {
      case .resourceExhausted, .volumeFull: return false
      default:
        mailbox.post(.volumeFailed(id, error))
        return true
      }
    }
  }

  /// Writes completed, or time passed: there may be room again.
  func goOn(at now: MonotonicInstant) {
    while let next = self.held.first {
      switch next {
      case .call(let body): guard body() else { return }
      case .appends(let appends, let numbers):
        guard self.give(appends, numbers) else { return }
      }
      self.held.removeFirst()
    }
    while let next = self.parked.first {
      let bytes = next.header.batchLength
      let isFull = self.volume.isFull(for: bytes)
      guard isFull || self.volume.hasRoom(for: bytes) else { return }
      self.parked.removeFirst()
      if isFull {
        self.shard.refuse(next, self.full)
        continue
      }
      self.shard.decide(next)
      self.flush()
      guard self.held.isEmpty else { return }
    }
  }

  /// Refuses what parked too long, while its sender still listens. Nothing of it was appended.
  func expire(at now: MonotonicInstant) {
    let late = self.parked.filter { $0.parkedUntil <= now }
    guard !late.isEmpty else { return }
    self.parked.removeAll { $0.parkedUntil <= now }
    for append in late { self.shard.refuse(append, self.late(append)) }
  }

  func failed(_ error: MemQError) {
    self.failure = error
    let held = self.held
    self.held = []
    (self.gathered, self.numbers, self.gatheredBytes) = ([], [], 0)
    let parked = self.parked
    self.parked = []
    for append in parked { self.shard.refuse(append, error) }
    // Whoever waits for a call hears of the failure from the volume itself.
    for case .call(let body) in held { _ = body() }
  }
}
