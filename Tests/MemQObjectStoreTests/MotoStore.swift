// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Logging
import MemQModel
import MemQObjectStore
import MemQSystem

/// A real S3 server for a test: moto, with signatures checked, and with faults on demand. Ends with this value.
final class MotoStore: Sendable {
  private struct Hello: Decodable {
    let endpoint: String
    let access_key_id: String
    let secret_access_key: String
    let bucket: String
  }

  private let process: Process
  private let input: Pipe
  private let output: Pipe
  private let hello: Hello

  init() throws {
    let folder = URL(filePath: #filePath).deletingLastPathComponent()
    let root = folder.deletingLastPathComponent().deletingLastPathComponent()
    let process = Process()
    process.executableURL = root.appending(path: ".venv/bin/python")
    process.arguments = [folder.appending(path: "moto_store.py").path]
    let (input, output) = (Pipe(), Pipe())
    process.standardInput = input
    process.standardOutput = output
    try process.run()
    self.process = process
    self.input = input
    self.output = output
    self.hello = try JSONDecoder().decode(Hello.self, from: try Self.line(output))
  }

  deinit {
    try? self.input.fileHandleForWriting.close()
    self.process.waitUntilExit()
  }

  func configuration(prefix: String = "", secret: String? = nil) -> S3Configuration {
    S3Configuration(
      bucket: self.hello.bucket, prefix: prefix, endpoint: self.hello.endpoint,
      credentials: S3Credentials(
        accessKeyID: self.hello.access_key_id,
        secretAccessKey: secret ?? self.hello.secret_access_key))
  }

  func open(prefix: String = "") async throws -> any ObjectStore {
    try await ObjectStores.make(
      ObjectStoreConfiguration(.s3(self.configuration(prefix: prefix))),
      logger: Logger(label: "test"))
  }

  /// The next `count` requests fail with `status`; 0: they are carried out and the answer is lost.
  func fail(_ count: Int, status: Int) throws {
    try self.input.fileHandleForWriting.write(contentsOf: Data("\(count) \(status)\n".utf8))
    _ = try Self.line(self.output)
  }

  private static func line(_ output: Pipe) throws -> Data {
    var line = Data()
    while line.last != UInt8(ascii: "\n") {
      let next = output.fileHandleForReading.readData(ofLength: 1)
      guard !next.isEmpty else {
        throw MemQError(.unavailable, "the S3 server is gone or did not start: run scripts/setup")
      }
      line += next
    }
    return line
  }
}
