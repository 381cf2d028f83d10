// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Synchronization

/// Bytes and requests of all produce streams that are not settled yet.
final class ProduceLoad: Sendable {
  private let bytes = Atomic<Int>(0)
  private let requests = Atomic<Int>(0)
  let bytesMax: Int

  init(bytesMax: Int) { self.bytesMax = bytesMax }

  var isFull: Bool { self.bytes.load(ordering: .relaxed) >= self.bytesMax }
  var bytesInFlight: Int { self.bytes.load(ordering: .relaxed) }
  var isIdle: Bool { self.requests.load(ordering: .relaxed) == 0 }

  func add(_ count: Int) {
    self.bytes.wrappingAdd(count, ordering: .relaxed)
    self.requests.wrappingAdd(1, ordering: .relaxed)
  }

  func remove(_ count: Int) {
    self.bytes.wrappingSubtract(count, ordering: .relaxed)
    self.requests.wrappingSubtract(1, ordering: .relaxed)
  }
}
