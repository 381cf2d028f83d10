// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CYara
import Glibc
import MemQModel
import MemQScreening
import MemQSystem
import Synchronization

/// One rule file: where it came from and its text.
struct RuleSource: Hashable, Sendable {
  var name: String
  var text: String

  /// The harmless test signature that every scanner knows (eicar.org), wherever it stands in the bytes.
  ///
  /// The string is written in hexadecimal so that this program is not taken for the test file itself.
  static let eicar = RuleSource(
    name: "built-in",
    text: """
      rule EICAR_Test_File {
        meta:
          description = "EICAR standard antivirus test file"
        strings:
          $eicar = { \(hexText("X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR".utf8)) \
      \(hexText("-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*".utf8)) }
        condition:
          $eicar
      }
      """)
}

/// Compiled rules; they are scanned with from several threads at once and freed with the last user.
final class YaraRules: @unchecked Sendable {
  private let rules: UnsafeMutablePointer<YR_RULES>
  /// SHA-256 over names and texts of the sources.
  let digest: String
  let ruleCount: Int

  /// - Throws: `.rulesInvalid` naming file, line and what the compiler says.
  init(compiling sources: [RuleSource]) throws(MemQError) {
    guard Yara.isReady else {
      throw MemQError(.internalError, "libyara could not be initialised")
    }
    var compiler: UnsafeMutablePointer<YR_COMPILER>?
    guard yr_compiler_create(&compiler) == ERROR_SUCCESS, let compiler else {
      throw MemQError(.resourceExhausted, "libyara has no memory for a compiler")
    }
    defer { yr_compiler_destroy(compiler) }
    // Rules stand for themselves: `include` could read any file of the machine.
    yr_compiler_set_include_callback(compiler, nil, nil, nil)

    var hash = SHA256()
    for source in sources {
      let problems = CompilerProblems()
      yr_compiler_set_callback(
        compiler,
        { level, _, line, _, message, context in
          guard level == YARA_ERROR_LEVEL_ERROR, let message, let context else { return }
          Unmanaged<CompilerProblems>.fromOpaque(context).takeUnretainedValue()
            .add(line: Int(line), String(cString: message))
        }, Unmanaged.passUnretained(problems).toOpaque())
      let errors = withExtendedLifetime(problems) {
        yr_compiler_add_string(compiler, source.text, source.name)
      }
      guard errors == 0 else {
        throw MemQError(
          .rulesInvalid, problems.first ?? "\(errors) errors", subject: source.name)
      }
      hash.update(Array("\(source.name)\u{0}\(source.text)\u{0}".utf8))
    }
    var rules: UnsafeMutablePointer<YR_RULES>?
    guard yr_compiler_get_rules(compiler, &rules) == ERROR_SUCCESS, let rules else {
      throw MemQError(.resourceExhausted, "libyara has no memory for the rules")
    }
    self.rules = rules
    self.digest = hexText(hash.digest())
    self.ruleCount = Int(memq_yara_rule_count(rules))
  }

  deinit { yr_rules_destroy(self.rules) }

  func scan(_ bytes: UnsafeRawBufferPointer, seconds: Int32) -> Finding {
    // libyara wants a pointer even for no bytes.
    var empty: UInt8 = 0
    return self.judged { match in
      guard let base = bytes.baseAddress, bytes.count > 0 else {
        return yr_rules_scan_mem(self.rules, &empty, 0, Self.flags, Self.callback, match, seconds)
      }
      return yr_rules_scan_mem(
        self.rules, base.assumingMemoryBound(to: UInt8.self), bytes.count, Self.flags,
        Self.callback, match, seconds)
    }
  }

  func scan(file path: String, seconds: Int32) -> Finding {
    self.judged { match in
      yr_rules_scan_file(self.rules, path, Self.flags, Self.callback, match, seconds)
    }
  }

  private func judged(_ body: (UnsafeMutableRawPointer) -> Int32) -> Finding {
    let match = Match()
    let status = withExtendedLifetime(match) { body(Unmanaged.passUnretained(match).toOpaque()) }
    // A match ends the scan early, so it counts whatever the status says.
    if let name = match.name { return .infected(signature: name) }
    switch status {
    case ERROR_SUCCESS: return .clean
    case ERROR_SCAN_TIMEOUT: return .notScanned(.timedOut)
    default: return .notScanned(.engineError)
    }
  }

  private static let flags = SCAN_FLAGS_REPORT_RULES_MATCHING

  private static let callback: YR_CALLBACK_FUNC = { _, message, data, context in
    guard message == CALLBACK_MSG_RULE_MATCHING, let data, let context else {
      return CALLBACK_CONTINUE
    }
    let rule = data.assumingMemoryBound(to: YR_RULE.self)
    Unmanaged<Match>.fromOpaque(context).takeUnretainedValue().name =
      String(cString: memq_yara_rule_name(rule))
    return CALLBACK_ABORT
  }
}

/// Filled by libyara's callbacks, on the thread that scans.
private final class Match {
  var name: String?
}

private final class CompilerProblems {
  private(set) var first: String?
  func add(line: Int, _ message: String) {
    if self.first == nil { self.first = "line \(line): \(message)" }
  }
}

enum Yara {
  /// libyara is initialised once per process and never finalised: engines come and go.
  static let isReady = yr_initialize() == ERROR_SUCCESS
  static let version =
    "\(memq_yara_version_major()).\(memq_yara_version_minor()).\(memq_yara_version_micro())"
}
