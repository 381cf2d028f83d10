// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Events by virtual time; those of one instant in the order they were scheduled. A binary heap.
struct Scheduler<Event> {
  private struct Entry {
    var time: Int64
    var sequence: Int64
    /// In `events`: entries are small, because the heap moves them much.
    var place: Int

    func isBefore(_ other: Entry) -> Bool {
      self.time != other.time ? self.time < other.time : self.sequence < other.sequence
    }
  }

  private var heap: [Entry] = []
  private var events: [Event?] = []
  private var free: [Int] = []
  private var sequence: Int64 = 0
  /// Virtual nanoseconds.
  private(set) var now: Int64 = 0

  var count: Int { self.heap.count }

  mutating func schedule(_ event: Event, after delay: Int64) {
    precondition(delay >= 0, "time goes forward")
    self.sequence += 1
    let place = self.free.popLast() ?? self.events.count
    if place == self.events.count { self.events.append(event) } else { self.events[place] = event }
    self.heap.append(Entry(time: self.now + delay, sequence: self.sequence, place: place))
    var at = self.heap.count - 1
    while at > 0, self.heap[at].isBefore(self.heap[(at - 1) / 2]) {
      self.heap.swapAt(at, (at - 1) / 2)
      at = (at - 1) / 2
    }
  }

  /// The next event, unless it lies after `end`.
  mutating func next(before end: Int64) -> Event? {
    guard let first = self.heap.first, first.time < end else {
      self.now = Swift.max(self.now, end)
      return nil
    }
    self.now = first.time
    self.heap.swapAt(0, self.heap.count - 1)
    self.heap.removeLast()
    var at = 0
    while true {
      var least = at
      for child in [2 * at + 1, 2 * at + 2]
      where child < self.heap.count && self.heap[child].isBefore(self.heap[least]) {
        least = child
      }
      guard least != at else { break }
      self.heap.swapAt(at, least)
      at = least
    }
    self.free.append(first.place)
    return self.events[first.place].take()
  }
}
