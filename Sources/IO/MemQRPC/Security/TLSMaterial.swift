// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import NIOCore
import NIOSSL

/// Bytes of one file.
struct TLSFile: Equatable {
  let path: String
  let bytes: [UInt8]

  /// A bundle of all the world's roots has 200 KiB.
  private static let bytesMax = 16 << 20

  /// - Throws: `.configurationInvalid` naming the file.
  init(_ path: String) throws(MemQError) {
    self.path = path
    let file = open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { throw Self.error(path, "cannot be read: \(Self.errorText)") }
    defer { close(file) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 64 << 10)
    while true {
      let count = Glibc.read(file, &chunk, chunk.count)
      guard count >= 0 else { throw Self.error(path, "cannot be read: \(Self.errorText)") }
      if count == 0 { break }
      bytes += chunk[..<count]
      guard bytes.count <= Self.bytesMax else {
        throw MemQError(
          .configurationInvalid, "is too large for certificates or a key", subject: path,
          limit: Int64(Self.bytesMax), actual: Int64(bytes.count))
      }
    }
    self.bytes = bytes
  }

  static func error(_ path: String, _ what: String) -> MemQError {
    MemQError(.configurationInvalid, what, subject: path)
  }

  private static var errorText: String { String(cString: strerror(errno)) }

  /// - Throws: `.configurationInvalid` naming the file.
  func certificates() throws(MemQError) -> [NIOSSLCertificate] {
    guard let certificates = try? NIOSSLCertificate.fromPEMBytes(self.bytes),
      !certificates.isEmpty
    else {
      throw Self.error(self.path, "holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")
    }
    return certificates
  }

  /// - Throws: `.configurationInvalid` naming the file.
  func privateKey() throws(MemQError) -> NIOSSLPrivateKey {
    if let key = try? NIOSSLPrivateKey(bytes: self.bytes, format: .pem) { return key }
    let text = String(decoding: self.bytes, as: UTF8.self)
    if text.contains("ENCRYPTED") {
      throw Self.error(
        self.path, "holds an encrypted key: write it out once with openssl pkey -in KEY -out FILE")
    }
    throw Self.error(self.path, "holds no private key in PEM (-----BEGIN PRIVATE KEY-----)")
  }
}

/// Everything TLS needs, as it stands in the files.
struct TLSFileContents: Equatable {
  enum Role: Equatable {
    case server(RPCServerTLSFiles.Clients)
    case client
  }

  let role: Role
  let certificate: TLSFile?
  let key: TLSFile?
  let trust: TLSFile?
  let versionMin: RPCTLSVersion

  init(_ files: RPCServerTLSFiles) throws(MemQError) {
    guard files.clients == .none || files.trust != nil else {
      throw MemQError(
        .configurationInvalid,
        "client certificates need roots to check them against: name a file of trusted roots",
        subject: "clients: \(files.clients.rawValue)")
    }
    self.role = .server(files.clients)
    self.certificate = try TLSFile(files.certificate)
    self.key = try TLSFile(files.key)
    self.trust = try Self.optional(files.trust)
    self.versionMin = files.versionMin
  }

  init(_ files: RPCClientTLSFiles) throws(MemQError) {
    switch (files.certificate, files.key) {
    case (let certificate?, nil):
      throw TLSFile.error(certificate, "is a certificate without its key: name both files")
    case (nil, let key?):
      throw TLSFile.error(key, "is a key without its certificate: name both files")
    default: break
    }
    self.role = .client
    self.certificate = try Self.optional(files.certificate)
    self.key = try Self.optional(files.key)
    self.trust = try Self.optional(files.trust)
    self.versionMin = files.versionMin
  }

  private static func optional(_ path: String?) throws(MemQError) -> TLSFile? {
    guard let path else { return nil }
    return try TLSFile(path)
  }
}

/// What new connections use.
struct TLSMaterial {
  /// Only suites that HTTP/2 allows (RFC 9113, appendix A). Those of TLS 1.3 are always on.
  private static let cipherSuites: [NIOTLSCipher] = [
    .TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, .TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    .TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, .TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    .TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, .TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
  ]

  static let applicationProtocol = "h2"

  let contents: TLSFileContents
  let context: NIOSSLContext
  private let certificate: NIOSSLCertificate?

  /// - Throws: `.configurationInvalid` naming the file.
  init(_ contents: TLSFileContents) throws(MemQError) {
    self.contents = contents
    let chain = try contents.certificate?.certificates() ?? []
    self.certificate = chain.first
    let key = try contents.key?.privateKey()
    let roots = try contents.trust?.certificates()
    var configuration = TLSConfiguration.makeClientConfiguration()
    configuration.certificateChain = chain.map { .certificate($0) }
    configuration.privateKey = key.map { .privateKey($0) }
    configuration.trustRoots = roots.map { .certificates($0) } ?? .default
    configuration.applicationProtocols = [Self.applicationProtocol]
    configuration.minimumTLSVersion = contents.versionMin == .tls12 ? .tlsv12 : .tlsv13
    configuration.cipherSuiteValues = Self.cipherSuites
    // For the other side's goodbye; HTTP/2 has said its own by then.
    configuration.shutdownTimeout = .seconds(1)
    switch contents.role {
    case .client: configuration.certificateVerification = .fullVerification
    case .server(.none): configuration.certificateVerification = .none
    case .server(.optional): configuration.certificateVerification = .optionalVerification
    case .server(.required): configuration.certificateVerification = .noHostnameVerification
    }
    // Clients with several certificates choose by the names of the roots.
    if case .server(.optional) = contents.role { configuration.sendCANameList = true }
    if case .server(.required) = contents.role { configuration.sendCANameList = true }
    do {
      self.context = try NIOSSLContext(configuration: configuration)
    } catch {
      throw Self.refused(contents, error)
    }
  }

  private static func refused(_ contents: TLSFileContents, _ error: any Error) -> MemQError {
    let text = String(describing: error)
    let key = contents.key?.path ?? ""
    let certificate = contents.certificate?.path ?? ""
    // Both files were understood: what is refused now is their being together.
    if error as? NIOSSLError == .failedToLoadPrivateKey {
      return TLSFile.error(key, "is not the key of the certificate in \(certificate)")
    }
    return TLSFile.error(certificate, "cannot be used: \(text)")
  }

  var expirySeconds: Int64? { self.certificate.map { Int64($0.notValidAfter) } }

  /// Nil: the certificate is valid at that time, or there is none.
  func validityProblem(at now: Int) -> String? {
    self.certificate?.validityProblem(at: now).map {
      "the certificate in \(self.contents.certificate?.path ?? "") \($0)"
    }
  }
}

extension TLSMaterial: CustomStringConvertible {
  /// `a.example, until 2027-01-01 00:00:00 UTC`.
  var description: String {
    guard let certificate = self.certificate else { return "none" }
    return "\(certificate.namesText), until \(UTCText.of(certificate.notValidAfter))"
  }
}

extension NIOSSLCertificate {
  /// `expired on DATE`, `is not valid before DATE`; nil: it is valid.
  func validityProblem(at now: Int) -> String? {
    if now < self.notValidBefore { return "is not valid before \(UTCText.of(self.notValidBefore))" }
    if now > self.notValidAfter { return "expired on \(UTCText.of(self.notValidAfter))" }
    return nil
  }
}

enum UTCText {
  /// `2027-01-01 00:00:00 UTC`.
  static func of(_ seconds: Int) -> String {
    var seconds = seconds
    var parts = tm()
    guard gmtime_r(&seconds, &parts) != nil else { return "\(seconds)" }
    var text = [CChar](repeating: 0, count: 64)
    let count = strftime(&text, text.count, "%Y-%m-%d %H:%M:%S UTC", &parts)
    return String(decoding: text[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }
}
