// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
public import Logging
public import MemQModel
public import MemQScreening
import Synchronization

/// libyara in this process: the built-in EICAR rule and the rules of a folder (`*.yar`, `*.yara`).
public final class YaraEngine: ScanEngine {
  /// One rule file. 16 MiB: the largest public rule sets stay below.
  public static let ruleFileBytesMax = 16 << 20
  /// Rule files of a folder.
  public static let ruleFilesMax = 10_000

  private struct State {
    var rules: YaraRules
    var sources: [RuleSource]
    var problem: String?
  }

  private let folder: String?
  private let logger: Logger
  private let state: Mutex<State>

  /// Blocks while it reads and compiles.
  ///
  /// - Parameter folder: read now and at each `reload`; a folder that is missing holds no rules.
  /// - Throws: `.rulesInvalid` naming file and line: a scanner never starts with less than it was told to use.
  public init(folder: String?, logger: Logger) throws(MemQError) {
    self.folder = folder
    self.logger = logger
    let sources = try Self.sources(in: folder)
    self.state = Mutex(State(rules: try YaraRules(compiling: sources), sources: sources))
  }

  public var identity: EngineIdentity {
    self.state.withLock { state in
      EngineIdentity(
        name: "yara \(Yara.version)", databaseVersion: state.rules.digest,
        ruleCount: state.rules.ruleCount, problem: state.problem)
    }
  }

  /// Takes changed rules into use; when they do not compile, the old ones stay and `identity.problem` says why. Blocks.
  ///
  /// - Returns: whether other rules are in use now.
  @discardableResult
  public func reload() -> Bool {
    do {
      let sources = try Self.sources(in: self.folder)
      guard self.state.withLock({ $0.sources != sources || $0.problem != nil }) else { return false }
      let rules = try YaraRules(compiling: sources)
      self.state.withLock { $0 = State(rules: rules, sources: sources) }
      self.logger.notice(
        "Scan rules loaded",
        metadata: ["rules": "\(rules.ruleCount)", "database.version": "\(rules.digest)"])
      return true
    } catch {
      let isNew = self.state.withLock { state in
        defer { state.problem = error.description }
        return state.problem != error.description
      }
      if isNew {
        self.logger.warning(
          "Scan rules do not load; the old ones stay in use", metadata: ["error": "\(error)"])
      }
      return false
    }
  }

  public func scan(_ bytes: UnsafeRawBufferPointer, timeout: Duration) -> Finding {
    self.state.withLock { $0.rules }.scan(bytes, seconds: Self.seconds(timeout))
  }

  public func scan(file path: String, timeout: Duration) -> Finding {
    self.state.withLock { $0.rules }.scan(file: path, seconds: Self.seconds(timeout))
  }

  /// libyara counts whole seconds, and 0 means for ever.
  private static func seconds(_ timeout: Duration) -> Int32 {
    Int32(clamping: max(1, (timeout.milliseconds + 999) / 1_000))
  }

  /// The built-in rule, then the folder's files by name.
  private static func sources(in folder: String?) throws(MemQError) -> [RuleSource] {
    guard let folder, let names = try self.ruleFiles(in: folder) else { return [.eicar] }
    var sources = [RuleSource.eicar]
    for name in names {
      sources.append(RuleSource(name: name, text: try Self.text(of: "\(folder)/\(name)")))
    }
    return sources
  }

  private static func ruleFiles(in folder: String) throws(MemQError) -> [String]? {
    guard let stream = opendir(folder) else {
      guard errno == ENOENT else {
        throw MemQError(.rulesInvalid, String(cString: strerror(errno)), subject: folder)
      }
      return nil
    }
    defer { closedir(stream) }
    var names: [String] = []
    while let entry = readdir(stream) {
      let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
        String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
      }
      if name.hasSuffix(".yar") || name.hasSuffix(".yara") { names.append(name) }
    }
    guard names.count <= Self.ruleFilesMax else {
      throw MemQError(
        .rulesInvalid, "too many rule files", subject: folder, limit: Int64(Self.ruleFilesMax),
        actual: Int64(names.count))
    }
    return names.sorted()
  }

  private static func text(of path: String) throws(MemQError) -> String {
    func failed(_ what: String) -> MemQError { MemQError(.rulesInvalid, what, subject: path) }
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw failed(String(cString: strerror(errno))) }
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let count = read(descriptor, &chunk, chunk.count)
      guard count >= 0 else { throw failed(String(cString: strerror(errno))) }
      guard count > 0 else { break }
      bytes += chunk[..<count]
      guard bytes.count <= Self.ruleFileBytesMax else {
        throw MemQError(
          .rulesInvalid, "the rule file is too large", subject: path,
          limit: Int64(Self.ruleFileBytesMax), actual: Int64(bytes.count))
      }
    }
    guard let text = String(validating: bytes, as: UTF8.self), !bytes.contains(0) else {
      throw failed("the rule file is not UTF-8 text")
    }
    return text
  }
}
