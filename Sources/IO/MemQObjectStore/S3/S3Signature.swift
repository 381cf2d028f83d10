// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQSystem

/// A request as it is signed and sent.
struct S3Request: Sendable {
  var method: String
  /// The URI's path, from the slash on. Only characters that need no encoding.
  var path: String
  /// Names and values, not encoded.
  var query: [(name: String, value: String)] = []
  /// Lower-case names. `host` and what the signature adds are not in it.
  var headers: [(name: String, value: String)] = []

  /// The query as it stands in the URI: sorted and encoded, as the signature wants it too.
  var queryText: String {
    let pairs: [(name: String, value: String)] = self.query.map {
      (S3Signature.encoded($0.name), S3Signature.encoded($0.value))
    }
    let sorted = pairs.sorted { $0.name == $1.name ? $0.value < $1.value : $0.name < $1.name }
    return sorted.map { "\($0.name)=\($0.value)" }.joined(separator: "&")
  }
}

/// AWS Signature Version 4 in the Authorization header.
///
/// Rules: "Signature Version 4 signing process" of the AWS General Reference.
struct S3Signature: Sendable {
  /// The body is not part of the signature: its CRC-32C travels in a header that is.
  static let unsignedPayload = "UNSIGNED-PAYLOAD"

  let credentials: S3Credentials
  let region: String
  var service = "s3"

  /// The headers to send: the request's own, host, date, token and authorization.
  func sign(
    _ request: S3Request, host: String, payloadHash: String, at time: Timestamp
  ) -> [(name: String, value: String)] {
    let (date, stamp) = Self.stamp(time)
    var headers = request.headers
    headers.append(("host", host))
    headers.append(("x-amz-date", stamp))
    if self.service == "s3" { headers.append(("x-amz-content-sha256", payloadHash)) }
    if let token = self.credentials.sessionToken {
      headers.append(("x-amz-security-token", token))
    }
    headers.sort { $0.name < $1.name }
    let signed = headers.map(\.name).joined(separator: ";")
    let lines = headers.map { "\($0.name):\(Self.trimmed($0.value))\n" }.joined()
    let canonical =
      "\(request.method)\n\(request.path)\n\(request.queryText)\n\(lines)\n\(signed)\n\(payloadHash)"
    let scope = "\(date)/\(self.region)/\(self.service)/aws4_request"
    let text =
      "AWS4-HMAC-SHA256\n\(stamp)\n\(scope)\n\(hexText(SHA256.digest(of: Array(canonical.utf8))))"
    var key = Self.hmac(Array("AWS4\(self.credentials.secretAccessKey)".utf8), date)
    key = Self.hmac(key, self.region)
    key = Self.hmac(key, self.service)
    key = Self.hmac(key, "aws4_request")
    let signature = hexText(Self.hmac(key, text))
    headers.append(
      (
        "authorization",
        "AWS4-HMAC-SHA256 Credential=\(self.credentials.accessKeyID)/\(scope), "
          + "SignedHeaders=\(signed), Signature=\(signature)"
      ))
    return headers
  }

  /// RFC 2104 with SHA-256.
  static func hmac(_ key: [UInt8], _ message: String) -> [UInt8] {
    var block = key.count > 64 ? SHA256.digest(of: key) : key
    block += [UInt8](repeating: 0, count: 64 - block.count)
    var inner = SHA256()
    inner.update(block.map { $0 ^ 0x36 })
    inner.update(Array(message.utf8))
    var outer = SHA256()
    outer.update(block.map { $0 ^ 0x5C })
    outer.update(inner.digest())
    return outer.digest()
  }

  /// `20130524` and `20130524T000000Z`.
  static func stamp(_ time: Timestamp) -> (date: String, stamp: String) {
    let seconds = time.milliseconds / 1_000
    let day = seconds / 86_400
    let rest = seconds % 86_400
    // Days to a date, for years from 1970: eras of 400 years, years that begin in March.
    let shifted = day + 719_468
    let era = shifted / 146_097
    let ofEra = shifted % 146_097
    let yearOfEra = (ofEra - ofEra / 1_460 + ofEra / 36_524 - ofEra / 146_096) / 365
    let ofYear = ofEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    let month = (5 * ofYear + 2) / 153
    let dayOfMonth = ofYear - (153 * month + 2) / 5 + 1
    let civil = month < 10 ? month + 3 : month - 9
    let year = yearOfEra + era * 400 + (civil <= 2 ? 1 : 0)
    func digits(_ value: Int64, _ count: Int) -> String {
      let text = String(value)
      return String(repeating: "0", count: max(0, count - text.count)) + text
    }
    let date = digits(year, 4) + digits(civil, 2) + digits(dayOfMonth, 2)
    let clock = digits(rest / 3_600, 2) + digits(rest / 60 % 60, 2) + digits(rest % 60, 2)
    return (date, "\(date)T\(clock)Z")
  }

  /// Percent-encoded as the signature wants it: all but the unreserved characters of RFC 3986.
  static func encoded(_ text: String) -> String {
    let hex = Array("0123456789ABCDEF".utf8)
    var out: [UInt8] = []
    for byte in text.utf8 {
      switch byte {
      case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "."),
        UInt8(ascii: "_"), UInt8(ascii: "~"):
        out.append(byte)
      default: out += [UInt8(ascii: "%"), hex[Int(byte >> 4)], hex[Int(byte & 15)]]
      }
    }
    return String(decoding: out, as: UTF8.self)
  }

  private static func trimmed(_ value: String) -> Substring {
    var text = value[...]
    while text.first == " " { text.removeFirst() }
    while text.last == " " { text.removeLast() }
    return text
  }
}
