// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// A map that iterates in key order: the same on every machine and in every run, which Dictionary is not.
///
/// Look-up is a binary search; inserting anywhere but at the end moves what follows.
public struct SortedMap<Key: Comparable, Value>: Sequence, ExpressibleByDictionaryLiteral {
  public private(set) var keys: [Key] = []
  public private(set) var values: [Value] = []

  public init() {}

  public init(dictionaryLiteral elements: (Key, Value)...) {
    for (key, value) in elements { self[key] = value }
  }

  public var count: Int { self.keys.count }
  public var isEmpty: Bool { self.keys.isEmpty }
  public var first: (key: Key, value: Value)? {
    self.isEmpty ? nil : (self.keys[0], self.values[0])
  }
  public var last: (key: Key, value: Value)? {
    self.isEmpty ? nil : (self.keys[self.count - 1], self.values[self.count - 1])
  }

  /// Index of the first key not below `key`: `count` when there is none.
  public func lowerBound(_ key: Key) -> Int {
    if let last = self.keys.last, last < key { return self.keys.count }
    var low = 0
    var high = self.keys.count
    while low < high {
      let middle = (low + high) / 2
      if self.keys[middle] < key { low = middle + 1 } else { high = middle }
    }
    return low
  }

  private func index(of key: Key) -> Int? {
    let at = self.lowerBound(key)
    return at < self.keys.count && self.keys[at] == key ? at : nil
  }

  public subscript(key: Key) -> Value? {
    get { self.index(of: key).map { self.values[$0] } }
    set {
      let at = self.lowerBound(key)
      let exists = at < self.keys.count && self.keys[at] == key
      switch (newValue, exists) {
      case (let value?, true): self.values[at] = value
      case (let value?, false):
        self.keys.insert(key, at: at)
        self.values.insert(value, at: at)
      case (nil, true):
        self.keys.remove(at: at)
        self.values.remove(at: at)
      case (nil, false): break
      }
    }
  }

  public subscript(key: Key, default value: @autoclosure () -> Value) -> Value {
    get { self[key] ?? value() }
    _modify {
      var at = self.lowerBound(key)
      if !(at < self.keys.count && self.keys[at] == key) {
        self.keys.insert(key, at: at)
        self.values.insert(value(), at: at)
      }
      defer { at = -1 }
      yield &self.values[at]
    }
  }

  @discardableResult
  public mutating func removeValue(forKey key: Key) -> Value? {
    guard let at = self.index(of: key) else { return nil }
    self.keys.remove(at: at)
    return self.values.remove(at: at)
  }

  /// Entries with keys in `range`, in order.
  public func entries(in range: Range<Key>) -> Zip2Sequence<ArraySlice<Key>, ArraySlice<Value>> {
    let low = self.lowerBound(range.lowerBound)
    let high = Swift.max(low, self.lowerBound(range.upperBound))
    return zip(self.keys[low..<high], self.values[low..<high])
  }

  public func makeIterator() -> Zip2Sequence<[Key], [Value]>.Iterator {
    zip(self.keys, self.values).makeIterator()
  }
}

extension SortedMap: Sendable where Key: Sendable, Value: Sendable {}
extension SortedMap: Equatable where Value: Equatable {}
extension SortedMap: Hashable where Key: Hashable, Value: Hashable {}
