// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import MemQRPC
import NIOSSL

/// A self-signed P-256 certificate for the time of one measurement, made by the openssl program.
enum Certificates {
  private static let folderVariable = "MEMQ_BENCH_CERTIFICATES"

  private static var folder: String {
    guard let folder = getenv(self.folderVariable) else { fatalError("no certificates were made") }
    return String(cString: folder)
  }

  private static var certificate: String { self.folder + "/certificate.pem" }
  private static var key: String { self.folder + "/key.pem" }

  /// Makes them and tells children where they are.
  static func make() {
    let folder = NSTemporaryDirectory() + "memq-bench-\(getpid())"
    try! FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    setenv(self.folderVariable, folder, 1)
    let openssl = Process()
    openssl.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    openssl.arguments = [
      "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
      "-nodes", "-days", "2", "-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1",
      "-keyout", self.key, "-out", self.certificate,
    ]
    openssl.standardError = FileHandle.nullDevice
    try! openssl.run()
    openssl.waitUntilExit()
    guard openssl.terminationStatus == 0 else { fatalError("openssl could not make a certificate") }
  }

  static func remove() {
    try? FileManager.default.removeItem(atPath: self.folder)
  }

  // MARK: For the floor

  static func serverContext() throws -> NIOSSLContext {
    var configuration = TLSConfiguration.makeServerConfiguration(
      certificateChain: try NIOSSLCertificate.fromPEMFile(self.certificate).map {
        .certificate($0)
      },
      privateKey: .privateKey(try NIOSSLPrivateKey(file: self.key, format: .pem)))
    configuration.minimumTLSVersion = .tlsv13
    return try NIOSSLContext(configuration: configuration)
  }

  static func clientContext() throws -> NIOSSLContext {
    var configuration = TLSConfiguration.makeClientConfiguration()
    configuration.trustRoots = .file(self.certificate)
    configuration.minimumTLSVersion = .tlsv13
    return try NIOSSLContext(configuration: configuration)
  }

  // MARK: For MemQRPC

  static func server() throws -> RPCTLS {
    try RPCTLS(
      server: RPCServerTLSFiles(certificate: self.certificate, key: self.key),
      reloadInterval: nil, logger: MemQ.logger)
  }

  static func client() throws -> RPCTLS {
    try RPCTLS(
      client: RPCClientTLSFiles(trust: self.certificate), reloadInterval: nil, logger: MemQ.logger)
  }
}
