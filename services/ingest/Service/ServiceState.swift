// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQSystem
import Synchronization

/// Whether this ingest takes work, and its clock.
final class ServiceState: Sendable {
  let clock: any MemQClock
  private let draining = Atomic<Bool>(false)

  init(clock: any MemQClock) { self.clock = clock }

  var isDraining: Bool { self.draining.load(ordering: .relaxed) }

  /// Why new work is refused at the moment; nil: it is not.
  var refusal: MemQError? {
    self.isDraining
      ? MemQError(.shuttingDown, "this ingest is shutting down; go to another one") : nil
  }

  func beginDraining() { self.draining.store(true, ordering: .relaxed) }
}
