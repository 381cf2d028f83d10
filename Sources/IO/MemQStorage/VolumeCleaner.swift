// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQLog
import MemQModel
import MemQSystem

/// Copies batches to cold segments on a thread of its own, one small synced write at a time, at the plan's rate.
final class VolumeCleaner: Sendable {
  private struct State {
    var plan: CarryPlan?
    var isStopped = false
  }

  private let monitor = Monitor(State())

  /// Takes up the plan; there is one at a time.
  func carry(_ plan: CarryPlan) {
    self.monitor.withLock { $0.plan = plan }
    self.monitor.broadcast()
  }

  /// What is under way is left as it stands: without the log's word it is a free file.
  func stop() {
    self.monitor.withLock { $0.isStopped = true }
    self.monitor.broadcast()
  }

  /// The thread's body.
  func run(_ engine: VolumeEngine) {
    while let plan = self.nextPlan() { self.carry(plan, engine) }
  }

  private func nextPlan() -> CarryPlan? {
    self.monitor.await { state in
      if state.isStopped { return .done(nil) }
      guard let plan = state.plan else { return .wait(until: nil) }
      state.plan = nil
      return .done(plan)
    }
  }

  private func carry(_ plan: CarryPlan, _ engine: VolumeEngine) {
    var carrier = SegmentCarrier(plan)
    var source = DiskSource(slots: [], files: engine.files)
    let start = engine.clock.monotonic
    var byteCount = 0
    while self.waits(until: Self.due(start, byteCount, plan), engine) {
      switch carrier.next(from: &source) {
      case .write(let parts):
        do throws(FileError) {
          try engine.patiently { () throws(FileError) in
            let file = try engine.files.file(plan.slot)
            for (position, bytes) in parts { try file.write(bytes, at: position) }
            try file.syncData()
          }
          for part in parts { byteCount += part.bytes.count }
        } catch {
          return engine.send(.diskFailed(error.memqError(.volumeFailed)))
        }
      case .done(let result):
        engine.metrics.carried(result.bytesCarried)
        return engine.send(.carried(result))
      }
    }
  }

  /// When as much may have been written at the plan's rate.
  private static func due(
    _ start: MonotonicInstant, _ byteCount: Int, _ plan: CarryPlan
  ) -> MonotonicInstant {
    guard let rate = plan.bytesPerSecond else { return start }
    return start + .seconds(1) * (Double(byteCount) / Double(rate))
  }

  /// False: the volume ends.
  private func waits(until due: MonotonicInstant, _ engine: VolumeEngine) -> Bool {
    let clock = engine.clock
    return self.monitor.await { state in
      if state.isStopped { return .done(false) }
      return clock.monotonic >= due ? .done(true) : .wait(until: due)
    }
  }
}

extension SegmentFile {
  /// Writes the bytes as one piece.
  func write(_ bytes: [UInt8], at position: Int64) throws(FileError) {
    var bytes = bytes
    let result = bytes.withUnsafeMutableBytes { bytes in
      Result { () throws(FileError) in
        var piece = FilePiece(bytes.baseAddress, count: bytes.count)
        try withUnsafeMutablePointer(to: &piece) { (piece) throws(FileError) in
          try self.write(
            gathered: UnsafeMutableBufferPointer(start: piece, count: 1), at: position)
        }
      }
    }
    try result.get()
  }
}
