// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A bucket of an S3 store, and how to speak to it.
public struct S3Configuration: Hashable, Sendable {
  /// Where the bucket's name stands in a request.
  public enum Style: String, Hashable, Sendable {
    /// `http://host/bucket/key`: every store takes it.
    case path
    /// `http://bucket.host/key`: what Amazon wants.
    case virtual
  }

  /// Encryption at rest, by the store.
  public enum Encryption: Hashable, Sendable {
    case none
    /// Keys of the store's own (SSE-S3).
    case storeKeys
    /// A key of KMS; empty: the account's default one.
    case kms(key: String)
  }

  public var bucket: String
  /// Before every key, with a slash at its end; empty: none. So several clusters share a bucket.
  public var prefix: String
  /// `http://host:port` or `https://host`; empty: Amazon's for the region.
  public var endpoint: String
  public var region: String
  public var style: Style
  public var credentials: S3Credentials
  public var encryption: Encryption

  public init(
    bucket: String, prefix: String = "", endpoint: String = "", region: String = "us-east-1",
    style: Style? = nil, credentials: S3Credentials, encryption: Encryption = .none
  ) {
    self.bucket = bucket
    self.prefix = prefix.isEmpty || prefix.hasSuffix("/") ? prefix : prefix + "/"
    self.endpoint = endpoint
    self.region = region
    self.style = style ?? (endpoint.isEmpty ? .virtual : .path)
    self.credentials = credentials
    self.encryption = encryption
  }

  /// `s3://bucket` or `s3://bucket/prefix`, as `objects` is written for a bucket.
  ///
  /// - Returns: nil when `text` is no such address but a folder.
  /// - Throws: `.configurationInvalid` for one that begins so and goes on wrong.
  public static func place(_ text: String) throws(MemQError) -> (bucket: String, prefix: String)? {
    guard text.hasPrefix("s3://") else { return nil }
    let parts = text.dropFirst(5).split(
      separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
    let bucket = String(parts[0])
    var prefix = parts.count > 1 ? String(parts[1]) : ""
    while prefix.hasSuffix("/") { prefix.removeLast() }
    try Self.check(bucket: bucket)
    if !prefix.isEmpty { try Self.check(prefix: prefix) }
    return (bucket, prefix)
  }

  /// - Throws: `.configurationInvalid` naming the key.
  public func validate() throws(MemQError) {
    try Self.check(bucket: self.bucket)
    if !self.prefix.isEmpty { try Self.check(prefix: String(self.prefix.dropLast())) }
    if !self.endpoint.isEmpty { _ = try S3Address(self) }
    guard !self.region.isEmpty else {
      throw MemQError(
        .configurationInvalid, "an S3 store needs a region", subject: "object.s3.region")
    }
  }

  /// Amazon's rules: 3-63 of a-z 0-9 . -, beginning and ending with a letter or digit.
  private static func check(bucket: String) throws(MemQError) {
    let allowed = bucket.utf8.allSatisfy { byte in
      UInt8(ascii: "a") <= byte && byte <= UInt8(ascii: "z")
        || UInt8(ascii: "0") <= byte && byte <= UInt8(ascii: "9")
        || ".-".utf8.contains(byte)
    }
    let edges = [bucket.utf8.first, bucket.utf8.last].contains { byte in
      byte.map { ".-".utf8.contains($0) } ?? false
    }
    guard (3...63).contains(bucket.utf8.count), allowed, !edges else {
      throw MemQError(
        .configurationInvalid, "a bucket's name has 3-63 of a-z 0-9 . - (s3://BUCKET/PREFIX)",
        subject: bucket, limit: 63, actual: Int64(bucket.utf8.count))
    }
  }

  private static func check(prefix: String) throws(MemQError) {
    do throws(MemQError) {
      _ = try ObjectKey(prefix)
    } catch {
      throw MemQError(
        .configurationInvalid, "the prefix in the bucket is no key: \(error.message)",
        subject: prefix)
    }
    // S3 takes keys of 1,024 bytes.
    guard prefix.utf8.count + 1 + ObjectKey.bytesMax <= 1_024 else {
      throw MemQError(
        .configurationInvalid, "the prefix in the bucket is too long", subject: prefix,
        limit: Int64(1_023 - ObjectKey.bytesMax), actual: Int64(prefix.utf8.count))
    }
  }
}

/// Who speaks to the store.
public struct S3Credentials: Hashable, Sendable, CustomStringConvertible {
  public var accessKeyID: String
  public var secretAccessKey: String
  /// Of temporary credentials.
  public var sessionToken: String?

  public init(accessKeyID: String, secretAccessKey: String, sessionToken: String? = nil) {
    self.accessKeyID = accessKeyID
    self.secretAccessKey = secretAccessKey
    self.sessionToken = sessionToken
  }

  /// Those of `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`; nil when there are none.
  public init?(environment: [String: String]) {
    guard let id = environment["AWS_ACCESS_KEY_ID"], !id.isEmpty,
      let secret = environment["AWS_SECRET_ACCESS_KEY"], !secret.isEmpty
    else { return nil }
    self.init(
      accessKeyID: id, secretAccessKey: secret, sessionToken: environment["AWS_SESSION_TOKEN"])
  }

  /// Those of one profile of a file as `~/.aws/credentials` is; nil when it has none.
  public init?(profile: String, of text: String) {
    var values: [String: String] = [:]
    var isThere = false
    for line in text.split(whereSeparator: \.isNewline) {
      let line = line.drop { $0 == " " || $0 == "\t" }
      if line.hasPrefix("[") {
        isThere = line.dropFirst().prefix { $0 != "]" } == profile
      } else if isThere, !line.hasPrefix("#"), let mark = line.firstIndex(of: "=") {
        let name = line[..<mark].filter { $0 != " " && $0 != "\t" }
        values[name] = line[line.index(after: mark)...].filter { $0 != " " && $0 != "\t" }
      }
    }
    guard let id = values["aws_access_key_id"], !id.isEmpty,
      let secret = values["aws_secret_access_key"], !secret.isEmpty
    else { return nil }
    self.init(
      accessKeyID: id, secretAccessKey: secret, sessionToken: values["aws_session_token"])
  }

  /// The secret never stands in a log.
  public var description: String { "S3Credentials(\(self.accessKeyID))" }
}

/// The parts of an endpoint that requests are made of.
struct S3Address: Hashable, Sendable {
  let scheme: String
  /// With the port, unless it is the scheme's own: as in `Host`.
  let host: String
  /// `/bucket/prefix/` or `/prefix/`.
  let base: String

  init(_ configuration: S3Configuration) throws(MemQError) {
    var text = configuration.endpoint
    if text.isEmpty { text = "https://s3.\(configuration.region).amazonaws.com" }
    func refuse() -> MemQError {
      MemQError(
        .configurationInvalid, "an S3 endpoint is http://HOST:PORT or https://HOST",
        subject: configuration.endpoint)
    }
    guard let mark = text.range(of: "://") else { throw refuse() }
    let scheme = String(text[..<mark.lowerBound])
    var host = String(text[mark.upperBound...])
    if host.hasSuffix("/") { host.removeLast() }
    let legal = host.utf8.allSatisfy { byte in
      UInt8(ascii: "a") <= byte | 0x20 && byte | 0x20 <= UInt8(ascii: "z")
        || UInt8(ascii: "0") <= byte && byte <= UInt8(ascii: "9")
        || ".-:[]".utf8.contains(byte)
    }
    guard scheme == "http" || scheme == "https", !host.isEmpty, legal else { throw refuse() }
    let standard = scheme == "http" ? ":80" : ":443"
    if host.hasSuffix(standard) { host.removeLast(standard.utf8.count) }
    self.scheme = scheme
    switch configuration.style {
    case .path:
      self.host = host
      self.base = "/\(configuration.bucket)/\(configuration.prefix)"
    case .virtual:
      self.host = "\(configuration.bucket).\(host)"
      self.base = "/\(configuration.prefix)"
    }
  }
}

extension String {
  /// Foundation's is not needed for one separator.
  fileprivate func range(of text: String) -> Range<String.Index>? {
    var at = self.startIndex
    while at < self.endIndex {
      if self[at...].hasPrefix(text) { return at..<self.index(at, offsetBy: text.count) }
      at = self.index(after: at)
    }
    return nil
  }
}
