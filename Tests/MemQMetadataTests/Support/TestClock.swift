// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQSystem
import Synchronization

/// Time that stands still until a test moves it.
final class TestClock: MemQClock {
  private let time = Mutex<Duration>(.zero)

  var monotonic: MonotonicInstant { .zero + self.time.withLock { $0 } }
  var wall: Timestamp {
    Timestamp(milliseconds: 1_700_000_000_000 + self.time.withLock { $0 }.milliseconds)
  }

  func advance(_ duration: Duration) { self.time.withLock { $0 += duration } }
}

/// The same numbers in each run.
final class TestEntropy: Entropy {
  private let last: Atomic<UInt64>

  init(from start: UInt64 = 0) { self.last = Atomic(start) }

  func next() -> UInt64 {
    // splitmix64
    var z = self.last.wrappingAdd(0x9E37_79B9_7F4A_7C15, ordering: .relaxed).newValue
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }
}

extension TaggedID {
  /// A short identifier for tests.
  init(test number: UInt64) { self.init(UniqueID(high: 0, low: number)) }
}

/// The error a body throws; nil: none.
func thrown<R>(_ body: () throws(MemQError) -> R) -> MemQError? {
  do throws(MemQError) {
    _ = try body()
    return nil
  } catch {
    return error
  }
}

func thrown<R>(_ body: () async throws -> R) async -> MemQError? {
  do {
    _ = try await body()
    return nil
  } catch {
    return error as? MemQError ?? MemQError(.internalError, "not one of ours: \(error)")
  }
}
