// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQModel

/// The requests of one produce stream for one partition, in order: which may be sent now.
///
/// Several are in flight at once, until one must be tried again: then nothing more is sent before everything
/// in flight has settled, and the failed ones go first, one at a time until one is through. So a repetition never
/// overtakes. The first of all also goes alone: a leader that does not know the producer yet takes only its first batch.
///
///     waiting ──ready──▶ ready ──sent──▶ inFlight ──done──▶ (gone)
///                          ▲                 │
///                          └──────again──────┘
struct ProduceLine {
  enum State: Equatable {
    /// Not to be sent yet: its values are being scanned.
    case waiting
    case ready
    case inFlight
  }

  struct Entry: Equatable {
    let id: UInt64
    var state: State
    /// Times it was sent.
    var attempts = 0
    let deadline: MonotonicInstant
  }

  /// Requests of one partition in flight per stream: enough to cover a sync of some milliseconds with small requests.
  static let windowMax = 64

  private(set) var entries = Deque<Entry>()
  private var inFlight = 0
  /// One at a time: at the start, and after a failure.
  private var isCautious = true
  private var heldUntil: MonotonicInstant?

  var isEmpty: Bool { self.entries.isEmpty }

  mutating func add(_ id: UInt64, ready: Bool, deadline: MonotonicInstant) {
    self.entries.append(Entry(id: id, state: ready ? .ready : .waiting, deadline: deadline))
  }

  /// The scan let it pass.
  mutating func becameReady(_ id: UInt64) {
    guard let at = self.index(of: id), self.entries[at].state == .waiting else { return }
    self.entries[at].state = .ready
  }

  /// The next request to send, if any may be sent now; it counts as in flight from then on.
  mutating func takeNext(at now: MonotonicInstant) -> UInt64? {
    if let until = self.heldUntil {
      guard self.inFlight == 0, until <= now else { return nil }
    }
    guard self.inFlight < (self.isCautious ? 1 : Self.windowMax) else { return nil }
    // Everything before the first that is not in flight is in flight.
    guard let at = self.entries.firstIndex(where: { $0.state != .inFlight }),
      self.entries[at].state == .ready
    else { return nil }
    self.heldUntil = nil
    self.entries[at].state = .inFlight
    self.entries[at].attempts += 1
    self.inFlight += 1
    return self.entries[at].id
  }

  /// It is through, or was refused for good.
  mutating func settle(_ id: UInt64, succeeded: Bool) {
    guard let at = self.index(of: id) else { return }
    if self.entries[at].state == .inFlight { self.inFlight -= 1 }
    self.entries.remove(at: at)
    if succeeded, self.heldUntil == nil { self.isCautious = false }
  }

  /// It failed and is to be sent again, not before `time`.
  mutating func again(_ id: UInt64, notBefore time: MonotonicInstant) {
    guard let at = self.index(of: id), self.entries[at].state == .inFlight else { return }
    self.inFlight -= 1
    self.entries[at].state = .ready
    self.isCautious = true
    self.heldUntil = max(self.heldUntil ?? time, time)
  }

  /// Whether an earlier request than this one has failed and waits to be sent again.
  func hasFailedPredecessor(_ id: UInt64) -> Bool {
    for entry in self.entries {
      if entry.id == id { return false }
      if entry.state == .ready, entry.attempts > 0 { return true }
    }
    return false
  }

  func attempts(of id: UInt64) -> Int { self.index(of: id).map { self.entries[$0].attempts } ?? 0 }

  /// Requests that are not in flight and whose deadline has passed; they are still in the line.
  func expired(at now: MonotonicInstant) -> [UInt64] {
    self.entries.filter { $0.state != .inFlight && $0.deadline <= now }.map(\.id)
  }

  /// Whether time alone may let something move: a hold ends or a deadline passes.
  var waitsForTime: Bool { self.entries.contains { $0.state != .inFlight } }

  private func index(of id: UInt64) -> Int? { self.entries.firstIndex { $0.id == id } }
}
