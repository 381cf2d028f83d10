// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
public import MemQModel
import MemQScreening
import MemQSystem
import Synchronization

/// YARA in this process: a fixed number of scans at a time on threads of its own.
///
/// Rules are the built-in ones and those of a folder. A changed folder is compiled beside the rules in use and takes
/// their place only when all of it compiles. Any rule that matches is a finding; its name is the signature.
public final class YaraEngine: ScanEngine {
  public struct Configuration: Hashable, Sendable {
    /// Folder of `*.yar` and `*.yara` files; nil: only the built-in rules.
    public var rulesFolder: String?
    /// Scans at a time.
    public var threads = 2
    public init() {}
  }

  private struct State {
    var rules: YaraRules
    var fingerprint: [UInt8]
    /// Why the newest rules are not in use.
    var problem = ""
  }

  private let configuration: Configuration
  private let logger: Logger
  private let threads: DiskThreads
  /// Compiling must not wait for scans.
  private let compileThread: DiskThreads
  private let state: Mutex<State>

  /// Compiles the rules.
  ///
  /// - Throws: `.rulesInvalid` with file and line.
  public static func start(
    _ configuration: Configuration, logger: Logger
  ) async throws(MemQError) -> YaraEngine {
    let compileThread = DiskThreads(name: "yara-rules", count: 1, queueMax: 16)
    do throws(MemQError) {
      let (rules, fingerprint) = try await compileThread.run { () throws(MemQError) in
        try Self.load(configuration.rulesFolder)
      }
      return YaraEngine(
        configuration, State(rules: rules, fingerprint: fingerprint), compileThread, logger)
    } catch {
      compileThread.stop()
      throw error
    }
  }

  private init(
    _ configuration: Configuration, _ state: sending State, _ compileThread: DiskThreads,
    _ logger: Logger
  ) {
    self.configuration = configuration
    self.logger = logger
    self.threads = DiskThreads(name: "yara", count: configuration.threads)
    self.compileThread = compileThread
    self.state = Mutex(state)
  }

  /// Blocking.
  private static func load(
    _ folder: String?
  ) throws(MemQError) -> (rules: YaraRules, fingerprint: [UInt8]) {
    var sources = [RuleFolder.Source(name: BuiltInRules.name, text: Array(BuiltInRules.text.utf8))]
    var fingerprint: [UInt8] = []
    if let folder = folder.map({ RuleFolder(path: $0) }) {
      // Taken before the files are read: a change in between shows at the next look.
      fingerprint = try folder.fingerprint()
      sources += try folder.sources()
    }
    return (try YaraRules(sources), fingerprint)
  }

  public var status: EngineStatus {
    self.state.withLock {
      EngineStatus(
        name: YaraRules.engineName, databaseVersion: $0.rules.digest, rules: $0.rules.ruleCount,
        isReady: true, problem: $0.problem)
    }
  }

  /// Looks at the folder and takes new rules into use when it changed and they compile.
  ///
  /// - Returns: true when other rules are in use now.
  @discardableResult
  public func reloadIfChanged() async -> Bool {
    guard let path = self.configuration.rulesFolder else { return false }
    let known = self.state.withLock { $0.fingerprint }
    do throws(MemQError) {
      let loaded = try await self.compileThread.run {
        () throws(MemQError) -> (rules: YaraRules, fingerprint: [UInt8])? in
        let now = try RuleFolder(path: path).fingerprint()
        return now == known ? nil : try Self.load(path)
      }
      guard let loaded else { return false }
      return self.use(loaded.rules, loaded.fingerprint)
    } catch {
      self.keepOld(because: error)
      return false
    }
  }

  private func use(_ rules: YaraRules, _ fingerprint: [UInt8]) -> Bool {
    let isOther = self.state.withLock { state in
      let isOther = state.rules.digest != rules.digest
      state = State(rules: rules, fingerprint: fingerprint)
      return isOther
    }
    if isOther {
      self.logger.notice(
        "Scan rules changed",
        metadata: ["rules.digest": "\(rules.digest)", "rules.count": "\(rules.ruleCount)"])
    }
    return isOther
  }

  private func keepOld(because error: MemQError) {
    let isNews = self.state.withLock { state in
      defer { state.problem = "\(error)" }
      return state.problem != "\(error)"
    }
    guard isNews else { return }
    self.logger.error(
      "New scan rules can't be used; the old ones stay", metadata: ["error": "\(error)"])
  }

  public func scan(
    bytes: [UInt8], parts: [Int], name: String, timeout: Duration
  ) async -> EngineAnswer {
    await self.scan(.bytes(bytes, parts: parts), name, timeout)
  }

  public func scan(file path: String, name: String, timeout: Duration) async -> EngineAnswer {
    await self.scan(.file(path), name, timeout)
  }

  private func scan(
    _ content: YaraRules.Content, _ name: String, _ timeout: Duration
  ) async -> EngineAnswer {
    let rules = self.state.withLock { $0.rules }
    do throws(MemQError) {
      return try await self.threads.run { () throws(MemQError) in
        let start = ContinuousClock.now
        let (outcome, detail) = rules.scan(content, name: name, timeout: timeout)
        return EngineAnswer(
          outcome, engine: YaraRules.engineName, databaseVersion: rules.digest, detail: detail,
          duration: .now - start)
      }
    } catch {
      return EngineAnswer(
        .notScanned(.engineError), engine: YaraRules.engineName, databaseVersion: rules.digest,
        detail: "\(error)")
    }
  }

  /// Waits for the scans that run until the deadline. Their threads end by themselves after it: a scan looks at its own
  /// time, and nothing it does outlasts the process.
  public func close(deadline: Duration) async {
    let pools = [self.threads, self.compileThread]
    let once = CloseOnce()
    await withCheckedContinuation { (done: CheckedContinuation<Void, Never>) in
      once.set(done)
      _ = OwnThread(name: "yara-close") {
        for pool in pools { pool.stop() }
        once.finish()
      }
      Task {
        try? await Task.sleep(for: deadline)
        once.finish()
      }
    }
  }
}

/// Wakes who waits for the end once, whoever comes first.
private final class CloseOnce: Sendable {
  private let waiter = Mutex<CheckedContinuation<Void, Never>?>(nil)

  func set(_ continuation: CheckedContinuation<Void, Never>) {
    self.waiter.withLock { $0 = continuation }
  }

  func finish() {
    let waiter = self.waiter.withLock { waiter in
      defer { waiter = nil }
      return waiter
    }
    waiter?.resume()
  }
}
