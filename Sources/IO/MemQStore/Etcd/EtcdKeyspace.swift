// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// Where a cluster's keys stand in etcd: `<prefix>/k/` before each key of the store, and beside them what the store itself needs. No
/// prefix is another's beginning with the slash behind it, so clusters share an etcd without seeing each other.
struct EtcdKeyspace: Sendable {
  private let data: [UInt8]
  private let slots: [UInt8]

  /// - Parameter store: whose slots they are.
  init(prefix: String, store: String) {
    let prefix = Array(prefix.utf8)
    self.data = prefix + Array("/k/".utf8)
    self.slots = prefix + Array("/s/\(store)/".utf8)
  }

  func key(_ key: StoreKey) -> Data { Data(self.data + key.bytes) }

  /// A slot of transactions: ``EtcdSlots``.
  func slot(_ number: Int) -> Data { Data(self.slots + Array(String(number).utf8)) }

  /// Nil: it is not one of the store's.
  func storeKey(_ key: Data) -> StoreKey? {
    guard key.starts(with: self.data) else { return nil }
    return StoreKey(Array(key.dropFirst(self.data.count)))
  }

  /// First key and end, exclusive.
  func bounds(_ range: KeyRange) -> (lower: Data, upper: Data) {
    let lower = self.data + range.lower.bytes
    if let upper = range.upper { return (Data(lower), Data(self.data + upper.bytes)) }
    // The prefix ends in a slash: one more is the first key behind all of its own.
    var end = self.data
    end[end.count - 1] += 1
    return (Data(lower), Data(end))
  }
}
