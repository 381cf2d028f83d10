// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQModel
import MemQRPC
import MemQRuntime
import Testing

@Suite struct TLSKeysTests {
  private func problem(_ arguments: [String]) throws -> MemQError? {
    let table = ConfigurationTable(
      program: "memq-test", summary: "Tests things.", keys: CommonKeys.tls + CommonKeys.peersTLS)
    let loaded = try ConfigurationLoader(table, arguments: arguments, environment: [:]).load()
    let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
    do throws(MemQError) {
      let server = try RPCTLS.server(loaded, logger: logger)
      let peers = try RPCTLS.peers(loaded, logger: logger)
      #expect(server == nil && (peers != nil) == arguments.contains("--peers-tls-enabled"))
      return nil
    } catch {
      return error
    }
  }

  @Test func `nothing said is no TLS, and peers alone need no files`() throws {
    #expect(try self.problem([]) == nil)
    #expect(try self.problem(["--peers-tls-enabled"]) == nil)
  }

  @Test func `files are not looked at all the time`() throws {
    let arguments = ["--peers-tls-enabled", "--tls-reload"]
    #expect(try self.problem(arguments + ["999ms"])?.subject == "tls.reload")
    #expect(try self.problem(arguments + ["0s"]) == nil)
  }

  @Test func `half of a setting is an error that names the other half`() throws {
    let cases: [([String], subject: String, other: String)] = [
      (["--tls-certificate", "c.pem"], "tls.certificate", "tls.key"),
      (["--tls-key", "k.pem"], "tls.key", "tls.certificate"),
      (["--tls-trust", "t.pem"], "tls.trust", "tls.certificate"),
      (["--tls-clients", "required"], "tls.clients", "tls.certificate"),
      (
        ["--tls-certificate", "c.pem", "--tls-key", "k.pem", "--tls-clients", "optional"],
        "tls.clients", "tls.trust"
      ),
      (["--peers-tls-trust", "t.pem"], "peers.tls.trust", "peers.tls.enabled: true"),
      (
        ["--peers-tls-enabled", "--peers-tls-key", "k.pem"], "peers.tls.key",
        "peers.tls.certificate"
      ),
    ]
    for (arguments, subject, other) in cases {
      let error = try #require(try self.problem(arguments))
      #expect(error.code == .configurationInvalid)
      #expect(error.subject == subject)
      #expect(error.message == "means nothing without \(other)")
    }
  }
}
