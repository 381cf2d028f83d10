// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
public import MemQModel

/// Where time comes from; tests and the simulator bring their own.
public protocol MemQClock: Sendable {
  /// For deadlines and waits.
  var monotonic: MonotonicInstant { get }
  /// For people and retention; may jump.
  var wall: Timestamp { get }
}

/// The machine's clocks.
public struct SystemClock: MemQClock {
  public init() {}

  public var monotonic: MonotonicInstant {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    return MonotonicInstant(nanoseconds: Int64(now.tv_sec) * 1_000_000_000 + Int64(now.tv_nsec))
  }

  public var wall: Timestamp {
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    return Timestamp(milliseconds: Int64(now.tv_sec) * 1_000 + Int64(now.tv_nsec) / 1_000_000)
  }
}

/// Where random bits come from.
public protocol Entropy: Sendable {
  func next() -> UInt64
}

/// The kernel's random bits.
public struct SystemEntropy: Entropy {
  public init() {}
  public func next() -> UInt64 {
    var generator = SystemRandomNumberGenerator()
    return generator.next()
  }
}

extension Entropy {
  /// A fresh version 4 identifier.
  public func identifier<Tag>(_: TaggedID<Tag>.Type = TaggedID<Tag>.self) -> TaggedID<Tag> {
    TaggedID(UniqueID(random: self.next(), self.next()))
  }
}
