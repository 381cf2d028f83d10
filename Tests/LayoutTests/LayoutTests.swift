// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Testing

/// Rules about the source tree itself.
@Suite struct LayoutTests {
  static let root = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

  static func files(under folders: [String], ending suffixes: [String]) -> [URL] {
    folders.flatMap { folder in
      let base = Self.root.appendingPathComponent(folder)
      let found = FileManager.default.enumerator(at: base, includingPropertiesForKeys: nil)
      return (found?.compactMap { $0 as? URL } ?? []).filter { url in
        suffixes.contains { url.lastPathComponent.hasSuffix($0) } && !url.path.contains("/.build/")
      }
    }
  }

  static let code = ["Sources", "services", "Tests", "Benchmarks", "Examples", "scripts"]

  @Test func `no file speaks of work that is left, and no test is switched off`() throws {
    // The words are put together here so that this file does not hold them.
    let words = [
      "TO" + "DO", "FIX" + "ME", "XCT" + "Skip", ".disa" + "bled(", "pytest." + "skip",
      "mark." + "skip",
    ]
    for file in Self.files(under: Self.code, ending: [".swift", ".py", ".c", ".h", ".sh"]) {
      let text = try String(contentsOf: file, encoding: .utf8)
      for word in words { #expect(!text.contains(word), "\(file.path) contains \(word)") }
    }
  }

  @Test func `core imports nothing that could reach outside`() throws {
    let allowed: Set<String> = [
      "MemQModel", "MemQRecords", "MemQLog", "MemQReplication", "MemQMetadata", "MemQPlacement",
      "MemQPacking", "MemQScreening",
    ]
    for file in Self.files(under: ["Sources/Core"], ending: [".swift"]) {
      for line in try String(contentsOf: file, encoding: .utf8).split(separator: "\n") {
        let words = line.split(separator: " ")
        guard let at = words.firstIndex(of: "import"), at <= 1, at + 1 < words.count else {
          continue
        }
        #expect(allowed.contains(String(words[at + 1])), "\(file.path): \(line)")
      }
    }
  }

  @Test func `core has no concurrency and no clock`() throws {
    let banned = try NSRegularExpression(
      pattern:
        #"\basync\b|\bawait\b|\bactor [A-Z]|\bTask\b|ContinuousClock|SuspendingClock|RandomNumberGenerator|\.random\("#
    )
    for file in Self.files(under: ["Sources/Core"], ending: [".swift"]) {
      for line in try String(contentsOf: file, encoding: .utf8).split(separator: "\n") {
        let code = String(
          line.split(separator: "//", maxSplits: 1, omittingEmptySubsequences: false)[0])
        let found = banned.firstMatch(in: code, range: NSRange(code.startIndex..., in: code))
        #expect(found == nil, "\(file.path): \(line)")
      }
    }
  }

  @Test func `every Swift file says its licence`() throws {
    for file in Self.files(under: Self.code, ending: [".swift"])
    where !file.lastPathComponent.hasSuffix(".pb.swift") {
      let text = try String(contentsOf: file, encoding: .utf8)
      #expect(text.contains("SPDX-License-Identifier: Apache-2.0"), "\(file.path)")
    }
  }

  @Test func `every service has a README, a configuration example, a library and an executable`() {
    for service in ["metadata", "replication", "ingest", "uploader", "scanner", "rebalancer"] {
      for part in ["README.md", "config.example.yaml", "Service", "Main"] {
        let path = Self.root.appendingPathComponent("services/\(service)/\(part)").path
        #expect(FileManager.default.fileExists(atPath: path), "\(path)")
      }
    }
  }

  @Test func `every message, field and call of the protocol is commented`() throws {
    for file in Self.files(under: ["proto/memq"], ending: [".proto"]) {
      let lines = try String(contentsOf: file, encoding: .utf8).split(
        separator: "\n", omittingEmptySubsequences: false
      ).map { $0.trimmingCharacters(in: .whitespaces) }
      for (number, line) in lines.enumerated() where number > 0 {
        let declares =
          line.hasPrefix("message ") || line.hasPrefix("enum ") || line.hasPrefix("service ")
          || line.hasPrefix("rpc ") || line.hasPrefix("oneof ")
          || line.contains(" = ") && line.hasSuffix(";") && !line.hasPrefix("syntax")
        guard declares else { continue }
        #expect(
          lines[number - 1].hasPrefix("//"), "\(file.lastPathComponent):\(number + 1): \(line)")
      }
    }
  }

  @Test func `error codes are the same in the protocol and in the model`() throws {
    func pairs(_ path: String, _ pattern: String) throws -> [String: String] {
      let text = try String(contentsOf: Self.root.appendingPathComponent(path), encoding: .utf8)
      let expression = try NSRegularExpression(pattern: pattern)
      var found: [String: String] = [:]
      for match in expression.matches(in: text, range: NSRange(text.startIndex..., in: text)) {
        let name = String(text[Range(match.range(at: 1), in: text)!])
        let number = String(text[Range(match.range(at: 2), in: text)!])
        found[number] = name.filter { $0 != "_" }.lowercased()
      }
      return found
    }
    let model = try pairs("Sources/Model/MemQModel/ErrorCode.swift", "case (\\w+) = (\\d+)")
    let proto = try pairs("proto/memq/v1/errors.proto", "ERROR_CODE_(\\w+) = ([1-9]\\d*);")
    #expect(!model.isEmpty)
    #expect(model == proto)
  }
}
