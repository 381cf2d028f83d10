// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Who was heard of when, for sessions that end by silence: nodes, leases, group members.
///
/// Held by the controller only and never stored: a new controller gives everybody a full timeout. When the controller itself
/// stood still (a busy machine, a stopped process), the time it slept counts for nobody.
public struct Liveness<ID: Comparable & Sendable>: Sendable {
  private struct Session {
    var timeout: Duration
    var lastHeard: MonotonicInstant
  }

  /// A tick later than this after the one before it means that the controller stood still.
  private let tickGapMax: Duration
  private var sessions: SortedMap<ID, Session> = [:]
  private var lastTick: MonotonicInstant

  public init(at now: MonotonicInstant, tickGapMax: Duration) {
    self.lastTick = now
    self.tickGapMax = tickGapMax
  }

  public var count: Int { self.sessions.count }
  public func isKnown(_ id: ID) -> Bool { self.sessions[id] != nil }

  /// A sign of life; the first one begins the session.
  public mutating func heard(_ id: ID, at now: MonotonicInstant, timeout: Duration) {
    self.sessions[id] = Session(timeout: timeout, lastHeard: now)
  }

  /// Begins a session unless there is one.
  public mutating func expect(_ id: ID, at now: MonotonicInstant, timeout: Duration) {
    if self.sessions[id] == nil { self.heard(id, at: now, timeout: timeout) }
  }

  public mutating func forget(_ id: ID) { self.sessions[id] = nil }

  /// Whether the session's time is over.
  public func isSilent(_ id: ID, at now: MonotonicInstant) -> Bool {
    guard let session = self.sessions[id] else { return true }
    return now - session.lastHeard > session.timeout
  }

  /// Whether a session has run out. One that nothing is known of has not: it was granted a moment ago, and its time has yet
  /// to begin.
  public func hasRunOut(_ id: ID, at now: MonotonicInstant) -> Bool {
    self.isKnown(id) && self.isSilent(id, at: now)
  }

  /// Moves time on.
  ///
  /// - Returns: those silent for longer than their timeout, by id. They stay until they are forgotten.
  public mutating func tick(_ now: MonotonicInstant) -> [ID] {
    let gap = now - self.lastTick
    self.lastTick = now
    if gap > self.tickGapMax {
      for id in self.sessions.keys {
        self.sessions[id]!.lastHeard = min(self.sessions[id]!.lastHeard + gap, now)
      }
    }
    return self.sessions.keys.filter { self.isSilent($0, at: now) }
  }
}
