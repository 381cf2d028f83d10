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
