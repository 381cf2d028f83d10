// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQObjectStore
import MemQSystem

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

extension CommonKeys {
  /// Where objects and bodies are. Ingests, uploaders and scanners take the same keys.
  public static let objects = ConfigurationKey(
    "objects", .path, isRequired: true,
    "The object store: a folder, or s3://BUCKET/PREFIX; every ingest, uploader and scanner must see the same one."
  )

  /// The keys beside `objects`.
  public static let objectStore: [ConfigurationKey] = [
    ConfigurationKey(
      "object.threads", .integer(1...64), default: "4",
      "Threads for the file work of an object store that is a folder."),
    ConfigurationKey(
      "object.s3.endpoint", .text,
      "http://HOST:PORT or https://HOST of the S3 store; by default Amazon's for the region."),
    ConfigurationKey(
      "object.s3.region", .text, default: "us-east-1",
      "Region of the bucket, part of each signature."),
    ConfigurationKey(
      "object.s3.style", .choice(["auto", "path", "virtual"]), default: "auto",
      "Where the bucket's name stands: in the path or before the host; auto: in the path when an endpoint is given."
    ),
    ConfigurationKey(
      "object.s3.credentials", .path,
      "File with aws_access_key_id and aws_secret_access_key (as ~/.aws/credentials, the default profile); without it AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the environment."
    ),
    ConfigurationKey(
      "object.s3.encryption", .choice(["none", "store", "kms"]), default: "none",
      "Encryption at rest, asked of the store: with its own keys, or with one of KMS."),
    ConfigurationKey(
      "object.s3.kms.key", .text, "Key of KMS; by default the account's own for S3."),
  ]
}

extension ObjectStoreConfiguration {
  /// - Parameters:
  ///   - objects: the value of `objects`.
  ///   - environment: for the credentials; nil: the process's.
  /// - Throws: `.configurationInvalid` naming the key.
  public init(
    _ loaded: LoadedConfiguration, objects: String,
    environment: [String: String]? = nil
  ) throws(MemQError) {
    guard let place = try S3Configuration.place(objects) else {
      self.init(folder: objects, threads: loaded.integer("object.threads"))
      return
    }
    let encryption: S3Configuration.Encryption =
      switch loaded.text("object.s3.encryption") {
      case "store": .storeKeys
      case "kms": .kms(key: loaded.optionalText("object.s3.kms.key") ?? "")
      default: .none
      }
    let configuration = S3Configuration(
      bucket: place.bucket, prefix: place.prefix,
      endpoint: loaded.optionalText("object.s3.endpoint") ?? "",
      region: loaded.text("object.s3.region"),
      style: S3Configuration.Style(rawValue: loaded.text("object.s3.style")),
      credentials: try Self.credentials(
        loaded.optionalText("object.s3.credentials"),
        environment ?? ProcessInfo.processInfo.environment),
      encryption: encryption)
    try configuration.validate()
    self.init(.s3(configuration))
  }

  private static func credentials(
    _ path: String?, _ environment: [String: String]
  ) throws(MemQError) -> S3Credentials {
    if let path {
      guard let text = try? String(contentsOf: URL(filePath: path), encoding: .utf8) else {
        throw MemQError(
          .configurationInvalid, "the credentials file can't be read", subject: path)
      }
      guard let found = S3Credentials(profile: "default", of: text) else {
        throw MemQError(
          .configurationInvalid,
          "the credentials file has no aws_access_key_id and aws_secret_access_key in [default]",
          subject: path)
      }
      return found
    }
    guard let found = S3Credentials(environment: environment) else {
      throw MemQError(
        .configurationInvalid,
        "an S3 store needs credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or object.s3.credentials",
        subject: "object.s3.credentials")
    }
    return found
  }
}
