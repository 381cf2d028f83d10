// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Logging
import MemQModel
import MemQSystem
import Testing

@testable import MemQRuntime

private let one = ClusterID("11111111-2222-4333-8444-555555555555")!
private let other = ClusterID("aaaaaaaa-2222-4333-8444-555555555555")!

@Suite struct DataFolderTests {
  @Test func `a folder has one holder at a time, and the second one is told who`() throws {
    let folder = TestFolder()
    let path = folder.path + "/a/b"
    do {
      let held = try DataFolder.open(path)
      let error = #expect(throws: MemQError.self) { try DataFolder.open(path) }
      #expect(error?.code == .dataFolderInUse)
      #expect(error?.subject == path)
      #expect(error?.message.contains("(pid \(getpid()))") == true)
      _ = held.path
    }
    _ = try DataFolder.open(path)
  }

  @Test func `a folder belongs to one cluster for ever`() throws {
    let folder = TestFolder()
    do {
      let fresh = try DataFolder.open(folder.path)
      #expect(fresh.clusterID == nil)
      try fresh.bind(to: one)
      try fresh.bind(to: one)
    }
    let again = try DataFolder.open(folder.path)
    #expect(again.clusterID == one)
    let error = #expect(throws: MemQError.self) { try again.bind(to: other) }
    #expect(error?.code == .wrongCluster)
    #expect(error?.message.contains(one.description) == true)
    #expect(error?.message.contains(other.description) == true)
  }

  @Test func `the cluster file is the documented one, and a damaged one is refused`() throws {
    let text =
      #"{"format":"memq-cluster","version":0,"cluster_id":"11111111-2222-4333-8444-555555555555","check":"cf4c4732fd3b8f8a"}"#
      + "\n"
    #expect(ClusterFile.text(one) == text)
    let folder = TestFolder()
    for damaged in [
      text.replacing("5555", with: "5556", maxReplacements: 1), "", "{}\n",
      text.replacing(":0,", with: ":1,"),
    ] {
      _ = try folder.write("cluster.json", damaged)
      let error = #expect(throws: MemQError.self) { try DataFolder.open(folder.path) }
      #expect(error?.code == .corruptMessage)
    }
    _ = try folder.write("cluster.json", text)
    #expect(try DataFolder.open(folder.path).clusterID == one)
  }

  @Test func `what was seen of metadata outlives the process, and a damaged file is refused`()
    async throws
  {
    let folder = TestFolder()
    let first = SeenMetadata(
      incarnation: Incarnation(2), incarnationID: one.value, revision: Revision(70))
    let text =
      #"{"format":"memq-metadata-seen","version":0,"incarnation":2,"incarnation_id":"11111111-2222-4333-8444-555555555555","revision":70,"check":"934ff995f615b407"}"#
      + "\n"
    #expect(SeenFile.text(first) == text)
    func read() throws -> SeenMetadata? {
      try MetadataMemory(in: try DataFolder.open(folder.path)).seen
    }
    let failed: @Sendable (MemQError) -> Void = { Issue.record($0) }
    #expect(try read() == nil)
    var later = first
    later.revision = Revision(80)
    do {
      let memory = try MetadataMemory(in: try DataFolder.open(folder.path))
      #expect(try await memory.saw(first, at: .zero, onFailure: failed) == nil)
      #expect(try await memory.saw(later, at: .zero + .seconds(1), onFailure: failed) == nil)
      #expect(memory.seen == later)
    }
    #expect(try read() == first, "revisions are written from time to time")
    do {
      let memory = try MetadataMemory(in: try DataFolder.open(folder.path))
      let writing = try await memory.saw(later, at: .zero + .seconds(20), onFailure: failed)
      try await #require(writing).value
    }
    #expect(try read() == later)
    later.incarnation = Incarnation(3)
    do {
      let memory = try MetadataMemory(in: try DataFolder.open(folder.path))
      try await memory.saw(first, at: .zero + .seconds(20), onFailure: failed)
      #expect(try await memory.saw(later, at: .zero + .seconds(20), onFailure: failed) == nil)
    }
    #expect(try read() == later, "an incarnation is written at once")
    for damaged in [
      "", "{}\n", text.replacing("70", with: "71"), text.replacing(":0,", with: ":1,"),
    ] {
      _ = try folder.write("metadata-seen.json", damaged)
      let error = #expect(throws: MemQError.self) { try read() }
      #expect(error?.code == .corruptMessage)
    }
  }

  @Test func `metadata may go on from what was seen, and from nothing older`() {
    func seen(_ incarnation: Int64, _ id: UInt64, _ revision: Int64) -> SeenMetadata {
      SeenMetadata(
        incarnation: Incarnation(incarnation), incarnationID: UniqueID(high: 0, low: id),
        revision: Revision(revision))
    }
    let known = seen(2, 7, 50)
    for (next, isTaken) in [
      (seen(2, 7, 50), true), (seen(2, 7, 51), true), (seen(3, 8, 1), true),
      (seen(2, 7, 49), false), (seen(2, 8, 60), false), (seen(1, 6, 60), false),
    ] {
      var code: ErrorCode?
      do throws(MemQError) { try known.check(next) } catch { code = error.code }
      #expect(code == (isTaken ? nil : .staleImage), "\(next)")
    }
  }

  @Test func `a file where the folder should be is an error of its own`() throws {
    let folder = TestFolder()
    let path = try folder.write("file", "x")
    let error = #expect(throws: MemQError.self) { try DataFolder.open(path) }
    #expect(error?.code == .unavailable)
    #expect(throws: MemQError.self) { try DataFolder.open(path + "/below") }
  }
}

@Suite struct PortReservationTests {
  @Test func `port 0 becomes a real one, and it can be listened on beside the reservation`()
    async throws
  {
    let reserved = try PortReservation.take(try ListenAddress("127.0.0.1:0"))
    guard case .tcp(_, let port) = reserved.address else { return #expect(Bool(false)) }
    #expect(port > 0)
    let admin = try await AdminServer.start(
      on: reserved.address, logger: Logger(label: "test")
    ) { [] }
    #expect(admin.address == reserved.address)
    let error = #expect(throws: MemQError.self) { try PortReservation.take(reserved.address) }
    #expect(error?.code == .addressInUse)
    #expect(error?.subject == reserved.address.description)
    await admin.stop()
    _ = try PortReservation.take(reserved.address)
  }

  @Test func `a host that is not ours is refused`() throws {
    #expect(throws: MemQError.self) {
      try PortReservation.take(try ListenAddress("no-such-host.invalid:0"))
    }
  }
}
