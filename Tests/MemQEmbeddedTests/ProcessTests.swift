// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import Testing

/// A folder that goes with the test.
final class TestFolder {
  let path: String

  init() {
    self.path = NSTemporaryDirectory() + "memq-test-\(UInt64.random(in: 0...UInt64.max))"
    try? FileManager.default.createDirectory(
      atPath: self.path, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(atPath: self.path) }
}

/// A real process of one of our executables.
private final class Child {
  private let process = Process()
  private let errors = Pipe()
  private let output = Pipe()

  init(_ program: String, _ arguments: [String], environment: [String: String] = [:]) throws {
    let folder = URL(
      fileURLWithPath: try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
    )
    .deletingLastPathComponent()
    self.process.executableURL = folder.appendingPathComponent(program)
    self.process.arguments = arguments
    self.process.environment = environment
    self.process.standardError = self.errors
    self.process.standardOutput = self.output
    try self.process.run()
  }

  /// Reads standard error up to a line that contains `words`; everything read so far.
  func waits(for words: String) -> String {
    var text = ""
    while !text.contains(words) {
      let data = self.errors.fileHandleForReading.availableData
      if data.isEmpty { return text }
      text += String(decoding: data, as: UTF8.self)
    }
    return text
  }

  func signal(_ number: Int32) { kill(self.process.processIdentifier, number) }

  /// The exit status with the rest of both outputs.
  func end() -> (status: Int32, output: String, errors: String) {
    let errors = self.errors.fileHandleForReading.readDataToEndOfFile()
    let output = self.output.fileHandleForReading.readDataToEndOfFile()
    self.process.waitUntilExit()
    return (
      self.process.terminationStatus, String(decoding: output, as: UTF8.self),
      String(decoding: errors, as: UTF8.self)
    )
  }
}

@Suite struct ProcessTests {
  private static let port0 = ["--listen", "127.0.0.1:0"]

  @Test(arguments: [SIGTERM, SIGINT])
  func `a signal drains and ends with status 0 within ten seconds`(number: Int32) throws {
    let folder = TestFolder()
    let child = try Child("memq-metadata", ["--data", folder.path] + Self.port0)
    #expect(child.waits(for: "Serving").contains("listen=127.0.0.1:"))
    let clock = ContinuousClock()
    let began = clock.now
    child.signal(number)
    let end = child.end()
    #expect(end.status == 0)
    #expect(end.errors.contains("Stopped"))
    #expect(clock.now - began < .seconds(10))
    #expect(end.output.isEmpty)
  }

  @Test func `a signal ends a start that still waits for the cluster`() throws {
    let child = try Child(
      "memq-rebalancer", ["--metadata", "127.0.0.1:1", "--log-level", "debug"] + Self.port0)
    // Trapped before anything starts: this is said later.
    _ = child.waits(for: "Connect failed")
    child.signal(SIGTERM)
    #expect(child.end().status == 0)
  }

  @Test func `a hangup takes over the log level and says what waits for the next start`() throws {
    let folder = TestFolder()
    let file = folder.path + "/memq.yaml"
    try "log.level: info\n".write(toFile: file, atomically: true, encoding: .utf8)
    let child = try Child(
      "memq-metadata", ["--data", folder.path + "/d", "--config", file] + Self.port0)
    _ = child.waits(for: "Serving")
    try "log.level: notice\nlease.timeout: 11s\n".write(
      toFile: file, atomically: true, encoding: .utf8)
    child.signal(SIGHUP)
    let lines = child.waits(for: "key=log.level")
    #expect(lines.contains("Configuration changes at the next start key=lease.timeout value=11s"))
    child.signal(SIGTERM)
    let end = child.end()
    #expect(end.status == 0)
    #expect(!end.errors.contains("Stopped"))
  }

  @Test func `what keeps it from starting is one line, and the status is 1`() throws {
    let folder = TestFolder()
    let first = try Child("memq-metadata", ["--data", folder.path] + Self.port0)
    let address = try #require(first.waits(for: "Serving").firstMatch(of: /listen=(\S+)/)).1
    for (arguments, word) in [
      (["--data", folder.path] + Self.port0, "DATA_FOLDER_IN_USE"),
      (["--data", folder.path + "/other", "--listen", String(address)], "ADDRESS_IN_USE"),
    ] {
      let second = try Child("memq-metadata", arguments).end()
      #expect(second.status == 1)
      #expect(second.errors.contains("[\(word)]"))
      #expect(second.errors.split(separator: "\n").count == 1, "\(second.errors)")
    }
    first.signal(SIGTERM)
    #expect(first.end().status == 0)
  }

  @Test func `a wrong configuration is status 2, and help and print are for standard output`()
    throws
  {
    let wrong = try Child("memq-metadata", ["--nonsense"]).end()
    #expect(wrong.status == 2)
    #expect(wrong.errors.contains("--nonsense"))
    let help = try Child("memq-metadata", ["--help"]).end()
    #expect(help.status == 0 && help.output.contains("--listen") && help.errors.isEmpty)
    let version = try Child("memq-metadata", ["--version"]).end()
    #expect(version.output.hasPrefix("memq-metadata "))
    let printed = try Child(
      "memq-metadata", ["config", "print", "--data", "/d"],
      environment: ["MEMQ_LEASE_TIMEOUT": "20s"]
    ).end()
    #expect(printed.status == 0)
    #expect(printed.output.contains("# environment MEMQ_LEASE_TIMEOUT"))
    #expect(try Child("memq-rebalancer", ["config", "check"]).end().status == 2)
  }
}
