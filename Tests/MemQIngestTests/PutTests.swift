// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRPC
import MemQRecords
import MemQSystem
import MemQTestSupport
import NIOCore
import SwiftProtobuf
import Synchronization
import Testing

@testable import MemQIngestService

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

@Suite(.serialized) struct PutTests {
  /// What a put's client saw.
  private struct Seen {
    var begin: Int64 = -1
    var durable: [Int64] = []
    var published: Memq_V1_FileInfo?
  }

  private func bytes(_ count: Int) -> [UInt8] {
    var random = SeededGenerator(seed: UInt64(count))
    var bytes = [UInt8](repeating: 0, count: count)
    var at = 0
    while at < count {
      bytes[at] = UInt8(truncatingIfNeeded: random.next())
      at += count > 1 << 20 ? 61 : 1
    }
    return bytes
  }

  /// Puts a file as a client does: from where it is told to begin, in chunks.
  private func put(
    _ ingest: TestIngest, _ topic: String, _ name: String, _ bytes: [UInt8], id: UploadID? = nil,
    size: Int64? = nil, sha256: [UInt8]? = nil, chunk: Int = 1 << 20, firstChunk: Int? = nil,
    waitMs: Int32 = 60_000,
    finish: Bool = true
  ) async throws -> Seen {
    let stream = try await ingest.client.openHot(FileMethods.put)
    let id = id ?? SystemEntropy().identifier()
    try await stream.send(
      Hot(
        .with {
          $0.start.topic = topic
          $0.start.name = name
          $0.start.uploadID = Data(id.bytes)
          $0.start.size = size ?? Int64(bytes.count)
          $0.start.attributes = ["k": "v"]
        }))
    var seen = Seen()
    guard case .beginAt(let begin)? = try await stream.responses.next()?.part else {
      throw MemQError(.internalError, "no begin")
    }
    seen.begin = begin
    let sender = Task {
      var at = Int(begin)
      while at < bytes.count {
        let piece = ByteBuffer(
          bytes: bytes[at..<min(at + (at == 0 ? firstChunk ?? chunk : chunk), bytes.count)])
        let header = Memq_V1_PutRequest.with {
          $0.chunkHeader.offset = Int64(at)
          $0.chunkHeader.crc32C = CRC32C.checksum(piece.readableBytesView)
        }
        try await stream.send(Hot(header, payload: RPCMessage(piece)))
        at += piece.readableBytes
      }
      if finish {
        try await stream.send(
          Hot(
            .with {
              $0.finish.sha256 = Data(sha256 ?? SHA256.digest(of: bytes))
              $0.finish.waitMaxMs = waitMs
            }))
      }
      try await stream.halfClose()
    }
    defer { sender.cancel() }
    while let reply = try await stream.responses.next() {
      switch reply.part {
      case .durableBelow(let offset): seen.durable.append(offset)
      case .published(let info): seen.published = info
      case .beginAt, nil: break
      }
    }
    return seen
  }

  private func get(
    _ ingest: TestIngest, _ topic: String, _ name: String, offset: Int64 = 0, length: Int64 = 0
  ) async throws -> [UInt8] {
    let request = Memq_V1_GetRequest.with {
      $0.topic = topic
      $0.name = name
      $0.offset = offset
      $0.length = length
    }
    let reader = try await ingest.client.streamHot(FileMethods.get, request)
    var bytes: [UInt8] = []
    while let piece = try await reader.next() {
      let chunk = piece.payload.contiguous().readableBytesView
      #expect(piece.header.crc32C == CRC32C.checksum(chunk))
      #expect(piece.header.offset == offset + Int64(bytes.count))
      bytes += chunk
    }
    return bytes
  }

  @Test(arguments: [0, 1, 100_000, 180_000, 300_000, 40 << 20])
  func `a file of any size comes back as it went in`(size: Int) async throws {
    let ingest = try await TestIngest.start([("f", [])])
    let bytes = self.bytes(size)
    let seen = try await self.put(ingest, "f", "a/ü \(size).bin", bytes)
    let info = try #require(seen.published)
    #expect(info.size == Int64(size) && info.version == 1 && info.verdict.kind == .off)
    #expect([UInt8](info.sha256) == SHA256.digest(of: bytes))
    #expect(info.attributes == ["k": "v"])
    #expect(try await self.get(ingest, "f", "a/ü \(size).bin") == bytes)
    if size >= 300_000 {
      let part = try await self.get(ingest, "f", "a/ü \(size).bin", offset: 7, length: 200_001)
      #expect(part == Array(bytes[7..<200_008]))
    }
    #expect(seen.durable == (size == 40 << 20 ? [16 << 20, 32 << 20] : []))
    await ingest.stop()
  }

  @Test func `a small file costs two transactions and one append`() async throws {
    let ingest = try await TestIngest.start([("f", [])])
    for i in 0..<10 { _ = try await self.put(ingest, "f", "n\(i)", [1, 2, 3]) }
    #expect(ingest.cluster.metadataService.calls("create") == 10)
    #expect(ingest.cluster.metadataService.calls("advance") == 10)
    #expect(ingest.cluster.leader.received == 10)
    await ingest.stop()
  }

  @Test func `a size that is not declared is found out`() async throws {
    let ingest = try await TestIngest.start([("f", [])])
    for size in [0, 5, 400_000] {
      let bytes = self.bytes(size)
      let seen = try await self.put(ingest, "f", "n\(size)", bytes, size: -1, chunk: 60_000)
      #expect(seen.published?.size == Int64(size))
      #expect(try await self.get(ingest, "f", "n\(size)") == bytes)
    }
    await ingest.stop()
  }

  @Test func `chunks of any size follow a small one when the size is not declared`() async throws {
    let ingest = try await TestIngest.start([("f", [])])
    let bytes = self.bytes(3 << 20)
    let seen = try await self.put(
      ingest, "f", "x", bytes, size: -1, chunk: 1 << 20, firstChunk: 200_000)
    #expect(seen.published?.size == Int64(bytes.count))
    #expect(try await self.get(ingest, "f", "x") == bytes)
    await ingest.stop()
  }

  @Test func `a put that broke goes on at the last durable part`() async throws {
    let ingest = try await TestIngest.start([("f", [])])
    let bytes = self.bytes(40 << 20)
    let id: UploadID = SystemEntropy().identifier()
    ingest.cluster.uploader.breakOnce(after: 16 << 20)
    let error = await #expect(throws: MemQError.self) {
      try await self.put(ingest, "f", "n", bytes, id: id)
    }
    #expect(error?.isRetriable == true)
    let seen = try await self.put(ingest, "f", "n", bytes, id: id)
    #expect(seen.begin == 16 << 20)
    #expect([UInt8](seen.published?.sha256 ?? Data()) == SHA256.digest(of: bytes))
    #expect(try await self.get(ingest, "f", "n") == bytes)
    // The same once more: it is known, and nothing happens twice.
    let again = try await self.put(ingest, "f", "n", bytes, id: id)
    #expect(again.begin == 40 << 20 && again.published?.version == 1)
    #expect(
      ingest.cluster.leader.log(ingest.cluster.partition("f", 0)).batches.count
        + ingest.cluster.leader.log(ingest.cluster.partition("f", 1)).batches.count == 1)
    await ingest.stop()
  }

  /// A put of 1 MiB chunks that is no further than back-pressure lets it be.
  private func stalled(
    _ ingest: TestIngest, _ bytes: [UInt8], id: UploadID
  ) async throws -> (
    stream: TypedStream<Hot<Memq_V1_PutRequest>, Memq_V1_PutResponse>,
    sender: Task<Void, any Error>
  ) {
    let stream = try await ingest.client.openHot(FileMethods.put)
    try await stream.send(
      Hot(
        .with {
          $0.start.topic = "f"
          $0.start.name = "n"
          $0.start.uploadID = Data(id.bytes)
          $0.start.size = Int64(bytes.count)
        }))
    let counter = SentCounter()
    let sender = Task {
      for at in stride(from: 0, to: bytes.count, by: 1 << 20) {
        let piece = ByteBuffer(bytes: bytes[at..<min(at + 1 << 20, bytes.count)])
        let header = Memq_V1_PutRequest.with {
          $0.chunkHeader.offset = Int64(at)
          $0.chunkHeader.crc32C = CRC32C.checksum(piece.readableBytesView)
        }
        try await stream.send(Hot(header, payload: RPCMessage(piece)))
        counter.add()
      }
      try await stream.send(
        Hot(
          .with {
            $0.finish.sha256 = Data(SHA256.digest(of: bytes))
            $0.finish.waitMaxMs = 60_000
          }))
      try await stream.halfClose()
    }
    // Each hop takes eight chunks before it makes its sender wait: with 28 sent, the uploader's queue has the first part's end.
    try await eventually("the put is far enough") { counter.count >= 28 }
    var last = 0
    var still = 0
    try await eventually("the put waits") {
      let count = counter.count
      still = count == last ? still + 1 : 0
      last = count
      return still >= 20
    }
    return (stream, sender)
  }

  @Test func `a client that goes while its put waits for room loses no part that has come`()
    async throws
  {
    let ingest = try await TestIngest.start([("f", [])])
    let bytes = self.bytes(34 << 20)
    let id: UploadID = SystemEntropy().identifier()
    let goOn = ingest.cluster.uploader.stallOnce(after: 14 << 20)
    let put = try await self.stalled(ingest, bytes, id: id)
    put.stream.cancel()
    put.sender.cancel()
    goOn.set(())
    try await eventually("the part is known to be durable, and the put free") {
      ingest.cluster.metadataService.uploads.contains {
        $0.offset == 16 << 20 && $0.driver == 0
      }
    }
    var seen: Seen?
    try await eventually("nobody works on the put any more") {
      do {
        seen = try await self.put(ingest, "f", "n", bytes, id: id, waitMs: 60_000)
        return true
      } catch let error as MemQError where error.code == .uploadInProgress {
        return false
      }
    }
    #expect(seen?.begin == 16 << 20 && seen?.published?.size == 34 << 20)
    await ingest.stop()
  }

  @Test func `an uploader that takes nothing any more keeps no put whose client is gone`()
    async throws
  {
    let ingest = try await TestIngest.start([("f", [])])
    let id: UploadID = SystemEntropy().identifier()
    let goOn = ingest.cluster.uploader.stallOnce(after: 14 << 20)
    let put = try await self.stalled(ingest, self.bytes(34 << 20), id: id)
    put.stream.cancel()
    put.sender.cancel()
    try await eventually("the put is free") {
      ingest.cluster.metadataService.uploads.contains { $0.offset == 0 && $0.driver == 0 }
    }
    goOn.set(())
    await ingest.stop()
  }

  @Test func `time that a put waits for an uploader is not its client's silence`() async throws {
    let clock = SteppedClock()
    let ingest = try await TestIngest.start([("f", [])], clock: clock) {
      $0.putSilenceMax = .seconds(1)
    }
    let bytes = self.bytes(34 << 20)
    let goOn = ingest.cluster.uploader.stallOnce(after: 14 << 20)
    let put = try await self.stalled(ingest, bytes, id: SystemEntropy().identifier())
    clock.advance(.seconds(3600))
    // The watch looks once a second.
    try await Task.sleep(for: .milliseconds(2_500))
    goOn.set(())
    var published: Memq_V1_FileInfo?
    while let reply = try await put.stream.responses.next() {
      if case .published(let info) = reply.part { published = info }
    }
    #expect(published?.size == 34 << 20)
    try await put.sender.value
    await ingest.stop()
  }

  @Test func `a client that says nothing for too long is told so`() async throws {
    let clock = SteppedClock()
    let ingest = try await TestIngest.start([("f", [])], clock: clock) {
      $0.putSilenceMax = .seconds(1)
    }
    let stream = try await ingest.client.openHot(FileMethods.put)
    try await stream.send(
      Hot(
        .with {
          $0.start.topic = "f"
          $0.start.name = "n"
          $0.start.uploadID = Data(SystemEntropy().identifier(UploadID.self).bytes)
          $0.start.size = 10
        }))
    #expect(try await stream.responses.next()?.part == .beginAt(0))
    let answer = Task { await thrownCode { _ = try await stream.responses.next() } }
    // However often the clock is moved, it is moved while the put waits at last.
    try await eventually("the put is ended") {
      clock.advance(.seconds(2))
      return ingest.node.active.count == 0
    }
    #expect(await answer.value == .deadlineExceeded)
    await ingest.stop()
  }

  @Test(arguments: [100, 300_000])
  func `the same put twice is one file`(size: Int) async throws {
    let ingest = try await TestIngest.start([("f", [])])
    let id: UploadID = SystemEntropy().identifier()
    ingest.cluster.leader.play([.loseReply, .refuse(.notLeader)])
    let first = try await self.put(ingest, "f", "n", self.bytes(size), id: id)
    let second = try await self.put(ingest, "f", "n", self.bytes(size), id: id)
    #expect(first.published == second.published)
    let third = try await self.put(ingest, "f", "n", self.bytes(size))
    #expect(third.published?.version == 2)
    await ingest.stop()
  }

  @Test(arguments: [100, 300_000])
  func `a wrong digest, half a file and too much are refused and publish nothing`(
    size: Int
  ) async throws {
    let ingest = try await TestIngest.start([("f", [])])
    let bytes = self.bytes(size)
    let wrong = await #expect(throws: MemQError.self) {
      try await self.put(ingest, "f", "n", bytes, sha256: SHA256.digest(of: []))
    }
    #expect(wrong?.code == .digestMismatch)
    let half = await #expect(throws: MemQError.self) {
      try await self.put(ingest, "f", "n", bytes, size: Int64(size) + 5)
    }
    #expect(half?.code == .fileIncomplete)
    let long = await #expect(throws: MemQError.self) {
      try await self.put(ingest, "f", "n", bytes, size: Int64(size) - 5)
    }
    #expect(long?.code == .fileTooLarge)
    let open = await #expect(throws: MemQError.self) {
      try await self.put(ingest, "f", "n", bytes, finish: false)
    }
    #expect(open?.code == .fileIncomplete)
    let missing = await #expect(throws: MemQError.self) { try await self.get(ingest, "f", "n") }
    #expect(missing?.code == .fileNotFound)
    await ingest.stop()
  }

  @Test(arguments: [60, 300_000])
  func `an infected file is quarantined, named, and never readable`(size: Int) async throws {
    let ingest = try await TestIngest.start([("g", [("scan.policy", "gate")])])
    let bytes = Array("xx EVIL xx".utf8) + [UInt8](repeating: 32, count: size)
    let error = await #expect(throws: MemQError.self) {
      try await self.put(ingest, "g", "bad", bytes)
    }
    #expect(error?.code == .infected && error?.message.contains("Test.Evil") == true)
    #expect(ingest.cluster.metadataService.uploads.map(\.state) == [.quarantined])
    #expect(ingest.cluster.leader.received == 0)
    let clean = try await self.put(ingest, "g", "good", self.bytes(size))
    #expect(clean.published?.verdict.kind == .clean)
    // Let through by a person.
    let entry = try #require(ingest.cluster.metadataService.uploads.first { $0.name == "bad" })
    ingest.cluster.metadataService.change(entry.uploadID) { $0.state = .judged }
    try await eventually("the released file") {
      (try? await self.get(ingest, "g", "bad")) == bytes
    }
    await ingest.stop()
  }

  @Test(arguments: [60, 300_000])
  func `a file that can't be scanned is held and published once it can`(size: Int) async throws {
    let ingest = try await TestIngest.start([("g", [("scan.policy", "gate")])])
    ingest.cluster.scanner.setAway(true)
    let bytes = self.bytes(size)
    let error = await #expect(throws: MemQError.self) {
      try await self.put(ingest, "g", "n", bytes)
    }
    #expect(error?.code == .scanHeld && error?.isRetriable == true)
    #expect(ingest.cluster.metadataService.uploads.map(\.state) == [.sealed])
    ingest.cluster.scanner.setAway(false)
    try await eventually("the held file") { (try? await self.get(ingest, "g", "n")) == bytes }
    await ingest.stop()
  }

  @Test(arguments: [60, 300_000])
  func `a put waits for a scanner that is back in a moment`(size: Int) async throws {
    let ingest = try await TestIngest.start([("g", [("scan.policy", "gate")])]) {
      $0.scannerPatience = .seconds(60)
      // Nobody else finishes it.
      $0.finisherInterval = .seconds(60)
    }
    ingest.cluster.scanner.setAway(true)
    async let put = self.put(ingest, "g", "n", self.bytes(size), waitMs: 60_000)
    try await eventually("it is looked for again") { ingest.cluster.scanner.refusals > 2 }
    ingest.cluster.scanner.setAway(false)
    #expect(try await put.published?.verdict.kind == .clean)
    await ingest.stop()
  }

  @Test func `held puts, however many, keep nobody else waiting`() async throws {
    let ingest = try await TestIngest.start([("g", [("scan.policy", "gate")])])
    ingest.cluster.scanner.setAway(true)
    let bytes = self.bytes(60)
    let count = Finisher.pagePuts + 5
    for number in 0..<count {
      await #expect(throws: MemQError.self) {
        try await self.put(ingest, "g", "held-\(number)", bytes)
      }
    }
    func release(_ name: String) throws {
      let upload = ingest.cluster.metadataService.uploads.first { $0.name == name }
      ingest.cluster.metadataService.change(try #require(upload).uploadID) { $0.state = .judged }
    }
    // The newest of all, released: a page of older ones stands before it.
    try release("held-\(count - 1)")
    try await eventually("the released file") {
      (try? await self.get(ingest, "g", "held-\(count - 1)")) == bytes
    }
    // And the scanner gets to see those behind the first page, too.
    let seen = ingest.cluster.scanner.refusals
    try await eventually("all held puts were tried") {
      ingest.cluster.scanner.refusals - seen > count
    }
    await ingest.stop()
  }

  @Test func `a file above the scan limit is refused before its bytes are sent`() async throws {
    let settings = [("scan.policy", "gate"), ("scan.max.bytes", "1000")]
    let ingest = try await TestIngest.start([
      ("g", settings), ("p", settings + [("scan.oversize", "pass-marked")]),
    ])
    let bytes = self.bytes(1_001)
    let error = await #expect(throws: MemQError.self) {
      try await self.put(ingest, "g", "n", bytes)
    }
    #expect(error?.code == .fileTooLarge && error?.limit == 1_000)
    let passed = try await self.put(ingest, "p", "n", bytes)
    #expect(passed.published?.verdict.kind == .notScanned)
    #expect(passed.published?.verdict.reason == "too large")
    #expect(ingest.cluster.scanner.scans == 0)
    await ingest.stop()
  }

  @Test func `a damaged chunk, a gap and a bad name are refused`() async throws {
    let ingest = try await TestIngest.start([("f", [])])
    for (offset, crc, name, code) in [
      (Int64(0), UInt32(7), "n", ErrorCode.chunkChecksumMismatch),
      (1, 7, "n", .uploadOffsetMismatch),
      (0, 7, "../n", .fileNameInvalid),
    ] {
      let stream = try await ingest.client.openHot(FileMethods.put)
      try await stream.send(
        Hot(
          .with {
            $0.start.topic = "f"
            $0.start.name = name
            $0.start.uploadID = Data(SystemEntropy().identifier(UploadID.self).bytes)
            $0.start.size = 3
          }))
      let header = Memq_V1_PutRequest.with {
        $0.chunkHeader.offset = offset
        $0.chunkHeader.crc32C = crc
      }
      try? await stream.send(Hot(header, payload: RPCMessage(ByteBuffer(bytes: [1, 2, 3]))))
      let error = await #expect(throws: MemQError.self) {
        while try await stream.responses.next() != nil {}
      }
      #expect(error?.code == code)
    }
    await ingest.stop()
  }

  @Test func `list, stat and delete see what is published`() async throws {
    let ingest = try await TestIngest.start([("f", [])])
    for name in ["b", "a", "c/1", "c/2", "c/3"] {
      _ = try await self.put(ingest, "f", name, Array(name.utf8))
    }
    let reader = try await ingest.client.stream(
      FileMethods.list, .with { $0.topic = "f" })
    var names: [String] = []
    while let page = try await reader.next() { names += page.files.map(\.name) }
    #expect(names == ["a", "b", "c/1", "c/2", "c/3"])
    let info = try await ingest.client.call(
      FileMethods.stat,
      .with {
        $0.topic = "f"
        $0.name = "b"
      }, timeout: .seconds(60))
    #expect(info.size == 1 && info.topic == "f")
    _ = try await ingest.client.call(
      FileMethods.delete,
      .with {
        $0.topic = "f"
        $0.name = "b"
      }, timeout: .seconds(60))
    let gone = await #expect(throws: MemQError.self) { try await self.get(ingest, "f", "b") }
    #expect(gone?.code == .fileNotFound)
    let records = try ingest.cluster.leader.records(
      ingest.cluster.partition("f", info.partition))
    #expect(records.last?.key == Array("b".utf8) && records.last?.value == nil)
    await ingest.stop()
  }

  @Test func `a delete does not take a file that was put meanwhile`() async throws {
    let ingest = try await TestIngest.start([("f", [])])
    _ = try await self.put(ingest, "f", "n", Array("old".utf8))
    ingest.cluster.metadataService.beforeRemoving {
      _ = try await self.put(ingest, "f", "n", Array("new".utf8))
    }
    _ = try await ingest.client.call(
      FileMethods.delete,
      .with {
        $0.topic = "f"
        $0.name = "n"
      }, timeout: .seconds(60))
    #expect(try await self.get(ingest, "f", "n") == Array("new".utf8))
    await ingest.stop()
  }

  @Test func `many small files at once`() async throws {
    let ingest = try await TestIngest.start([("g", [("scan.policy", "gate")])])
    try await withThrowingTaskGroup(of: Void.self) { group in
      for lane in 0..<32 {
        group.addTask {
          for i in 0..<25 {
            let seen = try await self.put(ingest, "g", "d\(lane)/f\(i)", self.bytes(lane * 50 + i))
            #expect(seen.published != nil)
          }
        }
      }
      try await group.waitForAll()
    }
    #expect(ingest.cluster.leader.received == 800)
    #expect(ingest.node.active.count == 0)
    await ingest.stop()
  }
}

private final class SentCounter: Sendable {
  private let sent = Atomic(0)
  var count: Int { self.sent.load(ordering: .relaxed) }
  func add() { self.sent.add(1, ordering: .relaxed) }
}

/// The code of the error that `body` throws.
private func thrownCode(_ body: () async throws -> Void) async -> ErrorCode? {
  do {
    try await body()
    return nil
  } catch {
    return (error as? MemQError)?.code
  }
}
