// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
import MemQAPI
import MemQEngines
import MemQMetadata
public import MemQModel
import MemQObjectStore
public import MemQRPC
public import MemQRuntime
import MemQScreening
public import MemQSystem
import NIOCore
import NIOPosix
import Synchronization

/// Bytes in, verdict out. Never calls clean what it did not read whole.
public final class ScannerNode: Sendable {
  public let configuration: Configuration
  let cluster: ClusterSession
  let clock: any MemQClock
  let logger: Logger
  let desk: ScanDesk
  let threads: NIOThreadPool
  let tally = ScanTally()
  private let entropy: any Entropy = SystemEntropy()
  private let health = HealthService(server: .notServing)
  private let running = Mutex<Running?>(nil)
  private let draining = Atomic<Bool>(false)

  struct Running: Sendable {
    let store: any ObjectStore
    let engine: YaraEngine
    let reload: Task<Void, Never>
  }

  /// - Throws: `.configurationInvalid`.
  public init(
    configuration: Configuration, cluster: ClusterSession, pool: ChannelPool,
    clock: any MemQClock, logger: Logger
  ) throws(MemQError) {
    try configuration.validate()
    self.configuration = configuration
    self.cluster = cluster
    self.clock = clock
    self.logger = logger
    self.threads = NIOThreadPool(numberOfThreads: configuration.scansMax)
    self.desk = ScanDesk(
      .init(
        runningMax: configuration.scansMax, waitingMax: configuration.queueMax,
        scratchBytesMax: configuration.scratchBytesMax,
        memoryBytesMax: configuration.memoryBytesMax))
  }

  // MARK: Life

  /// Compiles the rules, empties the scratch folder, opens the object store.
  ///
  /// - Throws: `.rulesInvalid` naming file and line, what the object store throws.
  public func start() async throws(MemQError) {
    self.threads.start()
    let folder = self.configuration.scratchFolder
    try await self.onThread { () throws(MemQError) in try ScratchFile.prepare(folder: folder) }
    var rules = YaraEngine.Configuration()
    rules.rulesFolder = self.configuration.rulesFolder
    rules.threads = self.configuration.scansMax
    let engine = try await YaraEngine.start(rules, logger: self.logger)
    let store = try await ObjectStores.make(
      self.configuration.objects, clock: self.clock, logger: self.logger)
    let interval = self.configuration.rulesReloadInterval
    let reload = Task {
      while !Task.isCancelled {
        try? await Task.sleep(for: interval)
        if Task.isCancelled { return }
        await engine.reloadIfChanged()
      }
    }
    self.running.withLock { $0 = Running(store: store, engine: engine, reload: reload) }
    self.health.set("", .serving)
    self.cluster.setState(.ready)
    self.logger.info(
      "Scanner ready",
      metadata: [
        "engine": "\(engine.status.name)", "rules": "\(engine.status.rules)",
        "store": "\(store.name)",
      ])
  }

  /// For /readyz: what must hold, and why it does not.
  public var readiness: [(check: String, problem: String?)] {
    guard let running = self.running.withLock({ $0 }) else {
      return [("engines", "the scanner has not started")]
    }
    let engine = running.engine.status
    return [
      ("engines", engine.isReady ? nil : engine.problem),
      // The old rules go on judging; somebody must look at the new ones.
      ("rules", engine.isReady && !engine.problem.isEmpty ? engine.problem : nil),
      ("draining", self.draining.load(ordering: .relaxed) ? "shutting down" : nil),
    ]
  }

  /// Refuses new scans, lets running ones end until the deadline.
  public func drain(deadline: Duration) async {
    self.draining.store(true, ordering: .relaxed)
    self.cluster.setState(.draining)
    self.health.set("", .notServing)
    let end = self.clock.monotonic + deadline
    while self.desk.counts.running + self.desk.counts.waiting > 0, self.clock.monotonic < end {
      try? await Task.sleep(for: .milliseconds(20))
    }
    let running = self.running.withLock { running in
      defer { running = nil }
      return running
    }
    running?.reload.cancel()
    // A scan that goes on has its threads end by themselves: nobody waits for its answer any more.
    await running?.engine.close(deadline: max(end - self.clock.monotonic, .milliseconds(200)))
    await running?.store.close()
    try? await self.threads.shutdownGracefully()
  }

  // MARK: Scans

  /// - Throws: `.shuttingDown`, `.unavailable` before the start.
  func whileRunning() throws(MemQError) -> Running {
    guard !self.draining.load(ordering: .relaxed) else {
      throw MemQError(.shuttingDown, "this scanner is shutting down; go to another one")
    }
    guard let running = self.running.withLock({ $0 }) else {
      throw MemQError(.unavailable, "the scanner starts")
    }
    return running
  }

  /// - Parameter parts: sizes that add up to the content; each part is judged by itself.
  func scan(
    _ content: RPCMessage, parts: [Int], name: String
  ) async throws(MemQError) -> ScreeningVerdict {
    let running = try self.whileRunning()
    let timeout = self.configuration.scanTimeout
    let byteCount = Int64(content.byteCount)
    let admitted = try await self.desk.with(memoryBytes: byteCount) { () async throws(MemQError) in
      // The copy is made by those alone that run.
      let (bytes, digest) = try await self.onThread {
        let bytes = Array(buffer: content.contiguous())
        return (bytes, SHA256.digest(of: bytes))
      }
      let answer = await running.engine.scan(
        bytes: bytes, parts: parts, name: name, timeout: timeout)
      return self.verdict(answer, sha256: digest, byteCount: byteCount, name: name)
    }
    return self.verdict(of: admitted, running, name)
  }

  /// Fetches the body to scratch disk, compares its digest with what was put, and scans the file whole.
  func scan(_ request: BodyScan) async throws(MemQError) -> ScreeningVerdict {
    let running = try self.whileRunning()
    guard request.byteCount <= request.byteCountMax else {
      return self.verdict(of: .tooLarge, running, request.name)
    }
    let admitted = try await self.desk.with(scratchBytes: request.byteCount) {
      () async throws(MemQError) in
      let folder = self.configuration.scratchFolder
      let fileName =
        "scan-" + UniqueID(random: self.entropy.next(), self.entropy.next()).description
      let file = try await self.onThread { () throws(MemQError) in
        try ScratchFile(folder: folder, name: fileName)
      }
      let result = await self.judge(file, request, running)
      _ = try? await self.threads.runIfActive { file.remove() }
      return self.verdict(
        try result.get(), sha256: request.sha256, byteCount: request.byteCount, name: request.name)
    }
    return self.verdict(of: admitted, running, request.name)
  }

  private func judge(
    _ file: ScratchFile, _ request: BodyScan, _ running: Running
  ) async -> Result<EngineAnswer, MemQError> {
    do throws(MemQError) {
      try await self.fetch(request, into: file, from: running.store)
      let answer = await running.engine.scan(
        file: file.path, name: request.name, timeout: self.configuration.scanTimeout)
      return .success(answer)
    } catch {
      return .failure(error)
    }
  }

  /// - Throws: `.objectNotFound`, `.digestMismatch` when other bytes stand under the key than were put.
  private func fetch(
    _ request: BodyScan, into file: ScratchFile, from store: any ObjectStore
  ) async throws(MemQError) {
    let head = try await store.head(request.key, timeout: .seconds(30))
    guard head.byteCount == request.byteCount else {
      throw MemQError(
        .digestMismatch, "the body has another size than was put", subject: request.key.text,
        limit: request.byteCount, actual: head.byteCount)
    }
    var position: Int64 = 0
    while position < request.byteCount {
      // 4 MiB: a few requests per second at disk speed, little memory.
      let end = min(position + (4 << 20), request.byteCount)
      let piece = try await store.get(request.key, range: position..<end, timeout: .seconds(30))
      try await self.onThread { () throws(MemQError) in try file.write(piece) }
      position = end
    }
    let digest = try await self.onThread { file.finish() }
    guard digest == request.sha256 else {
      throw MemQError(
        .digestMismatch,
        "the body's SHA-256 is \(hexText(digest)), \(hexText(request.sha256)) was put",
        subject: request.key.text)
    }
  }

  private func verdict(
    of admitted: ScanDesk.Admitted<ScreeningVerdict>, _ running: Running, _ name: String
  ) -> ScreeningVerdict {
    switch admitted {
    case .done(let verdict): return verdict
    case .tooLarge:
      let engine = running.engine.status
      let answer = EngineAnswer(
        .notScanned(.tooLarge), engine: engine.name, databaseVersion: engine.databaseVersion)
      return self.verdict(answer, sha256: [], byteCount: 0, name: name)
    }
  }

  private func verdict(
    _ answer: EngineAnswer, sha256: [UInt8], byteCount: Int64, name: String
  ) -> ScreeningVerdict {
    let verdict = ScreeningVerdict(
      answer.outcome, engine: answer.engine, databaseVersion: answer.databaseVersion,
      sha256: sha256, duration: answer.duration)
    self.tally.add(verdict, byteCount: byteCount)
    switch answer.outcome {
    case .clean: break
    case .infected(let signature):
      self.logger.notice(
        "Malware found",
        metadata: ["name": "\(name)", "signature": "\(signature)", "sha256": "\(hexText(sha256))"])
    case .notScanned(let reason):
      self.logger.warning(
        "Not scanned",
        metadata: [
          "name": "\(name)", "reason": "\(reason.rawValue)", "engine.detail": "\(answer.detail)",
        ])
    }
    return verdict
  }

  /// Runs blocking work on the scanner's threads.
  func onThread<Value: Sendable>(
    _ body: @escaping @Sendable () throws(MemQError) -> Value
  ) async throws(MemQError) -> Value {
    let result: Result<Value, MemQError>
    do {
      result = try await self.threads.runIfActive {
        do throws(MemQError) { return .success(try body()) } catch { return .failure(error) }
      }
    } catch {
      throw MemQError(.shuttingDown, "this scanner is shutting down; go to another one")
    }
    return try result.get()
  }

  // MARK: Routes

  public func register(on router: inout RPCRouter) {
    self.registerScans(on: &router)
    self.registerQuarantine(on: &router)
  }

  /// gRPC health of a process that runs the scanner alone.
  public func registerHealth(on router: inout RPCRouter) { self.health.register(on: &router) }
}

/// A body to judge.
struct BodyScan: Sendable {
  var key: ObjectKey
  var byteCount: Int64
  var byteCountMax: Int64
  var name: String
  var sha256: [UInt8]
}
