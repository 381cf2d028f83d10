// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRPC
import SwiftProtobuf
import Testing

@testable import MemQIngestService

/// When metadata hears that a member's heartbeat broke off.
@Suite(.timeLimit(.minutes(1))) struct GroupHeartbeatTests {
  private func beat(_ number: Int64, wait: Int32) -> Memq_V1_HeartbeatGroupRequest {
    .with {
      $0.group = "g"
      $0.memberID = "m"
      $0.number = number
      $0.waitMaxMs = wait
    }
  }

  @Test func `a heartbeat that its client cancels is told of after the next one`() async throws {
    let ingest = try await TestIngest.start([])
    let metadata = ingest.cluster.metadataService
    let held = Task {
      try await ingest.client.call(
        IngestMethods.heartbeatGroup, beat(1, wait: 30_000), timeout: .seconds(60))
    }
    while metadata.beats.isEmpty { await Task.yield() }
    held.cancel()
    _ = await held.result
    while !metadata.isBeatCancelled { await Task.yield() }
    _ = try await ingest.client.call(
      IngestMethods.heartbeatGroup, beat(2, wait: 0), timeout: .seconds(60))
    try await eventually("the notice") { metadata.beats.count == 3 }
    #expect(metadata.beats.map(\.number) == [1, 2, 1])
    #expect(metadata.beats.map(\.brokeOff) == [false, false, true])
    await ingest.stop()
  }
}
