// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// Judges PINGs of a client. gRPC's rules, so that its clients know what to expect and what the answer means.
struct PingPolice {
  private var strikes = 0
  private var last: NIODeadline?

  /// - Returns: false when it was one too many.
  mutating func received(
    at now: NIODeadline, hasCalls: Bool, _ limits: RPCConnectionLimits
  ) -> Bool {
    let interval = hasCalls ? limits.pingIntervalMin : limits.pingIdleIntervalMin
    // A fifth of slack: who pings at the very interval is not to be struck for a loop that was late or early.
    let least = TimeAmount.nanoseconds(interval.timeAmount.nanoseconds / 5 * 4)
    if let last = self.last, now - last < least {
      self.strikes += 1
      return self.strikes <= limits.pingStrikesMax
    }
    self.strikes = max(0, self.strikes - 1)
    self.last = now
    return true
  }

  /// Who gets something from us may measure the way: PINGs between are no strikes.
  mutating func sentSomething() {
    self.strikes = 0
    self.last = nil
  }
}

/// Bounds frames that cost their sender nothing and bring nothing forward: WINDOW_UPDATE, PRIORITY, SETTINGS.
struct ControlFrameBudget {
  /// So many without any call; calls and data allow more, never more than this at once.
  private static let max = 10_000
  private static let perStream = 100

  private var left = Self.max

  /// - Returns: false when there were too many.
  mutating func spend() -> Bool {
    self.left -= 1
    return self.left >= 0
  }

  mutating func streamBegan() {
    self.left = min(Self.max, self.left + Self.perStream)
  }

  /// A DATA frame of ours, however small: some peers return its credit at once, for its stream and for the connection (HAProxy does);
  /// and credit for each KiB is the least a sensible peer returns.
  mutating func sent(_ bytes: Int) {
    self.left = min(Self.max, self.left + 4 + bytes / 1024)
  }
}

/// Follows the frames in received bytes, to tell whether the peer owes the rest of one.
///
/// nghttp2 tells of frames once they are whole, which may be never.
struct FrameTracker {
  private static let data: UInt8 = 0
  private static let headers: UInt8 = 1
  private static let continuation: UInt8 = 9
  private static let endHeaders: UInt8 = 4

  /// Bytes to pass over before the next frame head: those of a payload, and the client's preface at the start.
  private var skip: Int
  /// The frame head so far, first byte highest.
  private var head: UInt128 = 0
  private var headBytes = 0
  private var isInHeaderBlock = false
  private var isInData = false
  /// Frames, and whole header blocks, that came.
  private(set) var completed = 0

  init(prefaceBytes: Int) {
    self.skip = prefaceBytes
    self.isInData = false
  }

  /// The rest of a frame other than DATA, or of a header block, must come.
  var isOwed: Bool {
    self.headBytes > 0 || self.isInHeaderBlock || (self.skip > 0 && !self.isInData)
  }

  mutating func advance(_ bytes: UnsafeRawBufferPointer) {
    var position = 0
    while position < bytes.count {
      if self.skip > 0 {
        let passed = min(self.skip, bytes.count - position)
        self.skip -= passed
        position += passed
        if self.skip == 0 { self.frameEnded() }
        continue
      }
      self.head = self.head << 8 | UInt128(bytes[position])
      self.headBytes += 1
      position += 1
      if self.headBytes == 9 { self.frameBegan() }
    }
  }

  private mutating func frameBegan() {
    let type = UInt8(truncatingIfNeeded: self.head >> 40)
    let flags = UInt8(truncatingIfNeeded: self.head >> 32)
    self.skip = Int(truncatingIfNeeded: self.head >> 48) & 0xff_ffff
    self.head = 0
    self.headBytes = 0
    self.isInData = type == Self.data
    if type == Self.headers || type == Self.continuation {
      self.isInHeaderBlock = flags & Self.endHeaders == 0
    }
    if self.skip == 0 { self.frameEnded() }
  }

  private mutating func frameEnded() {
    if !self.isInHeaderBlock { self.completed &+= 1 }
  }
}
