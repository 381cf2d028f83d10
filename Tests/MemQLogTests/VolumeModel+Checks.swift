// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel

/// What a check found wrong.
struct ModelViolation: Error, CustomStringConvertible {
  let description: String
  /// The volume said itself that something is wrong.
  var error: MemQError?
}

extension VolumeModel {
  mutating func open() throws {
    let recovered = try self.volume.open(at: self.time, wall: self.wall)
    try self.compare(recovered)
  }

  /// Counts what the opening that ends did.
  private mutating func noteCounters() {
    guard let counters = self.volume.core?.stats.counters else { return }
    self.bytesCarried += counters.bytesCarried
    self.segmentsCarried += counters.segmentsCarried
    self.segmentsFreedUnstated += counters.segmentsFreedUnstated
  }

  mutating func crash() throws {
    self.noteCounters()
    self.crashes += 1
    self.volume.crash(&self.generator)
    try self.open()
  }

  mutating func kill() throws {
    self.noteCounters()
    self.crashes += 1
    self.volume.kill()
    try self.open()
  }

  mutating func closeAndOpen() throws {
    let request = self.request(0)
    self.send(.close(request))
    self.volume.drain(at: self.time, wall: self.wall)
    let completions = self.volume.takeCompletions()
    for (other, result) in completions where other == request {
      guard case .success = result else { throw ModelViolation(description: "close: \(result)") }
    }
    guard completions.contains(where: { $0.request == request }) else {
      throw ModelViolation(description: "close never completed")
    }
    // A full disk refuses what still waits; whatever came before may be what is left.
    let refused = completions.contains { other, result in
      if case .failure = result { other != request } else { false }
    }
    for (other, result) in completions {
      if case .success = result { self.acknowledge(other) }
    }
    for index in self.partitions.indices where !refused {
      // Everything was drained: the last state is durable.
      self.partitions[index].versions.removeFirst(self.partitions[index].versions.count - 1)
      self.partitions[index].requests = [nil]
    }
    self.noteCounters()
    self.volume.shut()
    try self.open()
    self.cleanOpens += 1
  }

  /// Each partition must have come back as one of the states it may have.
  private mutating func compare(_ recovered: [RecoveredPartition]) throws {
    for index in self.partitions.indices {
      let partition = self.partitions[index]
      let found = recovered.first { $0.partition == partition.id }
      let match = partition.versions.lastIndex { Self.matches($0, found) }
      guard let match else {
        throw ModelViolation(
          description: """
            \(partition.id) came back as \(found.map { "\($0.logStart)..<\($0.end) \($0.epochs)" } ?? "nothing"), \
            may be \(partition.versions.map { $0.exists ? "\($0.logStart)..<\($0.end) \($0.epochs)" : "nothing" })
            """)
      }
      if let found, self.segmentsFreedUnstated == 0,
        found.localStart > max(found.logStart, found.uploadedOffset)
      {
        throw ModelViolation(
          description:
            "\(partition.id) begins at \(found.localStart), and nothing says that it is uploaded from \(found.uploadedOffset) to there"
        )
      }
      let version = partition.versions[match]
      self.partitions[index].versions = [version]
      self.partitions[index].requests = [nil]
      if version.exists {
        self.partitions[index].toldStart = found!.localStart
        self.partitions[index].uploaded = min(self.partitions[index].uploaded, version.end)
        self.send(.setLocalRetention(partition.id, self.retention(index)))
        self.send(.setUploadedOffset(partition.id, self.partitions[index].uploaded))
        try Self.checkProducers(version, found!)
      }
      try self.check(index)
    }
  }

  private static func matches(_ version: Version, _ found: RecoveredPartition?) -> Bool {
    guard let found else { return !version.exists }
    return version.exists && version.logStart == found.logStart && version.end == found.end
      && version.epochs == found.epochs
  }

  /// Snapshot and the batches after it give every producer batch, none twice.
  private static func checkProducers(_ version: Version, _ found: RecoveredPartition) throws {
    // What was uploaded, or deleted, and left the disk counts too: a restart must not forget who wrote it.
    let start = found.producerSnapshot == nil ? .zero : found.producerSnapshotEnd
    let expected = (version.deleted + version.batches.map(\.summary)).filter {
      $0.producerID.rawValue >= 0 && $0.endOffset > start
    }
    let actual = found.batchesAfterSnapshot.filter { $0.endOffset > start }
    guard expected == actual else {
      throw ModelViolation(
        description:
          "\(found.partition), \(found.logStart)..<\(found.end): producer batches at "
          + "\(actual.map(\.baseOffset)), expected \(expected.map(\.baseOffset)) above \(start)")
    }
    if let snapshot = found.producerSnapshot {
      let text = "producers below \(found.producerSnapshotEnd)"
      guard snapshot == Array(text.utf8), found.producerSnapshotEnd <= version.end else {
        throw ModelViolation(description: "\(found.partition): another snapshot came back")
      }
    }
  }

  mutating func noteLocalStarts() {
    for (id, start) in self.volume.takeLocalStartMoves() {
      guard let index = self.partitions.firstIndex(where: { $0.id == id }) else { continue }
      self.partitions[index].toldStart = max(self.partitions[index].toldStart, start)
    }
  }

  /// Nobody reads below the local start that does not know where it is.
  mutating func checkLocalStarts() throws {
    self.noteLocalStarts()
    for partition in self.partitions {
      guard let state = self.volume.core?.state(of: partition.id) else { continue }
      guard state.localStart <= partition.toldStart else {
        throw ModelViolation(
          description:
            "\(partition.id) begins at \(state.localStart), and told only of \(partition.toldStart)"
        )
      }
    }
  }

  /// Everything on the disk reads back byte for byte, from every offset's batch on.
  mutating func check(_ index: Int) throws {
    let partition = self.partitions[index]
    let version = partition.now
    guard version.exists, let state = self.volume.core?.state(of: partition.id) else { return }
    guard state.end == version.end, state.logStart == version.logStart,
      state.epochs == version.epochs
    else {
      throw ModelViolation(
        description: "\(partition.id) is \(state), not \(version.logStart)..<\(version.end)")
    }
    // What is gone must have been uploaded (or lie below the log start).
    guard state.localStart <= max(partition.uploaded, version.logStart) else {
      throw ModelViolation(
        description: "\(partition.id) begins at \(state.localStart), uploaded \(partition.uploaded)"
      )
    }
    let expected = version.batches.filter { $0.summary.endOffset > state.localStart }
    var offset = state.localStart
    var found: [SimulatedVolume.ReadBatch] = []
    let maxBytes = Int.random(in: 1...8_000, using: &self.generator)
    while offset < version.end {
      let batches: [SimulatedVolume.ReadBatch]
      do {
        batches = try self.volume.read(
          partition.id, from: offset, below: version.end, maxBytes: maxBytes)
      } catch {
        throw ModelViolation(
          description: "\(partition.id) from \(offset): \(error)", error: error)
      }
      guard let last = batches.last else {
        throw ModelViolation(
          description: "\(partition.id) has nothing at \(offset) below \(version.end)")
      }
      found += batches
      let count = found.count
      guard count <= expected.count, last.bytes == expected[count - 1].bytes else {
        throw ModelViolation(description: "\(partition.id) reads other bytes at \(offset)")
      }
      offset = expected[count - 1].summary.endOffset
    }
    guard found.map(\.bytes) == expected.map(\.bytes),
      found.map(\.summary.appendTime) == expected.map(\.summary.appendTime)
    else {
      throw ModelViolation(description: "\(partition.id) reads other bytes")
    }
  }
}
