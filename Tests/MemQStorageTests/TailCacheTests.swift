// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQModel
@testable import MemQStorage
import NIOCore
import Testing

@Suite struct TailCacheTests {
  @Test func `trimmed batches leave no places behind one that stays`() throws {
    var cache = TailCache(bytesMax: 1 << 30)
    func append(_ partition: TopicPartition, at base: Offset) throws {
      let batch = Example.batch(at: base, bodyBytes: 10)
      let append = Volume.Append(
        partition: partition, summary: batch.summary, batch: [ByteBuffer(bytes: batch.bytes)])
      cache.durable(below: cache.append(try StoredBatch(append), to: partition))
    }
    let (idle, busy) = (Example.partition(0), Example.partition(1))
    try append(idle, at: .zero)
    var base = Offset.zero
    for _ in 0..<10_000 {
      try append(busy, at: base)
      base = base + 3
      cache.trim(busy, to: base)
    }
    #expect(cache.placeCount <= 1_100)
    #expect(cache.start(of: idle) == .zero && cache.start(of: busy) == nil)
  }
}
