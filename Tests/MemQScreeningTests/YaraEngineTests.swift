// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Logging
import MemQEngines
import MemQModel
import MemQScreening
import Testing

@Suite struct YaraEngineTests {
  private let folder: URL
  private let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
  /// In two halves, so that this file is not taken for the test file itself.
  private let eicar = Array(
    ("X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STAND" + "ARD-ANTIVIRUS-TEST-FILE!$H+H*").utf8)

  init() throws {
    self.folder = FileManager.default.temporaryDirectory
      .appendingPathComponent("memq-rules-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: self.folder, withIntermediateDirectories: true)
  }

  private func engine() throws(MemQError) -> YaraEngine {
    try YaraEngine(folder: self.folder.path, logger: self.logger)
  }

  private func write(_ name: String, _ text: String) throws {
    try text.write(to: self.folder.appendingPathComponent(name), atomically: true, encoding: .utf8)
  }

  private func scan(_ engine: YaraEngine, _ bytes: [UInt8]) -> Finding {
    bytes.withUnsafeBytes { engine.scan($0, timeout: .seconds(10)) }
  }

  @Test func `EICAR is found wherever it stands, in memory and in a file`() throws {
    defer { try? FileManager.default.removeItem(at: self.folder) }
    let engine = try self.engine()
    let noise = (0..<100_000).map { UInt8(truncatingIfNeeded: $0 &* 167) }
    let file = self.folder.appendingPathComponent("body")
    for bytes in [self.eicar, noise + self.eicar, self.eicar + noise, noise + self.eicar + noise] {
      #expect(self.scan(engine, bytes) == .infected(signature: "EICAR_Test_File"))
      try Data(bytes).write(to: file)
      #expect(
        engine.scan(file: file.path, timeout: .seconds(10))
          == .infected(signature: "EICAR_Test_File"))
    }
    for bytes in [[], noise, Array(self.eicar.dropLast())] {
      #expect(self.scan(engine, bytes) == .clean)
      try Data(bytes).write(to: file)
      #expect(engine.scan(file: file.path, timeout: .seconds(10)) == .clean)
    }
  }

  @Test func `a file that cannot be read is not scanned, never clean`() throws {
    defer { try? FileManager.default.removeItem(at: self.folder) }
    #expect(
      try self.engine().scan(file: "/no/such/file", timeout: .seconds(1))
        == .notScanned(.engineError))
  }

  @Test func `rules of the folder count and are reloaded; broken ones leave the old in use`() throws {
    defer { try? FileManager.default.removeItem(at: self.folder) }
    let engine = try self.engine()
    let before = engine.identity
    #expect(before.ruleCount == 1 && before.problem == nil)
    let marker = Array("hello marker".utf8)
    #expect(self.scan(engine, marker) == .clean)
    #expect(!engine.reload())

    try self.write("marker.yar", #"rule Marker { strings: $a = "marker" condition: $a }"#)
    #expect(engine.reload())
    #expect(self.scan(engine, marker) == .infected(signature: "Marker"))
    #expect(engine.identity.ruleCount == 2)
    #expect(engine.identity.databaseVersion != before.databaseVersion)

    try self.write("marker.yar", "rule Marker {\n  condition:\n    nonsense\n}")
    #expect(!engine.reload())
    #expect(self.scan(engine, marker) == .infected(signature: "Marker"))
    #expect(engine.identity.problem?.contains("marker.yar") == true)

    try FileManager.default.removeItem(at: self.folder.appendingPathComponent("marker.yar"))
    #expect(engine.reload())
    #expect(engine.identity == before)
  }

  @Test func `a scanner does not start with rules that do not compile, and names file and line`() throws {
    defer { try? FileManager.default.removeItem(at: self.folder) }
    try self.write("broken.yar", "rule A { condition: true }\nrule B { condition: nonsense }")
    let error = #expect(throws: MemQError.self) { try self.engine() }
    #expect(error?.code == .rulesInvalid)
    #expect(error?.subject.hasSuffix("broken.yar") == true)
    #expect(error?.message.contains("line 2") == true)
  }

  @Test func `rules may not include other files`() throws {
    defer { try? FileManager.default.removeItem(at: self.folder) }
    try self.write("include.yar", "include \"/etc/passwd\"\nrule A { condition: true }")
    #expect(throws: MemQError.self) { try self.engine() }
  }
}
