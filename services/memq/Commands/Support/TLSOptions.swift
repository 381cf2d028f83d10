// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import Logging
import MemQClient
import MemQRPC

/// TLS to the server. Each option has a variable, `MEMQ_CLIENT_` and its name: `MEMQ_TLS_…` belongs to `memq serve`.
struct TLSOptions: ParsableArguments {
  @Flag(
    name: .customLong("tls"),
    help: "Speak TLS; any of the options below does so, too. (environment: MEMQ_CLIENT_TLS=true)")
  var isOn = false

  @Option(
    name: .customLong("tls-ca"),
    help: ArgumentHelp(
      "PEM file of the roots the server's certificate is checked against. (environment: MEMQ_CLIENT_TLS_CA; default: the system's)",
      valueName: "file"))
  var authorities: String?

  @Option(
    name: .customLong("tls-certificate"),
    help: ArgumentHelp(
      "PEM file of a certificate of your own, for servers that ask for one. (environment: MEMQ_CLIENT_TLS_CERTIFICATE)",
      valueName: "file"))
  var certificate: String?

  @Option(
    name: .customLong("tls-key"),
    help: ArgumentHelp(
      "PEM file of its private key. (environment: MEMQ_CLIENT_TLS_KEY)", valueName: "file"))
  var key: String?

  @Option(
    name: .customLong("tls-server-name"),
    help: ArgumentHelp(
      "The name the server's certificate must have. (environment: MEMQ_CLIENT_TLS_SERVER_NAME; default: the host of its address)",
      valueName: "name"))
  var serverName: String?

  /// Nil: no TLS.
  func tls(_ logger: Logger) throws -> RPCTLS? {
    let wanted = try Self.isOnByVariable()
    // A plain no is one, whatever the other variables say; options say more.
    func variable(_ name: String) -> String? {
      wanted == false ? nil : Self.variable(name)
    }
    let files = RPCClientTLSFiles(
      trust: self.authorities ?? variable("CA"),
      certificate: self.certificate ?? variable("CERTIFICATE"),
      key: self.key ?? variable("KEY"), serverName: self.serverName ?? variable("SERVER_NAME"))
    let isOn = self.isOn || wanted == true || files != RPCClientTLSFiles()
    return isOn ? try RPCTLS(client: files, logger: logger) : nil
  }

  /// Nil: nothing is said.
  private static func isOnByVariable() throws -> Bool? {
    guard let text = getenv("MEMQ_CLIENT_TLS").map({ String(cString: $0) }), !text.isEmpty else {
      return nil
    }
    guard let value = Bool(text) else {
      throw ValidationError("MEMQ_CLIENT_TLS must be true or false")
    }
    return value
  }

  private static func variable(_ name: String) -> String? {
    guard let text = getenv("MEMQ_CLIENT_TLS_\(name)") else { return nil }
    return text.pointee == 0 ? nil : String(cString: text)
  }
}
