// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import NIOCore
import NIOSSL

/// Says in words why TLS failed.
///
/// BoringSSL tells reasons as names in the text of its errors; which certificate was refused, and why, follows from the certificate.
enum TLSFailure {
  /// What the server showed is not for `name`.
  static func wrongName(target: String, name: String, certificate: NIOSSLCertificate?) -> String {
    "the certificate of \(target) is for \(certificate?.namesText ?? "others"), not for \(name)"
  }

  /// Our side is a client.
  ///
  /// - Parameters:
  ///   - target: where we connected to, as configured.
  ///   - name: what its certificate must be for.
  ///   - certificate: what the server showed, if it came so far.
  static func client(
    _ error: any Error, target: String, name: String, certificate: NIOSSLCertificate?,
    tls: RPCTLS
  ) -> String {
    let text = String(describing: error)
    if let error = error as? NIOSSLExtraError, error == .failedToValidateHostname {
      return self.wrongName(target: target, name: name, certificate: certificate)
    }
    if text.contains("CERTIFICATE_VERIFY_FAILED") {
      return "the certificate of \(target) " + self.distrust(certificate, purpose: .server)
    }
    if let refusal = self.alert(text, hasCertificate: tls.hasCertificate) {
      return "\(target) \(refusal)"
    }
    if self.isPlaintext(text) {
      return "\(target) does not speak TLS"
    }
    if text.contains("EOF during handshake") {
      return
        "\(target) closed the connection during the TLS handshake: perhaps it does not speak TLS"
    }
    if self.isVersion(text) {
      return "\(target) does not speak TLS \(tls.versionMin.rawValue) or newer"
    }
    return "no TLS with \(target): \(text)"
  }

  /// Our side is a server. Nil: nobody is told, as who only looks whether a port is open comes and goes like that.
  static func server(_ error: any Error, certificate: NIOSSLCertificate?) -> String? {
    let text = String(describing: error)
    if text.contains("CERTIFICATE_VERIFY_FAILED") {
      return "the client's certificate " + self.distrust(certificate, purpose: .client)
    }
    if text.contains("PEER_DID_NOT_RETURN_A_CERTIFICATE") {
      return "the client shows no certificate"
    }
    if text.contains("EOF during handshake") { return nil }
    if text.contains("ALERT_UNKNOWN_CA") || text.contains("ALERT_BAD_CERTIFICATE")
      || text.contains("ALERT_CERTIFICATE_UNKNOWN") || text.contains("ALERT_CERTIFICATE_EXPIRED")
    {
      return "the client does not trust our certificate"
    }
    if self.isVersion(text) { return "the client speaks too old a version of TLS" }
    if self.isPlaintext(text) { return "the client does not speak TLS" }
    return text
  }

  /// The connection stood already.
  static func later(_ error: any Error, target: String, tls: RPCTLS) -> String? {
    let text = String(describing: error)
    if let refusal = self.alert(text, hasCertificate: tls.hasCertificate) {
      return "\(target) \(refusal)"
    }
    if text.contains("uncleanShutdown") { return "the connection was lost" }
    return nil
  }

  /// Why a certificate failed: by its dates, its purpose, or else its issuer.
  private static func distrust(
    _ certificate: NIOSSLCertificate?, purpose: NIOSSLCertificate.Purpose
  ) -> String {
    guard let certificate else { return "is not trusted" }
    if let problem = certificate.validityProblem(at: time(nil)) { return problem }
    if !certificate.mayServe(as: purpose) {
      return purpose == .server
        ? "is not made for servers (extended key usage)"
        : "is not made for clients (extended key usage)"
    }
    if certificate.isSelfIssued { return "is self-signed and not among the trusted ones" }
    return "is of an unknown issuer, \(certificate.issuerText): it is not among the trusted roots"
  }

  /// What the other side said when it hung up. In TLS 1.3 a server judges a client's certificate after the client's handshake is done.
  private static func alert(_ text: String, hasCertificate: Bool) -> String? {
    guard text.contains("ALERT_") || text.contains("_ALERT") else { return nil }
    if text.contains("CERTIFICATE_REQUIRED") || text.contains("PEER_DID_NOT_RETURN") {
      return "requires a client certificate, and we showed none"
    }
    if text.contains("ALERT_HANDSHAKE_FAILURE") {
      return hasCertificate
        ? "refused the TLS handshake"
        : "refused the TLS handshake: perhaps it requires a client certificate"
    }
    if text.contains("ALERT_CERTIFICATE_EXPIRED") {
      return "refuses our certificate: it is expired or not yet valid"
    }
    if text.contains("ALERT_UNKNOWN_CA") {
      return "refuses our certificate: it does not know its issuer"
    }
    if text.contains("CERTIFICATE") { return "refuses our certificate" }
    if text.contains("NO_APPLICATION_PROTOCOL") { return "speaks TLS, but not HTTP/2" }
    if text.contains("PROTOCOL_VERSION") { return "speaks no version of TLS that we do" }
    return nil
  }

  private static func isPlaintext(_ text: String) -> Bool {
    text.contains("WRONG_VERSION_NUMBER") || text.contains("HTTP_REQUEST")
      || text.contains("HTTPS_PROXY_REQUEST")
  }

  private static func isVersion(_ text: String) -> Bool {
    text.contains("UNSUPPORTED_PROTOCOL") || text.contains("PROTOCOL_VERSION")
  }
}
