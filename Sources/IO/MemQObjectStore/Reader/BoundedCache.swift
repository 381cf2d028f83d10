// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Values by key up to a bound of bytes; the least recently used go first. A value above the bound is not kept.
struct BoundedCache<Key: Hashable, Value> {
  private struct Slot {
    let value: Value
    let byteCount: Int
    var use: UInt64
  }

  let byteCountMax: Int
  private(set) var byteCount = 0
  private var slots: [Key: Slot] = [:]
  /// Uses in order; those whose number is not the slot's any more are stale.
  private var uses: [(key: Key, use: UInt64)] = []
  private var firstUse = 0
  private var lastUse: UInt64 = 0

  init(byteCountMax: Int) { self.byteCountMax = byteCountMax }

  var count: Int { self.slots.count }

  mutating func value(_ key: Key) -> Value? {
    guard let slot = self.slots[key] else { return nil }
    self.touch(key)
    return slot.value
  }

  mutating func insert(_ value: Value, byteCount: Int, for key: Key) {
    self.remove(key)
    guard byteCount <= self.byteCountMax else { return }
    self.slots[key] = Slot(value: value, byteCount: byteCount, use: 0)
    self.byteCount += byteCount
    self.touch(key)
    while self.byteCount > self.byteCountMax { self.evict() }
  }

  mutating func remove(_ key: Key) {
    if let old = self.slots.removeValue(forKey: key) { self.byteCount -= old.byteCount }
  }

  private mutating func touch(_ key: Key) {
    self.lastUse += 1
    self.slots[key]?.use = self.lastUse
    self.uses.append((key, self.lastUse))
    // Stale uses are at most as many as values, and a few.
    if self.uses.count > 2 * self.slots.count + 64 {
      self.uses = self.uses[self.firstUse...].filter { self.slots[$0.key]?.use == $0.use }
      self.firstUse = 0
    }
  }

  private mutating func evict() {
    while self.firstUse < self.uses.count {
      let (key, use) = self.uses[self.firstUse]
      self.firstUse += 1
      if self.slots[key]?.use == use { return self.remove(key) }
    }
  }
}
