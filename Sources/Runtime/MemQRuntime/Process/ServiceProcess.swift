// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Dispatch
import Glibc
import Logging
public import MemQModel
import MemQSystem
import MemQTelemetry
import NIOCore
import NIOPosix
import ServiceLifecycle
import Synchronization
import UnixSignals

/// The life of a process: configuration, logs and metrics, one body, signals, exit status.
///
/// Exit status 0: ended as told; 1: could not start or not end, or can't go on; 2: the configuration is wrong. SIGTERM and SIGINT drain
/// and end within `hardLimit`; a second one ends at once. SIGHUP reads the configuration anew.
public enum ServiceProcess {
  /// From the signal to the end, whatever hangs. Process supervisors commonly kill after 10 s.
  static let hardLimit: Duration = .milliseconds(9_500)

  /// The first thing a program of ours does, before anything waits: only then there is no thread but the first, and to start once
  /// more does not look like the end of the process to those who watch it.
  public static func begin() { MemoryAllocator.keepFreedPieces() }

  /// Runs until told to stop.
  ///
  /// - Parameters:
  ///   - service: names the process in logs and metrics: "ingest", "serve".
  ///   - arguments: without the program's name.
  ///   - makeBody: puts the body together; anything slow belongs in its `start`.
  /// - Returns: the exit status.
  public static func main(
    _ table: ConfigurationTable, service: String, arguments: [String],
    environment: [String: String] = ConfigurationLoader.processEnvironment,
    makeBody: @escaping @Sendable (ProcessContext) throws(MemQError) -> any ProcessBody
  ) async -> Int32 {
    let loader = ConfigurationLoader(table, arguments: arguments, environment: environment)
    switch loader.command {
    case .help:
      print(table.helpText, terminator: "")
      return 0
    case .version:
      print("\(table.program) \(BuildInfo.version) (\(BuildInfo.configuration))")
      return 0
    case .check, .print, .run: break
    }
    let configuration: LoadedConfiguration
    do {
      configuration = try loader.load()
    } catch {
      for problem in error.problems { self.complain(table, problem) }
      return 2
    }
    switch loader.command {
    case .check:
      for warning in configuration.warnings { self.complain(table, warning) }
      print("The configuration is right.")
      return 0
    case .print:
      for warning in configuration.warnings { self.complain(table, warning) }
      print(configuration.printout, terminator: "")
      return 0
    case .help, .version, .run:
      return await self.run(loader, configuration, service, makeBody)
    }
  }

  private static func complain(_ table: ConfigurationTable, _ what: some CustomStringConvertible) {
    StandardErrorSink().write("\(table.program): \(what)\n")
  }

  private static func run(
    _ loader: ConfigurationLoader, _ configuration: LoadedConfiguration, _ service: String,
    _ makeBody: @Sendable (ProcessContext) throws(MemQError) -> any ProcessBody
  ) async -> Int32 {
    self.prepareProcess(configuration, service)
    let logger = Logger(label: "memq.\(service)")
    for warning in configuration.warnings {
      logger.warning("Configuration", metadata: ["warning": "\(warning)"])
    }
    let context = ProcessContext(
      configuration: configuration, loops: MultiThreadedEventLoopGroup.singleton, logger: logger)
    let body: any ProcessBody
    do throws(MemQError) {
      body = try makeBody(context)
    } catch {
      self.complain(loader.table, error)
      return error.code == .configurationInvalid ? 2 : 1
    }
    let life = BodyLife(body, drainTimeout: configuration.duration("drain.timeout"), logger: logger)
    let group = ServiceGroup(
      configuration: ServiceGroupConfiguration(services: [life], logger: self.quiet(logger)))
    let signals = await UnixSignalsSequence(trapping: [.sigterm, .sigint, .sighup])
    let listener = Task { await self.listen(to: signals, group, loader, configuration, logger) }
    defer { listener.cancel() }
    let watcher = Task { await self.endOnFailure(context.failure, group, logger) }
    defer { watcher.cancel() }
    // The outcome is the body's; what the group itself says of it is said there, too.
    try? await group.run()
    guard let failure = life.failure ?? context.failure.error else {
      logger.info("Stopped")
      return 0
    }
    self.complain(loader.table, failure)
    return failure.code == .configurationInvalid ? 2 : 1
  }

  /// What the whole process needs, before anything runs.
  private static func prepareProcess(_ configuration: LoadedConfiguration, _ service: String) {
    MemoryAllocator.keepFreedMemory()
    // A peer that goes away is an error of its socket, not the end of us.
    signal(SIGPIPE, SIG_IGN)
    var files = rlimit()
    if getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &files) == 0 {
      files.rlim_cur = files.rlim_max
      setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &files)
    }
    if let threads = configuration.optionalInteger("threads") {
      NIOSingletons.groupLoopCountSuggestion = threads
    }
    Telemetry.bootstrap(
      service: service, level: Logger.Level(rawValue: configuration.text("log.level")) ?? .info,
      format: LogFormat(rawValue: configuration.text("log.format")) ?? .text)
  }

  private static func quiet(_ logger: Logger) -> Logger {
    var logger = logger
    logger.logLevel = max(logger.logLevel, .warning)
    return logger
  }

  // MARK: Signals

  private static func listen(
    to signals: UnixSignalsSequence, _ group: ServiceGroup, _ loader: ConfigurationLoader,
    _ configuration: LoadedConfiguration, _ logger: Logger
  ) async {
    var current = configuration
    var isStopping = false
    for await signal in signals {
      if signal == .sighup {
        current = self.reload(loader, current, logger)
        continue
      }
      if isStopping {
        logger.warning("Second signal: ending at once", metadata: ["signal": "\(signal)"])
        _exit(1)
      }
      isStopping = true
      logger.info("Stopping", metadata: ["signal": "\(signal)"])
      self.endAtHardLimit(logger)
      await group.triggerGracefulShutdown()
    }
  }

  /// A part is of no use any more: what still works ends as if told to.
  private static func endOnFailure(
    _ failure: ProcessFailure, _ group: ServiceGroup, _ logger: Logger
  ) async {
    await failure.wait()
    guard let error = failure.error, !Task.isCancelled else { return }
    logger.critical("Can't go on; the process ends", metadata: ["error": "\(error)"])
    self.endAtHardLimit(logger)
    await group.triggerGracefulShutdown()
  }

  /// On a queue of its own: it must also end a process whose other threads all hang.
  private static func endAtHardLimit(_ logger: Logger) {
    DispatchQueue(label: "memq.hard-limit").asyncAfter(
      deadline: .now() + .milliseconds(Int(self.hardLimit.milliseconds))
    ) {
      logger.error(
        "Could not stop in time; what was acknowledged is durable",
        metadata: ["limit.ms": "\(self.hardLimit.milliseconds)"])
      _exit(1)
    }
  }

  /// Takes over what may change while the process runs, and says what may not.
  private static func reload(
    _ loader: ConfigurationLoader, _ old: LoadedConfiguration, _ logger: Logger
  ) -> LoadedConfiguration {
    let new: LoadedConfiguration
    do {
      new = try loader.load()
    } catch {
      for problem in error.problems {
        logger.error(
          "Kept the configuration; the new one is wrong", metadata: ["problem": "\(problem)"])
      }
      return old
    }
    for (was, now) in zip(old.entries, new.entries) where was.value != now.value {
      logger.notice(
        now.key.reload == .live
          ? "Configuration changed" : "Configuration changes at the next start",
        metadata: ["key": "\(now.key.name)", "value": "\(now.value ?? "")"])
    }
    Telemetry.logs.level = Logger.Level(rawValue: new.text("log.level")) ?? Telemetry.logs.level
    Telemetry.logs.format = LogFormat(rawValue: new.text("log.format")) ?? Telemetry.logs.format
    return new
  }
}

/// A body as a service of swift-service-lifecycle.
private final class BodyLife: Service {
  private let body: any ProcessBody
  private let drainTimeout: Duration
  private let logger: Logger
  private let outcome = Mutex<MemQError?>(nil)

  init(_ body: any ProcessBody, drainTimeout: Duration, logger: Logger) {
    self.body = body
    self.drainTimeout = drainTimeout
    self.logger = logger
  }

  /// Why the body did not start; nil when it did, or was told to stop before it had.
  var failure: MemQError? { self.outcome.withLock { $0 } }

  func run() async throws {
    let isStopping = Atomic<Bool>(false)
    let started: Result<Void, MemQError> = await withGracefulShutdownHandler {
      await self.start(isStopping)
    } onGracefulShutdown: {
      isStopping.store(true, ordering: .relaxed)
    }
    if case .failure(let error) = started {
      if !isStopping.load(ordering: .relaxed) { self.outcome.withLock { $0 = error } }
      return
    }
    try? await gracefulShutdown()
    await self.body.stop(deadline: self.drainTimeout)
  }

  private func start(_ isStopping: borrowing Atomic<Bool>) async -> Result<Void, MemQError> {
    do {
      try await cancelWhenGracefulShutdown { try await self.body.start() }
      return .success(())
    } catch {
      return .failure((error as? MemQError) ?? MemQError(.cancelled, "stopped while starting"))
    }
  }
}
