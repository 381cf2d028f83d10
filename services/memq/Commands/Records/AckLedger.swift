// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Synchronization

/// What is known of the lines sent so far, and the values to print as they are acknowledged.
final class AckLedger: Sendable {
  /// Failures that are told one by one; the rest is counted.
  private static let toldMax = 10
  /// Values that wait to be printed, in bytes: above it reading stops.
  static let waitingBytesMax = 8 << 20

  private struct State {
    var acknowledged = 0
    var failed = 0
    var isVerdict = false
    var waiting: [UInt8] = []
    var reader: UnsafeContinuation<Void, Never>?
    var isOver = false
    var isDiscarding = false
  }

  private let state = Mutex(State())

  /// - Parameter value: to be printed; nil: only counted.
  func acknowledged(_ value: [UInt8]?) {
    let reader = self.state.withLock { state -> UnsafeContinuation<Void, Never>? in
      state.acknowledged += 1
      guard let value, !state.isDiscarding else { return nil }
      state.waiting += value
      state.waiting.append(UInt8(ascii: "\n"))
      return state.reader.take()
    }
    reader?.resume()
  }

  func failed(line: Int, _ error: MemQError) {
    let count = self.state.withLock { state in
      state.failed += 1
      state.isVerdict = state.isVerdict || error.code == .infected || error.code == .notScanned
      return state.failed
    }
    if count <= Self.toldMax { Output.note("memq: line \(line): \(error)") }
    if count == Self.toldMax { Output.note("memq: further failures are only counted") }
  }

  /// No more acknowledgements will come.
  func finish() {
    let reader = self.state.withLock { state in
      state.isOver = true
      return state.reader.take()
    }
    reader?.resume()
  }

  /// Nobody prints any more: lines are sent and counted all the same.
  func discard() {
    self.state.withLock { state in
      state.isDiscarding = true
      state.waiting = []
    }
  }

  /// What waits to be printed; nil when nothing is left and nothing will come.
  func next() async -> [UInt8]? {
    while true {
      let (bytes, isOver) = self.state.withLock { state in
        defer { state.waiting = [] }
        return (state.waiting, state.isOver)
      }
      if !bytes.isEmpty { return bytes }
      if isOver { return nil }
      await withUnsafeContinuation { continuation in
        let isReady = self.state.withLock { state in
          if !state.waiting.isEmpty || state.isOver { return true }
          state.reader = continuation
          return false
        }
        if isReady { continuation.resume() }
      }
    }
  }

  var isBehind: Bool { self.state.withLock { $0.waiting.count > Self.waitingBytesMax } }
  var outcome: (acknowledged: Int, failed: Int, isVerdict: Bool) {
    self.state.withLock { ($0.acknowledged, $0.failed, $0.isVerdict) }
  }
}
