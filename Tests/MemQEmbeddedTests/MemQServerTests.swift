// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import FoundationNetworking
import Logging
import MemQAPI
import MemQEmbedded
import MemQModel
import MemQRPC
import MemQRuntime
import NIOCore
import NIOPosix
import SwiftProtobuf
import Testing

private func server(_ folder: String, _ more: String...) throws -> MemQServer {
  var logger = Logger(label: "test")
  logger.logLevel = .error
  return try MemQServer(
    arguments: ["--data", folder, "--listen", "127.0.0.1:0", "--segment-bytes", "16MiB"] + more,
    logger: logger)
}

private func withChannel<R>(
  to server: MemQServer, _ body: (RPCNetworkChannel) async throws -> R
) async throws -> R {
  let channel = RPCNetworkChannel(
    target: try #require(server.address), group: MultiThreadedEventLoopGroup.singleton,
    configuration: .init(), logger: Logger(label: "test"))
  do {
    let result = try await body(channel)
    await channel.close(deadline: .seconds(1))
    return result
  } catch {
    await channel.close(deadline: .seconds(1))
    throw error
  }
}

@Suite(.serialized) struct MemQServerTests {
  @Test func `six services start, are ready, stop, and start again on the same folder`()
    async throws
  {
    let folder = TestFolder()
    var clusterIDs: Set<Data> = []
    for round in 0..<2 {
      let server = try server(folder.path)
      try await server.start()
      let cluster = try await withChannel(to: server) { channel in
        #expect(try await channel.health(timeout: .seconds(60)) == .serving)
        return try await channel.call(
          MetadataMethods.describeCluster, .init(), timeout: .seconds(60))
      }
      clusterIDs.insert(cluster.clusterID)
      let live = cluster.nodes.filter { $0.state == .ready }
      #expect(Set(live.map(\.service)).count == 6, "round \(round): \(cluster.nodes)")
      let admin = try #require(server.adminAddress)
      let url = try #require(URL(string: "http://\(admin)/readyz"))
      let (body, response) = try await URLSession.shared.data(from: url)
      #expect(
        (response as? HTTPURLResponse)?.statusCode == 200,
        "\(String(decoding: body, as: UTF8.self))")
      await server.stop(deadline: .seconds(5))
      #expect(server.address == nil)
    }
    #expect(clusterIDs.count == 1)
  }

  @Test func `a second server on the folder, or on the port, is refused and disturbs nothing`()
    async throws
  {
    let folder = TestFolder()
    let first = try server(folder.path)
    try await first.start()
    let error = await #expect(throws: MemQError.self) { try await server(folder.path).start() }
    #expect(error?.code == .dataFolderInUse)
    #expect(error?.subject == folder.path)
    let other = TestFolder()
    let address = try #require(first.address)
    let taken = try MemQServer(
      arguments: ["--data", other.path, "--listen", address], logger: Logger(label: "test"))
    let clash = await #expect(throws: MemQError.self) { try await taken.start() }
    #expect(clash?.code == .addressInUse)
    #expect(clash?.subject == address)
    #expect(
      try await withChannel(to: first) { try await $0.health(timeout: .seconds(60)) } == .serving)
    await first.stop(deadline: .seconds(5))
  }

  @Test func `a volume of another cluster is refused and left as it is`() async throws {
    let (one, two) = (TestFolder(), TestFolder())
    for folder in [one, two] {
      let server = try server(folder.path)
      try await server.start()
      await server.stop(deadline: .seconds(5))
    }
    let files = FileManager.default
    try files.removeItem(atPath: two.path + "/volume-0")
    try files.copyItem(atPath: one.path + "/volume-0", toPath: two.path + "/volume-0")
    let error = await #expect(throws: MemQError.self) { try await server(two.path).start() }
    #expect(error?.code == .wrongCluster)
    let again = try server(one.path)
    try await again.start()
    await again.stop(deadline: .seconds(5))
  }
}
