// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog
import MemQModel
import MemQSystem

extension Volume {
  /// How long the disk has owed an answer to a write or a sync of the log, where that is `stallAfter` or longer; nil: it answers, or is
  /// asked for nothing. Nothing is lost by it and nothing given up: the kernel may still get it done. Does not block.
  public var stalledFor: Duration? {
    let now = self.engine.clock.monotonic
    let since = self.engine.monitor.withLock { state in
      state.core.failure == nil ? state.diskSince.compactMap { $0 }.min() : nil
    }
    guard let since, now - since >= self.configuration.stallAfter else { return nil }
    return now - since
  }
}
