// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CCrypto
import NIOSSL

/// Who the other side of a connection proved to be: what its verified certificate says.
///
/// One object per connection, shared by its calls.
public final class RPCPeerIdentity: Sendable {
  /// Of the subject; nil: it has none.
  public let commonName: String?
  /// Alternative names of the subject, by kind. Ids of SPIFFE are URIs.
  public let dnsNames: [String]
  public let uris: [String]
  public let emailAddresses: [String]
  /// SHA-256 of the certificate (DER), 32 bytes: what tools call its fingerprint.
  public let certificateDigest: [UInt8]
  /// When the certificate ends, in seconds since 1970.
  public let expirySeconds: Int64

  public init(
    commonName: String?, dnsNames: [String] = [], uris: [String] = [],
    emailAddresses: [String] = [], certificateDigest: [UInt8] = [], expirySeconds: Int64 = 0
  ) {
    self.commonName = commonName
    self.dnsNames = dnsNames
    self.uris = uris
    self.emailAddresses = emailAddresses
    self.certificateDigest = certificateDigest
    self.expirySeconds = expirySeconds
  }

  convenience init(_ certificate: NIOSSLCertificate) {
    let names = certificate.alternativeNames
    self.init(
      commonName: certificate.commonName, dnsNames: names.dns, uris: names.uris,
      emailAddresses: names.emails, certificateDigest: certificate.digest,
      expirySeconds: Int64(certificate.notValidAfter))
  }
}

extension RPCPeerIdentity: CustomStringConvertible {
  /// For people and logs: the first name of the certificate.
  public var description: String {
    self.uris.first ?? self.commonName ?? self.dnsNames.first ?? self.emailAddresses.first
      ?? "a certificate without a name"
  }
}

/// The alternative names of a certificate's subject, as text.
struct AlternativeNames {
  /// As many of each kind as anybody needs; a certificate with thousands must not cost memory per connection.
  private static let max = 64

  var dns: [String] = []
  var uris: [String] = []
  var emails: [String] = []
  var addresses: [String] = []

  fileprivate mutating func add(_ name: _SubjectAlternativeName) {
    let text = String(decoding: name.contents, as: UTF8.self)
    switch name.nameType {
    case .dnsName: Self.add(text, to: &self.dns)
    case .uri: Self.add(text, to: &self.uris)
    case .email: Self.add(text, to: &self.emails)
    case .ipAddress: Self.add(Self.addressText(Array(name.contents)), to: &self.addresses)
    default: break
    }
  }

  private static func add(_ text: String, to list: inout [String]) {
    if list.count < self.max { list.append(text) }
  }

  private static func addressText(_ bytes: [UInt8]) -> String {
    if bytes.count == 4 { return bytes.map(String.init).joined(separator: ".") }
    let groups = stride(from: 0, to: bytes.count - 1, by: 2).map { index in
      String(UInt16(bytes[index]) << 8 | UInt16(bytes[index + 1]), radix: 16)
    }
    return groups.joined(separator: ":")
  }
}

extension NIOSSLCertificate {
  var alternativeNames: AlternativeNames {
    var names = AlternativeNames()
    for name in self._subjectAlternativeNames() { names.add(name) }
    return names
  }

  /// The last, which is the most significant.
  var commonName: String? { self.subjectName.last { $0.type == .commonName }?.value }

  var digest: [UInt8] {
    guard let der = try? self.toDERBytes() else { return [] }
    return [UInt8](unsafeUninitializedCapacity: 32) { buffer, count in
      CCrypto.SHA256(der, der.count, buffer.baseAddress)
      count = 32
    }
  }

  /// The names a client may know it under, for people: `a.example, b.example` or its common name.
  var namesText: String {
    let names = self.alternativeNames
    let all = names.dns + names.addresses + names.uris
    if all.isEmpty { return self.commonName.map { "nobody (common name \($0))" } ?? "nobody" }
    let shown = all.prefix(8).joined(separator: ", ")
    return all.count > 8 ? "\(shown) and \(all.count - 8) more" : shown
  }

  /// Whether it is for a host of that name: one of its DNS names is it, or stands for it with a star as the whole first label (RFC 9525).
  /// Neither its addresses nor its common name count.
  func isFor(host name: String) -> Bool {
    let wanted = Self.labels(name)
    return self.alternativeNames.dns.contains { dnsName in
      let labels = Self.labels(dnsName)
      guard labels.count == wanted.count else { return false }
      if labels == wanted { return true }
      return labels.count >= 3 && labels[0] == "*" && labels.dropFirst() == wanted.dropFirst()
    }
  }

  /// Without the dot that a complete name may end in.
  private static func labels(_ name: String) -> [Substring] {
    var labels = name.lowercased().split(separator: ".", omittingEmptySubsequences: false)
    if labels.count > 1, labels.last == "" { labels.removeLast() }
    return labels
  }

  /// `CN=name` or what else the issuer is called.
  var issuerText: String {
    let issuer = self.issuerName
    if let name = issuer.last(where: { $0.type == .commonName }) { return "\"\(name.value)\"" }
    return issuer.last.map { "\"\($0.value)\"" } ?? "without a name"
  }

  var isSelfIssued: Bool { self.issuerName == self.subjectName }

  /// Whether it may stand for a server, or a client: an extended key usage, when there is one, must name that.
  func mayServe(as purpose: Purpose) -> Bool {
    let extendedKeyUsage = NIOSSLObjectIdentifier("2.5.29.37")
    for item in self._extensions where item.objectIdentifier == extendedKeyUsage {
      return item.data.withUnsafeBytes { bytes in
        let wanted: [UInt8] = [6, 8, 0x2b, 6, 1, 5, 5, 7, 3, purpose.rawValue]
        let any: [UInt8] = [6, 4, 0x55, 0x1d, 0x25, 0]
        return bytes.contains(wanted) || bytes.contains(any)
      }
    }
    return true
  }

  /// The last arc of the purpose's object identifier, 1.3.6.1.5.5.7.3.x.
  enum Purpose: UInt8 {
    case server = 1
    case client = 2
  }
}

extension UnsafeRawBufferPointer {
  fileprivate func contains(_ part: [UInt8]) -> Bool {
    guard self.count >= part.count else { return false }
    return (0...(self.count - part.count)).contains { start in
      self[start..<(start + part.count)].elementsEqual(part)
    }
  }
}
