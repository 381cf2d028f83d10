// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
public import Logging
public import MemQModel
import NIOPosix
import NIOSSL
import Synchronization

/// TLS of servers, or of clients: certificates, key and trusted roots from files, read again when they change.
///
/// New connections use what was read last; old ones go on with what they began with. Files that cannot be used leave everything
/// as it was. Give one object to all servers, or channels, with the same files.
public final class RPCTLS: Sendable {
  private enum Source {
    case server(RPCServerTLSFiles)
    case client(RPCClientTLSFiles)
  }

  private struct State {
    var material: TLSMaterial
    /// Why the files as they are cannot be used; nil: they are in use.
    var trouble: MemQError?
    var troubleWasTold = false
    var suppressedFailures = 0
    var lastFailureLogged: ContinuousClock.Instant?
  }

  /// How long a handshake may take. A server counts it from accepting the connection, and HTTP/2's preface with it.
  public static let handshakeTimeout: Duration = .seconds(10)

  private let source: Source
  private let logger: Logger
  private let observer: (any RPCTLSObserver)?
  private let state: Mutex<State>
  private let poll = Mutex<Task<Void, Never>?>(nil)

  /// Reads the files of a server. Blocks for the disk.
  ///
  /// - Parameter reloadInterval: how often the files are looked at; nil: only `reload()` does.
  /// - Throws: `.configurationInvalid` naming the file, when one is missing, is no PEM, or the key does not fit.
  public convenience init(
    server files: RPCServerTLSFiles, reloadInterval: Duration? = .seconds(10),
    observer: (any RPCTLSObserver)? = nil, logger: Logger
  ) throws(MemQError) {
    try self.init(.server(files), reloadInterval, observer, logger)
  }

  /// Reads the files of a client. Blocks for the disk. Parameters and errors as for a server.
  public convenience init(
    client files: RPCClientTLSFiles, reloadInterval: Duration? = .seconds(10),
    observer: (any RPCTLSObserver)? = nil, logger: Logger
  ) throws(MemQError) {
    try self.init(.client(files), reloadInterval, observer, logger)
  }

  private init(
    _ source: Source, _ interval: Duration?, _ observer: (any RPCTLSObserver)?, _ logger: Logger
  ) throws(MemQError) {
    self.source = source
    self.logger = logger
    self.observer = observer
    let material = try TLSMaterial(Self.read(source))
    self.state = Mutex(State(material: material))
    observer?.certificateInUse(expirySeconds: material.expirySeconds)
    if let problem = material.validityProblem(at: time(nil)) {
      logger.warning("The certificate in use is not valid", metadata: ["problem": "\(problem)"])
    }
    if let interval { self.startPoll(interval) }
  }

  deinit {
    self.poll.withLock { $0 }?.cancel()
  }

  private static func read(_ source: Source) throws(MemQError) -> TLSFileContents {
    switch source {
    case .server(let files): try TLSFileContents(files)
    case .client(let files): try TLSFileContents(files)
    }
  }

  var context: NIOSSLContext { self.state.withLock { $0.material.context } }

  /// The name a server's certificate must have, when it is not the target's host.
  var serverName: String? {
    if case .client(let files) = self.source { return files.serverName }
    return nil
  }

  var versionMin: RPCTLSVersion {
    switch self.source {
    case .server(let files): files.versionMin
    case .client(let files): files.versionMin
    }
  }

  /// Whether a client certificate is shown when asked for.
  var hasCertificate: Bool { self.state.withLock { $0.material.expirySeconds != nil } }

  /// When the certificate in use ends, in seconds since 1970; nil: there is none of our own.
  public var expirySeconds: Int64? { self.state.withLock { $0.material.expirySeconds } }

  // MARK: Reload

  /// Reads the files again. Blocks for the disk.
  ///
  /// - Returns: whether they had changed.
  /// - Throws: `.configurationInvalid` naming the file; what was in use stays.
  @discardableResult
  public func reload() throws(MemQError) -> Bool {
    do throws(MemQError) {
      let hasChanged = try self.load()
      self.state.withLock { $0.trouble = nil }
      return hasChanged
    } catch {
      self.tell(error)
      throw error
    }
  }

  private func load() throws(MemQError) -> Bool {
    let contents = try Self.read(self.source)
    if self.state.withLock({ $0.material.contents == contents }) { return false }
    let material = try TLSMaterial(contents)
    self.state.withLock { $0.material = material }
    self.logger.notice(
      "New TLS files are in use", metadata: ["certificate": "\(material.description)"])
    self.observer?.certificateInUse(expirySeconds: material.expirySeconds)
    if let problem = material.validityProblem(at: time(nil)) {
      self.logger.error("The new certificate is not valid", metadata: ["problem": "\(problem)"])
    }
    return true
  }

  private func tell(_ error: MemQError) {
    self.state.withLock { state in
      state.trouble = error
      state.troubleWasTold = true
    }
    self.logger.error(
      "The new TLS files cannot be used; the old ones stay", metadata: ["error": "\(error)"])
    self.observer?.reloadFailed()
  }

  private func startPoll(_ interval: Duration) {
    let task = Task { [weak self] in
      while true {
        try? await Task.sleep(for: interval)
        guard !Task.isCancelled, let self else { return }
        // Disk work stays off the threads that Swift's tasks share.
        try? await NIOThreadPool.singleton.runIfActive { self.look() }
      }
    }
    self.poll.withLock { $0 = task }
  }

  /// A certificate and its key are two files: whoever replaces them has until the next look before trouble is told.
  private func look() {
    do throws(MemQError) {
      _ = try self.load()
      self.state.withLock { $0.trouble = nil }
    } catch {
      let isNews = self.state.withLock { state in
        guard state.trouble == error else {
          state.trouble = error
          state.troubleWasTold = false
          return false
        }
        return !state.troubleWasTold
      }
      if isNews { self.tell(error) }
    }
  }

  // MARK: Handshakes that fail

  /// One line a second at most: whoever knocks often must not fill the log.
  func noteFailure(peer: String, _ reason: String) {
    self.observer?.handshakeFailed()
    let now = ContinuousClock.now
    let suppressed = self.state.withLock { state -> Int? in
      if let last = state.lastFailureLogged, now - last < .seconds(1) {
        state.suppressedFailures += 1
        return nil
      }
      state.lastFailureLogged = now
      defer { state.suppressedFailures = 0 }
      return state.suppressedFailures
    }
    let level: Logger.Level = suppressed == nil ? .debug : .warning
    self.logger.log(
      level: level, "TLS handshake failed",
      metadata: [
        "peer": "\(peer)", "reason": "\(reason)", "others.since": "\(suppressed ?? 0)",
      ])
  }
}
