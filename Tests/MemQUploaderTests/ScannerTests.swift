// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import MemQAPI
import MemQModel
import MemQRPC
import MemQScannerService
import MemQSystem
import SwiftProtobuf
import Testing

@Suite(.serialized) struct ScannerTests {
  /// In two halves, so that this file is not taken for the test file itself.
  private let eicar = Array(
    ("X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STAND" + "ARD-ANTIVIRUS-TEST-FILE!$H+H*").utf8)

  private func scan(
    _ cluster: TestCluster, _ bytes: [UInt8], stored: [UInt8]? = nil, max: Int64 = 1 << 30
  ) async throws -> Memq_V1_Verdict {
    let key = "bodies/t/\(UUID().uuidString.lowercased())"
    let path = URL(fileURLWithPath: "\(cluster.objects)/\(key)")
    try FileManager.default.createDirectory(
      at: path.deletingLastPathComponent(), withIntermediateDirectories: true)
    try Data(stored ?? bytes).write(to: path)
    return try await cluster.call("scanner", ScannerMethods.scanBody) {
      $0.bodyKey = key
      $0.size = Int64(bytes.count)
      $0.sha256 = Data(SHA256.digest(of: bytes))
      $0.name = "file"
      $0.maxBytes = max
    }.verdict
  }

  @Test func `bodies are fetched, compared with what was put, and judged whole`() async throws {
    let cluster = try await TestCluster()
    let scratch = "\(cluster.folder)/scratch"
    try FileManager.default.createDirectory(atPath: scratch, withIntermediateDirectories: true)
    try Data([1]).write(to: URL(fileURLWithPath: "\(scratch)/scan-left-behind"))
    try await cluster.scanner { $0.scratchBytesMax = 16 << 20 }
    let noise = (0..<9_000_000).map { UInt8(truncatingIfNeeded: $0 &* 167) }

    let clean = try await self.scan(cluster, noise)
    #expect(clean.kind == .clean && Array(clean.sha256) == SHA256.digest(of: noise))
    #expect(clean.engine.hasPrefix("yara 4.") && clean.databaseVersion.count == 64)
    #expect(try await self.scan(cluster, []).kind == .clean)
    let infected = try await self.scan(cluster, noise + self.eicar)
    #expect(infected.kind == .infected && infected.signature == "Eicar_Test_String")
    for max in [8_999_999, 1 << 30] as [Int64] {
      let bytes = max < 9_000_000 ? noise : noise + noise
      let large = try await self.scan(cluster, bytes, max: max)
      #expect(large.kind == .notScanned && large.reason == "too large")
    }
    for stored in [noise + [0], Array(noise.dropLast()) + [1]] {
      let error = await #expect(throws: MemQError.self) {
        try await self.scan(cluster, noise, stored: stored)
      }
      #expect(error?.code == .digestMismatch)
    }
    let missing = await #expect(throws: MemQError.self) {
      try await cluster.call("scanner", ScannerMethods.scanBody) {
        $0.bodyKey = "bodies/t/missing"
        $0.size = 1
        $0.sha256 = Data(SHA256.digest(of: [1]))
        $0.maxBytes = 1
      }
    }
    #expect(missing?.code == .objectNotFound)
    #expect(try FileManager.default.contentsOfDirectory(atPath: scratch).isEmpty)

    let status = try await cluster.call("scanner", ScannerMethods.status)
    #expect(status.clean == 2 && status.infected == 1 && status.notScanned == 2)
    #expect(status.scratchUsedBytes == 0 && status.running == 0 && status.engines[0].ready)
    await cluster.end()
  }

  @Test func `bytes that ride along are judged, many at a time`() async throws {
    let cluster = try await TestCluster()
    try await cluster.scanner { $0.scansMax = 2 }
    let eicar = self.eicar
    try await withThrowingTaskGroup(of: Void.self) { tasks in
      for number in 0..<100 {
        tasks.addTask {
          let bytes = number % 3 == 0 ? eicar : [UInt8](repeating: UInt8(number), count: 10_000)
          let response = try await cluster.channel("scanner").callHot(
            ScannerMethods.scanBytes,
            Hot(.with { $0.name = "n" }, payload: RPCMessage(bytes: bytes)))
          #expect(response.verdict.kind == (number % 3 == 0 ? .infected : .clean))
        }
      }
      try await tasks.waitForAll()
    }
    await cluster.end()
  }

  @Test func `each part of a call is judged by itself, and no byte is left out`() async throws {
    let cluster = try await TestCluster()
    try await cluster.scanner()
    func scan(_ bytes: [UInt8], _ sizes: [Int64]) async throws -> Memq_V1_Verdict {
      try await cluster.channel("scanner").callHot(
        ScannerMethods.scanBytes,
        Hot(.with { $0.partSizes = sizes }, payload: RPCMessage(bytes: bytes))
      ).verdict
    }
    let size = Int64(self.eicar.count)
    let around = [1, 2, 3] + self.eicar + [4]
    // A rule that wants its finding at the start of a file works on a part.
    let found = try await scan(around, [3, size, 1])
    #expect(found.kind == .infected && found.signature == "Eicar_Test_File")
    #expect(try await scan(around, []).signature == "Eicar_Test_String")
    #expect(try await scan(around, [3, size - 1, 2]).kind == .clean)
    #expect(try await scan([1, 2], [0, 2, 0]).kind == .clean)
    for sizes: [Int64] in [[3], [3, size], [3, size, 2], [-1, size + 5], [.max, .max]] {
      let error = await #expect(throws: MemQError.self) { try await scan(around, sizes) }
      #expect(error?.code == .invalidArgument)
    }
    await cluster.end()
  }

  @Test func `quarantine entries are listed and resolved through metadata`() async throws {
    let cluster = try await TestCluster()
    try await cluster.scanner()
    let topic = try await cluster.topic("gated", ["scan.policy": "gate"])[0].topic
    var ids: [UploadID] = []
    for name in ["a", "b"] {
      let id = SystemEntropy().identifier(UploadID.self)
      ids.append(id)
      var upload = try await cluster.call("metadata", MetadataMethods.createUpload) {
        $0.upload.uploadID = Data(id.bytes)
        $0.upload.topicID = Data(topic.bytes)
        $0.upload.name = name
        $0.upload.declaredSize = 3
        $0.upload.state = .sealed
        $0.upload.offset = 3
        $0.upload.inlineBody = Data([1, 2, 3])
        $0.upload.sha256 = Data(SHA256.digest(of: [1, 2, 3]))
      }
      upload.state = .quarantined
      upload.verdict.kind = .infected
      upload.verdict.signature = "Bad"
      let step = upload
      _ = try await cluster.call("metadata", MetadataMethods.advanceUpload) { $0.upload = step }
    }
    let listed = try await cluster.call("scanner", ScannerMethods.listQuarantine) {
      $0.topic = "gated"
    }
    #expect(listed.entries.map(\.name) == ["a", "b"])
    #expect(listed.entries.map(\.id) == ids.map(\.description))
    #expect(listed.entries.allSatisfy { $0.verdict.signature == "Bad" && $0.topic == "gated" })
    let deleted = try await cluster.call("scanner", ScannerMethods.deleteQuarantine) {
      $0.id = ids[0].description
      $0.actor = "me"
      $0.reason = "test"
    }
    #expect(deleted.entry.name == "a")
    let left = try await cluster.call("scanner", ScannerMethods.listQuarantine)
    #expect(left.entries.map(\.name) == ["b"])
    for id in [ids[0].description, "nonsense"] {
      let error = await #expect(throws: MemQError.self) {
        try await cluster.call("scanner", ScannerMethods.releaseQuarantine) { $0.id = id }
      }
      #expect(error?.code == .quarantineEntryNotFound)
    }
    await cluster.end()
  }
}
