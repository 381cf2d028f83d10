// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import MemQModel
import Testing

@testable import MemQRuntime

/// A folder that goes with the test.
final class TestFolder {
  let path: String

  init() {
    self.path = NSTemporaryDirectory() + "memq-test-\(UInt64.random(in: 0...UInt64.max))"
    try? FileManager.default.createDirectory(
      atPath: self.path, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(atPath: self.path) }

  func write(_ name: String, _ text: String) throws -> String {
    let path = "\(self.path)/\(name)"
    try text.write(toFile: path, atomically: true, encoding: .utf8)
    return path
  }
}

private let table = ConfigurationTable(
  program: "memq-test", summary: "Tests things.",
  keys: [
    CommonKeys.listen(default: "127.0.0.1:7000"),
    CommonKeys.adminListen,
    ConfigurationKey("metadata", .addresses, "Addresses."),
    CommonKeys.data("A folder."),
    ConfigurationKey("segment.bytes", .size, default: "256MiB", "Size of a segment."),
    ConfigurationKey("idle.time", .duration, default: "20ms", "How long."),
    ConfigurationKey("workers", .integer(1...8), default: "2", "How many."),
    ConfigurationKey("checks.records", .flag, default: "true", "Whether."),
    ConfigurationKey(
      "log.format", .choice(["text", "json"]), default: "text", reload: .live, "How."),
  ])

private func load(
  _ arguments: String..., environment: [String: String] = [:]
) throws(ConfigurationError) -> LoadedConfiguration {
  try ConfigurationLoader(table, arguments: arguments, environment: environment).load()
}

private func problems(_ arguments: [String], environment: [String: String] = [:]) -> [String] {
  do throws(ConfigurationError) {
    _ = try ConfigurationLoader(table, arguments: arguments, environment: environment).load()
    return []
  } catch {
    return error.problems.map(\.description)
  }
}

@Suite struct ConfigurationTests {
  @Test
  func
    `a flag counts more than the environment, that more than the file, that more than the default`()
    throws
  {
    let folder = TestFolder()
    let file = try folder.write(
      "memq.yaml",
      """
      # Comments and nesting are fine; so are dotted names.
      segment:
        bytes: 1MiB
      idle.time: 5s
      workers: 4
      metadata:
        - a:1
        - b:2
      """)
    let loaded = try load(
      "--data", "/d", "--config", file, "--workers=8",
      environment: [
        "MEMQ_WORKERS": "3", "MEMQ_IDLE_TIME": "7s", "MEMQ_SERVER": "x:1",
        "MEMQ_CLIENT_TLS": "true",
      ])
    #expect(loaded.integer("workers") == 8)
    #expect(loaded.duration("idle.time") == .seconds(7))
    #expect(loaded.bytes("segment.bytes") == 1 << 20)
    #expect(loaded.address("listen").description == "127.0.0.1:7000")
    #expect(loaded.addresses("metadata") == ["a:1", "b:2"])
    #expect(loaded.optionalAddress("admin.listen") == nil)
    #expect(loaded.warnings.isEmpty)
    let origins = loaded.entries.map { "\($0.key.name) \($0.origin)" }
    #expect(origins.contains("workers flag --workers"))
    #expect(origins.contains("idle.time environment MEMQ_IDLE_TIME"))
    #expect(origins.contains("segment.bytes file \(file):3"))
    #expect(origins.contains("listen default"))
  }

  @Test func `unknown keys of the file are named with their line and the nearest known ones`()
    throws
  {
    let folder = TestFolder()
    let file = try folder.write("memq.yaml", "no:\n  such:\n    key: 1\nsegment:\n  byte: 5\n")
    let found = problems(["--data", "/d", "--config", file])
    #expect(found.count == 2)
    #expect(found[0].contains("\(file):3") && found[0].contains("no.such.key"))
    #expect(found[1].contains("segment.byte;") && found[1].contains("did you mean segment.bytes"))
    #expect(found[0].contains("[CONFIGURATION_INVALID]"))
  }

  @Test(arguments: [
    (["--no-such-flag"], "--no-such-flag: no such flag"),
    (["--workrs", "3"], "did you mean --workers?"),
    (["--workers"], "--workers: a value is missing"),
    (["--workers", "--listen", "a:1"], "--workers: a value is missing"),
    (["--workers", "1", "--workers", "2"], "--workers: given twice"),
    (["stray"], "stray: flags begin with --"),
    (["--workers", "9"], "workers is \"9\"; it must be a whole number from 1 to 8"),
    (["--listen", "nonsense"], "listen is \"nonsense\""),
    (["--segment-bytes", "5 miles"], "such as 64MiB"),
    (["--idle-time", "10"], "such as 250ms"),
    (["--log-format", "xml"], "one of text, json"),
    (["--checks-records=perhaps"], "true or false"),
    (["--config", "/nowhere/memq.yaml"], "/nowhere/memq.yaml: cannot read"),
  ])
  func `a wrong flag is refused by name`(arguments: [String], words: String) {
    let found = problems(["--data", "/d"] + arguments)
    #expect(found.count == 1)
    #expect(found.first?.contains(words) == true, "\(found)")
  }

  @Test(arguments: [
    "{{{ not yaml", "- a\n- b\n", "workers: [[1]]\n", "workers:\n", "workers: 1\nworkers: 2\n",
  ])
  func `a file that is no configuration is refused by name`(text: String) throws {
    let folder = TestFolder()
    let file = try folder.write("memq.yaml", text)
    let found = problems(["--data", "/d", "--config", file])
    #expect(found.first?.contains("memq.yaml") == true, "\(found)")
  }

  @Test func `an empty file and one of comments are configurations`() throws {
    let folder = TestFolder()
    for text in ["", "# nothing\n"] {
      let file = try folder.write("memq.yaml", text)
      #expect(try load("--data", "/d", "--config", file).integer("workers") == 2)
    }
  }

  @Test func `unknown variables are one warning, and those of others none`() throws {
    let loaded = try load(
      "--data", "/d",
      environment: [
        "MEMQ_WORKER": "3", "MEMQ_OTHER_THING": "1", "MEMQ_DATA": "/elsewhere", "PATH": "/bin",
      ])
    #expect(loaded.warnings.count == 1)
    #expect(loaded.warnings[0].contains("MEMQ_WORKER; did you mean MEMQ_WORKERS?"))
    #expect(loaded.warnings[0].contains("MEMQ_OTHER_THING"))
    #expect(!loaded.warnings[0].contains("MEMQ_DATA"))
    #expect(loaded.text("data") == "/d")
  }

  @Test func `a required key that nobody sets is named with how to set it`() {
    #expect(
      problems([]) == [
        "data: must be set (--data, or in the file): A folder. [CONFIGURATION_INVALID]"
      ])
    #expect(problems([], environment: ["MEMQ_DATA": "/d"]).count == 1)
  }

  @Test func `what is printed can be read back`() throws {
    let folder = TestFolder()
    let loaded = try load("--data", "/d: \"x\"", "--metadata", "a:1,[::1]:2", "--idle-time", "7d")
    let file = try folder.write("printed.yaml", loaded.printout)
    let again = try load("--config", file)
    #expect(again.entries.map(\.value) == loaded.entries.map(\.value))
    #expect(loaded.printout.contains("idle.time: 7d"))
    #expect(loaded.printout.contains("# flag --idle-time"))
  }

  @Test func `help names every flag, variable and default`() {
    for key in table.keys {
      #expect(table.helpText.contains(key.flag))
      if let variable = key.variable { #expect(table.helpText.contains(variable)) }
      if let value = key.defaultValue { #expect(table.helpText.contains("default \(value)")) }
    }
    #expect(!table.helpText.contains("MEMQ_DATA"))
    #expect(table.helpText.split(separator: "\n").allSatisfy { $0.count <= 100 })
  }

  @Test func `arguments say what to do`() {
    func command(_ arguments: String...) -> ConfigurationCommand {
      ConfigurationLoader(table, arguments: arguments, environment: [:]).command
    }
    #expect(command() == .run)
    #expect(command("--nonsense", "--help") == .help)
    #expect(command("--version") == .version)
    #expect(command("config", "print", "--workers", "3") == .print)
    #expect(command("config", "check") == .check)
  }
}

@Suite struct UnitTests {
  @Test(arguments: [
    ("0", 0), ("4096", 4096), ("64MiB", 64 << 20), ("64mib", 64 << 20), ("1GB", 1_000_000_000),
    ("2 TiB", 2 << 40), ("1_000KB", 1_000_000), ("7B", 7),
  ])
  func `sizes`(text: String, bytes: Int) {
    #expect(ByteSize(text)?.bytes == Int64(bytes))
    #expect(ByteSize(ByteSize(text)!.description) == ByteSize(text))
  }

  @Test(arguments: [
    ("0", 0), ("250ms", 250_000), ("10s", 10_000_000), ("7d", 7 * 86_400_000_000), ("5us", 5),
    ("2m", 120_000_000), ("3h", 10_800_000_000),
  ])
  func `times`(text: String, microseconds: Int) {
    #expect(TimeSpan(text)?.duration == .microseconds(microseconds))
    #expect(TimeSpan(TimeSpan(text)!.description) == TimeSpan(text))
  }

  @Test(arguments: ["", "MiB", "-1", "1.5GiB", "1XB", "99999999999TiB", "0x10", "1 MiB extra"])
  func `what is no size`(text: String) { #expect(ByteSize(text) == nil) }

  @Test(arguments: ["", "10", "s", "-1s", "1.5s", "1w", "9999999999999d", "10S"])
  func `what is no time`(text: String) { #expect(TimeSpan(text) == nil) }

  @Test func `the admin port is 1,000 above`() throws {
    #expect(try ListenAddress("[::1]:7460").adminAddress().description == "[::1]:8460")
    #expect(try ListenAddress("h:0").adminAddress().description == "h:0")
    #expect(throws: MemQError.self) { try ListenAddress("h:65000").adminAddress() }
    #expect(throws: MemQError.self) { try ListenAddress("unix:/tmp/s").adminAddress() }
    for text in ["nonsense", "h", "h:99999", ":1", "::1:2", "unix:", "a b:1"] {
      #expect(throws: MemQError.self) { try ListenAddress(text) }
    }
  }
}
