// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Foundation
import Logging
import MemQAPI
import MemQModel
import MemQRPC
import NIOPosix
import UnixSignals

/// gRPC's interoperability tests: MemQ's own RPC module against any other implementation, as server or as client.
@main
struct MemQInterop: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "memq-interop",
    abstract: "Runs gRPC's interoperability tests on MemQ's RPC module.",
    discussion: """
      `server` serves grpc.testing.TestService for the interop client of any gRPC implementation; `client` runs the
      cases against any such server. Cases and messages are those of gRPC's public description.
      """,
    subcommands: [Server.self, Client.self])

  static func logger() -> Logger {
    var logger = Logger(label: "memq-interop")
    logger.logLevel = .warning
    return logger
  }
}

extension MemQInterop {
  struct Server: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Serves the test services until it is told to stop.",
      discussion: "Prints `listening on HOST:PORT` once it does; port 0 takes any free one.")

    @Option(help: "Where to listen: HOST:PORT, [V6]:PORT or unix:/PATH.")
    var listen = "127.0.0.1:0"

    func run() async throws {
      let health = HealthService()
      for service in InteropService.names { health.set(service, .serving) }
      var router = InteropService().router()
      health.register(on: &router)
      MemoryService().register(on: &router)
      router.addReflection(
        DescriptorIndex(base64: ProtoDescriptors.base64).merging(.memq))
      do throws(MemQError) {
        let server = try await RPCServer.start(
          router: router, on: self.listen, group: MultiThreadedEventLoopGroup.singleton,
          logger: MemQInterop.logger())
        // Unbuffered, also into a pipe: whoever started us waits for the line.
        FileHandle.standardOutput.write(Data("listening on \(server.localAddress)\n".utf8))
        for await _ in await UnixSignalsSequence(trapping: .sigterm, .sigint) { break }
        health.shutdown()
        await server.shutdown(deadline: .seconds(5))
      } catch {
        throw ValidationError("\(error)")
      }
    }
  }
}

extension MemQInterop {
  enum Format: String, ExpressibleByArgument, CaseIterable {
    case text, json
  }

  struct Client: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Runs cases against a server; exits with 1 when one fails.",
      discussion: "Cases: \(InteropCase.allCases.map(\.rawValue).joined(separator: ", ")).")

    @Option(help: "The server: HOST:PORT, [V6]:PORT or unix:/PATH.")
    var server: String

    @Option(name: .customLong("case"), help: "A case, several with commas between them, or `all`.")
    var cases = "all"

    @Option(help: "Seconds that a case may take.")
    var timeout = 30

    @Option(name: .shortAndLong, help: "text or json.")
    var output = Format.text

    func validate() throws {
      _ = try self.selected()
      if let problem = RPCNetworkChannel.problem(withTarget: self.server) {
        throw ValidationError("--server: \(problem)")
      }
      guard (1...3_600).contains(self.timeout) else {
        throw ValidationError("--timeout is 1 to 3600 seconds, not \(self.timeout)")
      }
    }

    private func selected() throws -> [InteropCase] {
      if self.cases == "all" { return InteropCase.allCases }
      return try self.cases.split(separator: ",").map { name in
        guard let found = InteropCase(rawValue: String(name)) else {
          throw ValidationError("--case: there is no case \(name)")
        }
        return found
      }
    }

    func run() async throws {
      let channel = RPCNetworkChannel(
        target: self.server, group: MultiThreadedEventLoopGroup.singleton,
        logger: MemQInterop.logger())
      let client = InteropClient(channel: channel, timeout: .seconds(self.timeout))
      var results: [CaseResult] = []
      for interopCase in try self.selected() {
        let result = await client.run(interopCase)
        results.append(result)
        if self.output == .text { print(result.line) }
      }
      await channel.close(deadline: .seconds(1))
      if self.output == .json { print(CaseResult.json(results)) }
      if results.contains(where: { $0.failure != nil }) { throw ExitCode.failure }
    }
  }
}
