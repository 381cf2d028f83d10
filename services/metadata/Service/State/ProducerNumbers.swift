// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel

/// Gives out producer ids from blocks reserved in the store: one write for a thousand of them.
actor ProducerNumbers {
  private let runner: CommandRunner
  private var blocks: SortedMap<String, [Range<Int64>]> = [:]

  init(runner: CommandRunner) { self.runner = runner }

  func next(_ counter: MemQMetadata.Counter) async throws(MemQError) -> ProducerID {
    while true {
      if let id = self.take(counter.rawValue) { return ProducerID(id) }
      let block = try await self.runner.run("reserve-producer-ids") { (state) throws(MemQError) in
        try state.reserveProducerIDs(counter)
      }
      self.blocks[counter.rawValue, default: []].append(block)
    }
  }

  private func take(_ counter: String) -> Int64? {
    guard var blocks = self.blocks[counter], let first = blocks.first, let id = first.first else {
      return nil
    }
    if first.count == 1 { blocks.removeFirst() } else { blocks[0] = (id + 1)..<first.upperBound }
    self.blocks[counter] = blocks
    return id
  }
}
