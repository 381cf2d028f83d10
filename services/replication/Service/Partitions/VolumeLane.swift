// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import Logging
import MemQLog
import MemQModel
import MemQRecords
import MemQReplication
import MemQStorage
import MemQSystem

/// One shard's way to one volume: everything for the volume passes here in order.
///
/// Appends gather while the shard works through its mailbox and leave together. A produced batch has its place in the volume
/// reserved before it is decided on; where there is none it parks in front of the rules, or is refused. What else the volume has no
/// room for (a leader's pushes, state) stays here; all go on when writes complete.
final class VolumeLane {
  /// Appends leave at this many bytes at the latest, so that one call never asks for more than the volume ever takes.
  private static let gatherBytesMax = 4 << 20

  let volume: Volume
  private unowned let shard: PartitionShard
  private var gathered = Batches()
  /// The place of the batch that is being decided on.
  private var promised: RoomReservation?
  /// Decided on and not taken by the volume, oldest first; nothing else passes before.
  private var held: Deque<Held> = []
  private var parked: Deque<InboundAppend> = []
  private(set) var failure: MemQError?
  /// The largest batch the volume takes.
  let batchBytesMax: Int

  private struct Batches {
    var appends: [Volume.Append] = []
    var numbers: [(partition: TopicPartition, number: WriteNumber)] = []
    var byteCount = 0
    /// Those whose place is reserved, and these places.
    var promised: [Bool] = []
    var reserved = RoomReservation()

    /// Those with a place, then the others.
    func parts() -> [Batches] {
      guard self.promised.contains(true), self.promised.contains(false) else { return [self] }
      var parts = [Batches(), Batches()]
      for (index, isPromised) in self.promised.enumerated() {
        let part = isPromised ? 0 : 1
        parts[part].appends.append(self.appends[index])
        parts[part].numbers.append(self.numbers[index])
        parts[part].promised.append(isPromised)
      }
      parts[0].reserved = self.reserved
      return parts
    }
  }

  private enum Held {
    case appends(Batches)
    /// False: the volume has no room for it, it waits.
    case call(() -> Bool)
  }

  init(_ volume: Volume, shard: PartitionShard) {
    self.volume = volume
    self.batchBytesMax = volume.batchBytesMax
    self.shard = shard
  }

  var parkedCount: Int { self.parked.count }

  /// True: the batch may be decided on now, and then `decided` is called; else it was parked, or refused because the volume is full.
  func admit(_ append: InboundAppend) -> Bool {
    let bytes = append.header.batchLength
    if self.parked.isEmpty, self.held.isEmpty, let place = self.volume.reserve(bytes) {
      self.promised = place
      return true
    }
    if self.volume.isFull(for: bytes) {
      self.shard.refuse(append, self.full)
    } else if append.parkedUntil <= self.shard.clock.monotonic {
      self.shard.refuse(append, self.late(append))
    } else {
      self.parked.append(append)
    }
    return false
  }

  /// The batch that was admitted was decided on: whatever it was, nobody else uses its place.
  func decided() {
    guard let place = self.promised else { return }
    self.promised = nil
    self.volume.release(place)
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
    self.gathered.appends.append(append)
    self.gathered.numbers.append((append.partition, number))
    self.gathered.promised.append(self.promised != nil)
    self.gathered.byteCount += byteCount
    if let place = self.promised { self.gathered.reserved += place }
    self.promised = nil
    if self.gathered.byteCount >= Self.gatherBytesMax { self.flush() }
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
    guard !self.gathered.appends.isEmpty else { return }
    let batches = self.gathered
    self.gathered = Batches()
    if self.held.isEmpty, self.give(batches) { return }
    // What has its place never waits for what has none.
    let parts = batches.parts()
    for part in parts where parts.count == 1 || !self.held.isEmpty || !self.give(part) {
      self.held.append(.appends(part))
    }
  }

  private func give(_ batches: Batches) -> Bool {
    let mailbox = self.shard.mailbox!
    let id = self.volume.id
    let numbers = batches.numbers
    do throws(MemQError) {
      try self.volume.append(batches.appends, reserved: batches.reserved) { result in
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
      case .appends(let batches): guard self.give(batches) else { return }
      }
      self.held.removeFirst()
    }
    while let next = self.parked.first {
      let bytes = next.header.batchLength
      guard let place = self.volume.reserve(bytes) else {
        guard self.volume.isFull(for: bytes) else { return }
        self.parked.removeFirst()
        self.shard.refuse(next, self.full)
        continue
      }
      self.parked.removeFirst()
      self.promised = place
      self.shard.decide(next)
      self.decided()
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
    self.gathered = Batches()
    let parked = self.parked
    self.parked = []
    for append in parked { self.shard.refuse(append, error) }
    // Whoever waits for a call hears of the failure from the volume itself.
    for case .call(let body) in held { _ = body() }
  }
}
