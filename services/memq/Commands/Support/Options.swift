// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import Logging
import MemQClient
import MemQModel

/// Which server.
struct ServerOptions: ParsableArguments {
  static let addressDefault = "127.0.0.1:7460"

  @Option(
    help: ArgumentHelp(
      "Address of a server, or several separated by commas. (environment: MEMQ_SERVER; default: \(ServerOptions.addressDefault))",
      valueName: "host:port"))
  var server: String?

  @Option(
    help: ArgumentHelp(
      "Seconds to wait for a server that does not answer, or is not ready yet.",
      valueName: "seconds"))
  var connectTimeout: Double = 5

  @OptionGroup(title: "TLS") var security: TLSOptions

  @Flag(help: "Say on standard error what happens.")
  var verbose = false

  func validate() throws {
    guard self.connectTimeout >= 0, self.connectTimeout <= 86_400 else {
      throw ValidationError("--connect-timeout must be from 0 to 86400 seconds")
    }
    guard !self.addresses.isEmpty else { throw ValidationError("--server names no address") }
    for address in self.addresses {
      if let problem = MemQClient.problem(withAddress: address) {
        throw ValidationError("\(self.server == nil ? "MEMQ_SERVER" : "--server"): \(problem)")
      }
    }
  }

  var addresses: [String] {
    let given = self.server ?? getenv("MEMQ_SERVER").map { String(cString: $0) } ?? ""
    let text = given.isEmpty ? Self.addressDefault : given
    return text.split(separator: ",").map(String.init)
  }

  /// Runs `body` with a client and closes it behind it.
  func withClient<R>(_ body: (MemQClient) async throws -> R) async throws -> R {
    var configuration = MemQClient.Configuration()
    configuration.clientID = "memq-cli/\(getpid())"
    configuration.connectTimeout = .milliseconds(Int64(self.connectTimeout * 1_000))
    var logger = Logger(label: "memq")
    logger.logLevel = self.verbose ? .debug : .warning
    configuration.tls = try self.security.tls(logger)
    let client = MemQClient(
      servers: self.addresses, configuration: configuration, logger: logger)
    do {
      let result = try await body(client)
      await client.close()
      return result
    } catch {
      await client.close()
      throw error
    }
  }
}

enum OutputFormat: String, ExpressibleByArgument, CaseIterable {
  case text, json
}

/// For people, or one JSON document.
struct OutputOptions: ParsableArguments {
  @Option(
    name: [.customShort("o"), .customLong("output")], help: "For people, or one JSON document.")
  var format = OutputFormat.text

  var isJSON: Bool { self.format == .json }

  /// Writes one or the other.
  func show(_ json: @autoclosure () -> JSON, _ text: @autoclosure () -> String) async throws {
    if self.isJSON {
      try await Output.standard.line(json().text)
    } else {
      try await Output.standard.write(text())
    }
  }
}

/// A name and its value: `retention.ms=1000`.
struct Assignment: ExpressibleByArgument {
  let name: String
  let value: String

  init?(argument: String) {
    guard let equals = argument.firstIndex(of: "="), equals > argument.startIndex else {
      return nil
    }
    self.name = String(argument[..<equals])
    self.value = String(argument[argument.index(after: equals)...])
  }
}

extension [Assignment] {
  /// - Throws: when a name stands there twice.
  func dictionary() throws -> [String: String] {
    var values: [String: String] = [:]
    for assignment in self {
      guard values.updateValue(assignment.value, forKey: assignment.name) == nil else {
        throw ValidationError("\(assignment.name) is given twice")
      }
    }
    return values
  }
}
