// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import MemQRPC
import NIOSSL
import Synchronization

/// A certificate authority in a folder of its own, and what it signed; made by the openssl command.
final class TestCertificates: Sendable {
  /// A certificate and its key.
  struct Pair: Sendable {
    let certificate: String
    let key: String
  }

  enum Validity: Sendable {
    case now, past, future
  }

  let folder: String
  private let signing = Mutex(())
  var authority: String { self.file("ca.pem") }

  /// Shared by tests that change nothing.
  static let shared = try! TestCertificates()
  /// Whom nobody trusts.
  static let strangers = try! TestCertificates(authority: "Stranger")

  init(authority: String = "MemQ test authority") throws {
    self.folder =
      FileManager.default.temporaryDirectory
      .appendingPathComponent("memq-tls-\(UUID().uuidString)").path
    try FileManager.default.createDirectory(
      atPath: self.folder, withIntermediateDirectories: true)
    try Self.settings.write(toFile: self.file("ca.cnf"), atomically: true, encoding: .utf8)
    try "".write(toFile: self.file("index.txt"), atomically: true, encoding: .utf8)
    try self.openssl(
      ["req", "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=\(authority)"]
        + ["-days", "3650"] + Self.newKey)
  }

  deinit { try? FileManager.default.removeItem(atPath: self.folder) }

  func file(_ name: String) -> String { self.folder + "/" + name }

  private static let newKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
  private static let settings = """
    [ca]
    default_ca = main
    [main]
    dir = .
    database = index.txt
    new_certs_dir = .
    default_md = sha256
    policy = any
    copy_extensions = copy
    unique_subject = no
    rand_serial = yes
    [any]
    commonName = optional
    """

  /// Makes a certificate, replacing one of the same file name.
  func make(
    _ name: String, commonName: String = "memq test",
    names: String = "DNS:localhost,IP:127.0.0.1", validity: Validity = .now,
    extra: [String] = []
  ) throws -> Pair {
    try self.openssl(
      ["req", "-new", "-keyout", "\(name).key", "-out", "\(name).csr", "-subj"]
        + ["/CN=\(commonName)", "-addext", "subjectAltName=\(names)"] + extra + Self.newKey)
    let dates =
      switch validity {
      case .now: ["-days", "30"]
      case .past: ["-startdate", "20200101000000Z", "-enddate", "20200201000000Z"]
      case .future: ["-startdate", "20900101000000Z", "-enddate", "20900201000000Z"]
      }
    let command = ["ca", "-batch", "-notext", "-config", "ca.cnf", "-cert", "ca.pem"]
    let files = ["-keyfile", "ca.key", "-in", "\(name).csr", "-out", "\(name).pem"]
    // The command's own database does not bear two of them at a time.
    _ = try self.signing.withLock { _ in try self.openssl(command + files + dates) }
    return Pair(certificate: self.file("\(name).pem"), key: self.file("\(name).key"))
  }

  @discardableResult
  func openssl(_ arguments: [String]) throws -> String {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = ["openssl"] + arguments
    process.currentDirectoryURL = URL(fileURLWithPath: self.folder)
    let output = Pipe()
    let errors = FileHandle(forWritingAtPath: "/dev/null")
    process.standardOutput = output
    process.standardError = errors
    try process.run()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    guard process.terminationStatus == 0 else { throw Failure(command: arguments) }
    return text
  }

  struct Failure: Error {
    let command: [String]
  }

  /// Of a raw server.
  func rawServer(_ pair: Pair, protocols: [String] = ["h2"]) throws -> TLSConfiguration {
    var configuration = TLSConfiguration.makeServerConfiguration(
      certificateChain: try NIOSSLCertificate.fromPEMFile(pair.certificate).map {
        .certificate($0)
      },
      privateKey: .privateKey(try NIOSSLPrivateKey(file: pair.key, format: .pem)))
    configuration.applicationProtocols = protocols
    return configuration
  }

  /// Of a raw client that trusts this authority.
  func rawClient(
    protocols: [String] = ["h2"], versionMax: TLSVersion = .tlsv13
  ) throws -> TLSConfiguration {
    var configuration = TLSConfiguration.makeClientConfiguration()
    configuration.trustRoots = .file(self.authority)
    configuration.applicationProtocols = protocols
    configuration.certificateVerification = .noHostnameVerification
    configuration.minimumTLSVersion = .tlsv12
    configuration.maximumTLSVersion = versionMax
    return configuration
  }
}
