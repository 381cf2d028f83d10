// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Testing

@testable import MemQClient

@Suite struct BackoffTests {
  @Test func `waits double up to half a second, with jitter`() {
    var backoff = Backoff()
    let waits = (0..<12).map { _ in backoff.step() }
    for (index, wait) in waits.enumerated() {
      let plain = min(Backoff.first * (1 << min(index, 10)), Backoff.longest)
      #expect(wait >= plain * 0.8 && wait <= plain * 1.2)
    }
  }
}
