// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import Logging
import MemQEngines
import MemQModel
import MemQScreening
import Testing

/// Real rules, real files, libyara itself.
@Suite struct YaraEngineTests {
  private let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
  /// In two halves, so that this file is not taken for the test file itself.
  private let eicar = Array(
    ("X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STAND" + "ARD-ANTIVIRUS-TEST-FILE!$H+H*").utf8)
  private let noise = (0..<100_000).map { UInt8(truncatingIfNeeded: $0 &* 167) }

  private func withFolder(_ body: (URL) async throws -> Void) async throws {
    let folder = FileManager.default.temporaryDirectory
      .appendingPathComponent("memq-rules-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    try await body(folder)
  }

  private func engine(_ rules: URL? = nil) async throws(MemQError) -> YaraEngine {
    var configuration = YaraEngine.Configuration()
    configuration.rulesFolder = rules?.path
    return try await YaraEngine.start(configuration, logger: self.logger)
  }

  private func write(_ folder: URL, _ name: String, _ text: String) throws {
    try text.write(to: folder.appendingPathComponent(name), atomically: true, encoding: .utf8)
  }

  private func scan(
    _ engine: YaraEngine, _ bytes: [UInt8], name: String = "", timeout: Duration = .seconds(60)
  ) async -> ScreeningVerdict.Outcome {
    await engine.scan(bytes: bytes, name: name, timeout: timeout).outcome
  }

  @Test func `EICAR is found as its definition says and wherever else it stands`() async throws {
    try await self.withFolder { folder in
      let engine = try await self.engine()
      let file = folder.appendingPathComponent("body")
      let cases: [([UInt8], ScreeningVerdict.Outcome)] = [
        (self.eicar, .infected(signature: "Eicar_Test_File")),
        (self.eicar + Array("\r\n".utf8), .infected(signature: "Eicar_Test_File")),
        (self.noise + self.eicar, .infected(signature: "Eicar_Test_String")),
        (self.eicar + self.noise, .infected(signature: "Eicar_Test_String")),
        (self.noise + self.eicar + self.noise, .infected(signature: "Eicar_Test_String")),
        ([], .clean), (self.noise, .clean), (Array(self.eicar.dropLast()), .clean),
      ]
      for (bytes, outcome) in cases {
        #expect(await self.scan(engine, bytes) == outcome)
        try Data(bytes).write(to: file)
        let answer = await engine.scan(file: file.path, name: "", timeout: .seconds(60))
        #expect(answer.outcome == outcome, "\(bytes.count) bytes: \(answer.detail)")
        #expect(answer.engine.hasPrefix("yara 4.") && answer.databaseVersion.count == 64)
      }
      await engine.close(deadline: .seconds(60))
      #expect(await self.scan(engine, []) == .notScanned(.engineError))
    }
  }

  @Test func `files of this machine are clean`() async throws {
    let engine = try await self.engine()
    let folder = URL(fileURLWithPath: "/usr/include")
    let names = try FileManager.default.contentsOfDirectory(atPath: folder.path)
    for name in names.sorted() where name.hasSuffix(".h") {
      let path = folder.appendingPathComponent(name).path
      let answer = await engine.scan(file: path, name: name, timeout: .seconds(60))
      #expect(answer.outcome == .clean, "\(name): \(answer.detail)")
    }
    await engine.close(deadline: .seconds(60))
  }

  @Test func `what takes too long or can't be read is not scanned, never clean`() async throws {
    let engine = try await self.engine()
    let large = [UInt8](repeating: 7, count: 64 << 20)
    #expect(
      await self.scan(engine, large, timeout: .nanoseconds(1)) == .notScanned(.timedOut))
    let missing = await engine.scan(file: "/no/such/file", name: "", timeout: .seconds(1))
    #expect(missing.outcome == .notScanned(.engineError) && !missing.detail.isEmpty)
    await engine.close(deadline: .seconds(60))
  }

  @Test(.timeLimit(.minutes(10)))
  func `closing does not wait for a scan longer than its deadline`() async throws {
    try await self.withFolder { folder in
      // A pipe without a writer: opening it blocks the scan's thread until the test lets go.
      let pipe = folder.appendingPathComponent("pipe").path
      #expect(mkfifo(pipe, 0o600) == 0)
      let engine = try await self.engine()
      let scan = Task.immediate {
        await engine.scan(file: pipe, name: "", timeout: .seconds(60)).outcome
      }
      await engine.close(deadline: .milliseconds(50))
      let writer = open(pipe, O_RDWR)
      #expect(writer >= 0)
      _ = await scan.value
      close(writer)
    }
  }

  @Test func `a finding counts though other rules were given up`() async throws {
    try await self.withFolder { folder in
      // More matches of one string than libyara keeps: without a finding nobody may call it clean.
      try self.write(folder, "many.yar", #"rule Many { strings: $a = "aa" condition: #a < 0 }"#)
      let engine = try await self.engine(folder)
      let many = [UInt8](repeating: UInt8(ascii: "a"), count: 3_000_000)
      #expect(await self.scan(engine, many) == .notScanned(.engineError))
      #expect(
        await self.scan(engine, many + self.eicar) == .infected(signature: "Eicar_Test_String"))
      await engine.close(deadline: .seconds(60))
    }
  }

  @Test func `rules of the folder count and are reloaded; broken ones leave the old in use`()
    async throws
  {
    try await self.withFolder { folder in
      let engine = try await self.engine(folder)
      let before = engine.status
      #expect(before.rules == 2 && before.isReady && before.problem.isEmpty)
      let marker = Array("hello marker".utf8)
      #expect(await self.scan(engine, marker) == .clean)
      #expect(await !engine.reloadIfChanged())

      try self.write(folder, "marker.yar", #"rule Marker { strings: $a = "marker" condition: $a }"#)
      #expect(await engine.reloadIfChanged())
      #expect(await self.scan(engine, marker) == .infected(signature: "Marker"))
      #expect(engine.status.rules == 3)
      #expect(engine.status.databaseVersion != before.databaseVersion)

      try self.write(folder, "marker.yar", "rule Marker {\n  condition:\n    nonsense\n}")
      #expect(await !engine.reloadIfChanged())
      #expect(await self.scan(engine, marker) == .infected(signature: "Marker"))
      #expect(engine.status.isReady && engine.status.problem.contains("marker.yar:3"))

      try FileManager.default.removeItem(at: folder.appendingPathComponent("marker.yar"))
      #expect(await engine.reloadIfChanged())
      #expect(engine.status == before)
      await engine.close(deadline: .seconds(60))
    }
  }

  @Test func `rules may look at the name`() async throws {
    try await self.withFolder { folder in
      try self.write(folder, "name.yara", #"rule Shell { condition: filename matches /\.sh$/ }"#)
      let engine = try await self.engine(folder)
      #expect(await self.scan(engine, [1], name: "a/b.sh") == .infected(signature: "Shell"))
      #expect(await self.scan(engine, [1], name: "a/b.txt") == .clean)
      await engine.close(deadline: .seconds(60))
    }
  }

  @Test func `rules that do not compile are refused with file and line`() async throws {
    let broken: [(String, String)] = [
      ("rule A { condition: true }\nrule B { condition: nonsense }", "broken.yar:2"),
      ("rule A {", "broken.yar:1"),
      ("include \"/etc/passwd\"\nrule A { condition: true }", "broken.yar:1"),
      ("rule A { condition: true } // \0", "broken.yar"),
    ]
    for (text, place) in broken {
      try await self.withFolder { folder in
        try self.write(folder, "broken.yar", text)
        let error = await #expect(throws: MemQError.self) { try await self.engine(folder) }
        #expect(error?.code == .rulesInvalid)
        #expect(error?.subject == place, "\(text)")
      }
    }
    let missing = await #expect(throws: MemQError.self) {
      try await self.engine(URL(fileURLWithPath: "/no/such/folder"))
    }
    #expect(missing?.code == .rulesInvalid)
  }

  @Test func `the rules that are shipped are the built-in ones`() async throws {
    let source = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .deletingLastPathComponent().deletingLastPathComponent()
      .appendingPathComponent("services/scanner/rules")
    let engine = try await self.engine(source)
    #expect(engine.status.rules == 4)
    #expect(await self.scan(engine, self.eicar) == .infected(signature: "Eicar_Test_File"))
    await engine.close(deadline: .seconds(60))
  }
}
