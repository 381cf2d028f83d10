// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import MemQAPI
import MemQModel
import MemQRPC
import MemQRecords
import MemQSystem
import SwiftProtobuf
import Testing

@Suite(.serialized) struct BodyTests {
  typealias Stream = TypedStream<Hot<Memq_V1_WriteBodyRequest>, Memq_V1_WriteBodyResponse>

  private let key =
    "bodies/11111111-2222-4333-8444-555555555555/99999999-2222-4333-8444-555555555555"
  private let data = (0..<5_000_000).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 5) }

  private func open(_ cluster: TestCluster, from offset: Int64) async throws -> Stream {
    let stream: Stream = try await cluster.channel("uploader").openHot(
      UploaderMethods.writeBody, RPCCallOptions(timeout: TestCluster.wait))
    try await stream.send(
      Hot(
        .with {
          $0.start.bodyKey = self.key
          $0.start.offset = offset
        }))
    return stream
  }

  /// Sends `range` in chunks of at most 1 MiB, the last one ending a part.
  private func send(_ stream: Stream, _ range: Range<Int>) async throws {
    var at = range.lowerBound
    while at < range.upperBound {
      let end = min(at + Limits.fileChunkBytesMax, range.upperBound)
      let piece = self.data[at..<end]
      let (offset, isLast) = (Int64(at), end == range.upperBound)
      try await stream.send(
        Hot(
          .with {
            $0.chunkHeader.offset = offset
            $0.chunkHeader.crc32C = CRC32C.checksum(piece)
            $0.chunkHeader.endOfPart = isLast
          }, payload: RPCMessage(bytes: piece)))
      at = end
    }
  }

  private func finish(_ stream: Stream, _ size: Int) async throws -> Memq_V1_WriteBodyResponse? {
    try await stream.send(Hot(.with { $0.finish.size = Int64(size) }))
    try await stream.halfClose()
    var last: Memq_V1_WriteBodyResponse?
    while let reply = try await stream.responses.next() { last = reply }
    return last
  }

  private func body(_ cluster: TestCluster) throws -> [UInt8] {
    Array(try Data(contentsOf: URL(fileURLWithPath: "\(cluster.objects)/\(self.key)")))
  }

  @Test func `a body goes on after its writer vanished, and is there when whole`() async throws {
    let cluster = try await TestCluster()
    try await cluster.uploader()
    let first = try await self.open(cluster, from: 0)
    try await self.send(first, 0..<2_000_000)
    #expect(try await first.responses.next()?.durableBelow == 2_000_000)
    // Its connection hangs: nobody tells the uploader. A newer writer takes over all the same.
    let second = try await self.open(cluster, from: 2_000_000)
    try await self.send(second, 2_000_000..<4_000_000)
    #expect(try await second.responses.next()?.durableBelow == 4_000_000)
    #expect(cluster.keys("bodies").isEmpty)
    await #expect(throws: MemQError.self) { while try await first.responses.next() != nil {} }
    second.cancel()

    // An older durable offset than the store has: what lies beyond is written again.
    let third = try await self.open(cluster, from: 2_000_000)
    try await self.send(third, 2_000_000..<self.data.count)
    let done = try await self.finish(third, self.data.count)
    #expect(done?.complete == true && done?.durableBelow == Int64(self.data.count))
    #expect(try self.body(cluster) == self.data)

    // The answer was lost: the same end again is the same answer.
    let again = try await self.open(cluster, from: 4_000_000)
    try await self.send(again, 4_000_000..<self.data.count)
    #expect(try await self.finish(again, self.data.count)?.complete == true)
    #expect(try self.body(cluster) == self.data)

    let status = try await cluster.call("uploader", UploaderMethods.status)
    #expect(status.bodies == 2 && status.bodyBytes >= Int64(self.data.count))
    _ = try await cluster.call("uploader", UploaderMethods.deleteBody) { $0.bodyKey = self.key }
    #expect(cluster.keys("bodies").isEmpty && cluster.keys(".partial/body").isEmpty)
    await cluster.end()
  }

  @Test func `each wrong message ends the call with its error and leaves nothing behind`()
    async throws
  {
    let cluster = try await TestCluster()
    try await cluster.uploader()
    func code(
      _ message: Hot<Memq_V1_WriteBodyRequest>, from offset: Int64 = 0
    ) async throws
      -> ErrorCode?
    {
      let stream = try await self.open(cluster, from: offset)
      try? await stream.send(message)
      let error = await #expect(throws: MemQError.self) {
        while try await stream.responses.next() != nil {}
      }
      return error?.code
    }
    func chunk(
      _ offset: Int64, _ bytes: [UInt8], crc: UInt32? = nil
    ) -> Hot<Memq_V1_WriteBodyRequest> {
      Hot(
        .with {
          $0.chunkHeader.offset = offset
          $0.chunkHeader.crc32C = crc ?? CRC32C.checksum(bytes)
        }, payload: RPCMessage(bytes: bytes))
    }
    #expect(try await code(chunk(0, [1], crc: 5)) == .chunkChecksumMismatch)
    #expect(try await code(chunk(1, [1])) == .uploadOffsetMismatch)
    #expect(try await code(chunk(0, Array(self.data.prefix((1 << 20) + 1)))) == .messageTooLarge)
    #expect(try await code(Hot(.with { $0.finish.size = 7 })) == .uploadOffsetMismatch)
    #expect(try await code(Hot(.with { $0.start.bodyKey = self.key })) == .invalidArgument)
    #expect(try await code(chunk(9, [1]), from: 9) == .uploadOffsetMismatch)
    for key in ["objects/00000001/x", "bodies/../x", ""] {
      let error = await #expect(throws: MemQError.self) {
        try await cluster.call("uploader", UploaderMethods.deleteBody) { $0.bodyKey = key }
      }
      #expect(error?.code == .invalidArgument)
    }
    #expect(cluster.keys("bodies").isEmpty)
    await cluster.end()
  }
}
