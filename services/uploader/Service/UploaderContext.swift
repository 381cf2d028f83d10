// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQModel
import MemQObjectStore
import MemQPacking
import MemQRPC
import MemQRuntime
import MemQSystem
import SwiftProtobuf
import Synchronization

/// What all parts of a running uploader share.
final class UploaderContext: Sendable {
  let configuration: UploaderNode.Configuration
  let cluster: any UploaderCluster
  let store: any ObjectStore
  /// Footers of objects, for the collector.
  let reader: ObjectReader
  let clock: any MemQClock
  let entropy: any Entropy = SystemEntropy()
  let logger: Logger
  let metrics = UploaderMetrics()
  /// Bounds the objects in memory, over all groups.
  let objectPermits: ObjectPermits
  private let billedReported = Mutex<Int64>(0)

  init(
    configuration: UploaderNode.Configuration, cluster: any UploaderCluster,
    store: any ObjectStore, clock: any MemQClock, logger: Logger
  ) {
    self.configuration = configuration
    self.cluster = cluster
    self.store = store
    self.clock = clock
    self.logger = logger
    self.objectPermits = ObjectPermits(configuration.objectsMax)
    self.reader = ObjectReader(store: store, logger: logger) {
      group, after throws(MemQError) in
      try await ObjectList.page(group, after: after, cluster.metadata)
    }
  }

  /// Billed requests nobody has reported yet. Who reports them takes them; `unreport` gives them back.
  func takeBilled() -> Int64 {
    let billed = self.store.requests.billed
    return self.billedReported.withLock { reported in
      defer { reported = billed }
      return billed - reported
    }
  }

  func giveBackBilled(_ count: Int64) { self.billedReported.withLock { $0 -= count } }

  var billedUnreported: Int64 {
    self.store.requests.billed - self.billedReported.withLock { $0 }
  }
}

/// Objects that may be in memory at a time; the groups take turns.
actor ObjectPermits {
  private var free: Int
  private var waiters: [CheckedContinuation<Void, Never>] = []

  init(_ count: Int) { self.free = count }

  func take() async {
    if self.free > 0 {
      self.free -= 1
    } else {
      await withCheckedContinuation { self.waiters.append($0) }
    }
  }

  func give() {
    if self.waiters.isEmpty { self.free += 1 } else { self.waiters.removeFirst().resume() }
  }
}
