// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CYara
import Glibc
import MemQModel
import MemQScreening
import MemQSystem

/// Compiled rules; freed with the last scan that uses them. Any number of threads may scan with them at a time.
final class YaraRules: @unchecked Sendable {
  /// "yara 4.2.3".
  static let engineName =
    "yara \(memq_yara_version_major()).\(memq_yara_version_minor()).\(memq_yara_version_micro())"
  /// The library is initialised once and stays so.
  private static let initialized = yr_initialize() == ERROR_SUCCESS

  let ruleCount: Int
  /// SHA-256 over names and texts, hexadecimal.
  let digest: String
  private let rules: UnsafeMutablePointer<YR_RULES>

  /// Compiles; each source has a namespace of its own.
  ///
  /// - Throws: `.rulesInvalid` with file and line.
  init(_ sources: [RuleFolder.Source]) throws(MemQError) {
    guard Self.initialized else {
      throw MemQError(.internalError, "libyara can't be initialised")
    }
    let compiler = try YaraCompiler()
    for source in sources { try compiler.add(source) }
    self.rules = try compiler.finish()
    self.digest = Self.digest(of: sources)
    self.ruleCount = Int(memq_yara_rule_count(self.rules))
  }

  deinit { yr_rules_destroy(self.rules) }

  private static func digest(of sources: [RuleFolder.Source]) -> String {
    var hash = SHA256()
    for source in sources {
      var writer = ByteWriter()
      writer.text(source.name)
      writer.integer(UInt64(source.text.count))
      hash.update(writer.bytes)
      hash.update(source.text)
    }
    return hexText(hash.digest())
  }

  enum Content {
    /// Sizes of parts that add up to the bytes.
    case bytes([UInt8], parts: [Int])
    case file(String)
  }

  /// Judges the content whole. Blocking, for `timeout` at most (looked at every few KiB of input).
  func scan(
    _ content: Content, name: String, timeout: Duration
  ) -> (outcome: ScreeningVerdict.Outcome, detail: String) {
    var scanner: UnsafeMutablePointer<YR_SCANNER>?
    guard yr_scanner_create(self.rules, &scanner) == ERROR_SUCCESS, let scanner else {
      return (.notScanned(.engineError), "no scanner could be made")
    }
    defer { yr_scanner_destroy(scanner) }
    let finding = Finding()
    yr_scanner_set_callback(scanner, noteFinding, Unmanaged.passUnretained(finding).toOpaque())
    yr_scanner_set_flags(scanner, SCAN_FLAGS_REPORT_RULES_MATCHING)
    _ = yr_scanner_define_string_variable(scanner, "filename", name)
    return withExtendedLifetime(finding) {
      switch content {
      case .file(let path):
        Self.limit(scanner, timeout)
        return Self.judge(yr_scanner_scan_file(scanner, path), finding)
      case .bytes(let bytes, let parts):
        return Self.scan(bytes, parts, scanner, finding, timeout: timeout)
      }
    }
  }

  /// One part after another with the same scanner: making one costs more than scanning a small part.
  private static func scan(
    _ bytes: [UInt8], _ parts: [Int], _ scanner: UnsafeMutablePointer<YR_SCANNER>,
    _ finding: Finding, timeout: Duration
  ) -> (outcome: ScreeningVerdict.Outcome, detail: String) {
    let end = ContinuousClock.now + timeout
    var worst: (outcome: ScreeningVerdict.Outcome, detail: String) = (.clean, "")
    // An empty array has no address; the library wants one.
    (bytes.isEmpty ? [0] : bytes).withUnsafeBufferPointer { all in
      var at = 0
      for size in parts {
        precondition(size >= 0 && size <= bytes.count - at, "parts larger than their bytes")
        finding.begin()
        Self.limit(scanner, end - .now)
        let result = yr_scanner_scan_mem(scanner, all.baseAddress! + at, size)
        at += size
        let judged = Self.judge(result, finding)
        switch judged.outcome {
        case .clean: continue
        case .infected:
          worst = judged
          return
        case .notScanned(.timedOut):
          // There is no time for the others either.
          worst = judged
          return
        case .notScanned: if worst.outcome == .clean { worst = judged }
        }
      }
      precondition(at == bytes.count, "parts smaller than their bytes")
    }
    return worst
  }

  private static func limit(_ scanner: UnsafeMutablePointer<YR_SCANNER>, _ timeout: Duration) {
    // The call takes whole seconds; the field is in nanoseconds. 0 would mean no limit.
    scanner.pointee.timeout = UInt64(max(1, timeout.nanoseconds))
  }

  private static func judge(
    _ result: Int32, _ finding: Finding
  ) -> (outcome: ScreeningVerdict.Outcome, detail: String) {
    // What was found stays found, whatever happened to the rest of the scan.
    if let signature = finding.signature { return (.infected(signature: signature), "") }
    guard result != ERROR_SCAN_TIMEOUT else { return (.notScanned(.timedOut), "") }
    guard result == ERROR_SUCCESS else {
      return (.notScanned(.engineError), "libyara's error \(result)")
    }
    guard !finding.isIncomplete else {
      return (.notScanned(.engineError), "a string of a rule matched too often to be judged")
    }
    guard finding.isFinished else {
      return (.notScanned(.engineError), "the scan ended before the end of its input")
    }
    return (.clean, "")
  }
}

/// What the callback of one scan notes. Used on the scanning thread only.
private final class Finding {
  /// First rule that matched.
  var signature: String?
  /// A string was given up: rules that need it were not judged.
  var isIncomplete = false
  var isFinished = false

  /// Before each part: what was given up or finished is said of it anew.
  func begin() {
    self.isIncomplete = false
    self.isFinished = false
  }
}

private func noteFinding(
  _ context: UnsafeMutablePointer<YR_SCAN_CONTEXT>?, _ message: Int32,
  _ data: UnsafeMutableRawPointer?, _ user: UnsafeMutableRawPointer?
) -> Int32 {
  let finding = Unmanaged<Finding>.fromOpaque(user!).takeUnretainedValue()
  switch message {
  case CALLBACK_MSG_RULE_MATCHING:
    if finding.signature == nil, let rule = data?.assumingMemoryBound(to: YR_RULE.self) {
      finding.signature = String(cString: memq_yara_rule_name(rule))
    }
  case CALLBACK_MSG_TOO_MANY_MATCHES: finding.isIncomplete = true
  case CALLBACK_MSG_SCAN_FINISHED: finding.isFinished = true
  default: break
  }
  return CALLBACK_CONTINUE
}

/// A compiler in use; freed with it.
private final class YaraCompiler {
  private let compiler: UnsafeMutablePointer<YR_COMPILER>
  private var problem: MemQError?
  private var sourceName = ""
  private var sourceLines: Int32 = 1

  init() throws(MemQError) {
    var compiler: UnsafeMutablePointer<YR_COMPILER>?
    guard yr_compiler_create(&compiler) == ERROR_SUCCESS, let compiler else {
      throw MemQError(.internalError, "libyara gives no compiler")
    }
    self.compiler = compiler
    // Rules read no files of this machine.
    yr_compiler_set_include_callback(compiler, nil, nil, nil)
    yr_compiler_define_string_variable(compiler, "filename", "")
  }

  deinit { yr_compiler_destroy(self.compiler) }

  func add(_ source: RuleFolder.Source) throws(MemQError) {
    guard !source.text.contains(0) else {
      throw MemQError(.rulesInvalid, "a rule file holds text, no zero bytes", subject: source.name)
    }
    self.sourceName = source.name
    self.sourceLines =
      1 + Int32(clamping: source.text.dropLast().count { $0 == UInt8(ascii: "\n") })
    yr_compiler_set_callback(
      self.compiler, noteProblem, Unmanaged.passUnretained(self).toOpaque())
    let text = (source.text + [0]).map { CChar(bitPattern: $0) }
    let errors = withExtendedLifetime(self) {
      yr_compiler_add_string(self.compiler, text, source.name)
    }
    if let problem = self.problem { throw problem }
    guard errors == 0 else {
      throw MemQError(.rulesInvalid, "the rules don't compile", subject: source.name)
    }
  }

  func finish() throws(MemQError) -> UnsafeMutablePointer<YR_RULES> {
    var rules: UnsafeMutablePointer<YR_RULES>?
    let result = yr_compiler_get_rules(self.compiler, &rules)
    guard result == ERROR_SUCCESS, let rules else {
      throw MemQError(.rulesInvalid, "the rules can't be put together (libyara's error \(result))")
    }
    return rules
  }

  /// The first error is the one that counts; what follows is often its consequence.
  func note(_ line: Int32, _ message: String) {
    guard self.problem == nil else { return }
    // An end that comes too early has no line; it is the last one.
    let place = line > 0 ? line : self.sourceLines
    self.problem = MemQError(.rulesInvalid, message, subject: "\(self.sourceName):\(place)")
  }
}

private func noteProblem(
  _ level: Int32, _ file: UnsafePointer<CChar>?, _ line: Int32, _ rule: UnsafePointer<YR_RULE>?,
  _ message: UnsafePointer<CChar>?, _ user: UnsafeMutableRawPointer?
) {
  guard level == YARA_ERROR_LEVEL_ERROR else { return }
  Unmanaged<YaraCompiler>.fromOpaque(user!).takeUnretainedValue()
    .note(line, message.map { String(cString: $0) } ?? "syntax error")
}
