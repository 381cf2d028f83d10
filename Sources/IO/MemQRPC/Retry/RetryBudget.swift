// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Synchronization

/// Tokens of a channel: a failure takes one, a success brings a tenth back, and with half or less of the ten there are no retries.
final class RetryBudget: Sendable {
  /// In thousandths of a token.
  private static let max = 10_000
  private static let perSuccess = 100
  private static let perFailure = 1_000

  private let tokens = Atomic(RetryBudget.max)

  /// Calls are many and the bucket is full most of the time: then nothing is written.
  func succeeded() {
    let held = self.tokens.load(ordering: .relaxed)
    guard held < Self.max else { return }
    self.change(from: held, by: Self.perSuccess)
  }

  /// Answers whether a retry is allowed.
  func failed() -> Bool {
    self.change(from: self.tokens.load(ordering: .relaxed), by: -Self.perFailure) > Self.max / 2
  }

  @discardableResult
  private func change(from held: Int, by delta: Int) -> Int {
    var held = held
    while true {
      let next = Swift.max(0, min(Self.max, held + delta))
      let (exchanged, original) = self.tokens.weakCompareExchange(
        expected: held, desired: next, ordering: .relaxed)
      if exchanged { return next }
      held = original
    }
  }
}
