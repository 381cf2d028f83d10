// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Hummingbird
public import Logging
public import MemQModel
public import MemQTelemetry
import NIOCore
import NIOPosix
import ServiceLifecycle

/// The admin pages over HTTP, on an address and a thread of their own: they answer while the data path is busy.
///
/// `/metrics` (Prometheus text), `/healthz` (200 while the process lives), `/readyz` (200, or 503 with what is wrong), `/`.
public final class AdminServer: Sendable {
  /// One named check; `problem` is nil when it is fine.
  public typealias Check = (check: String, problem: String?)

  /// With the port that was chosen, when the wanted one was 0.
  public let address: ListenAddress
  private let group: ServiceGroup
  private let task: Task<Void, Never>

  /// One thread for all admin pages of the process, for as long as it lives: the HTTP server still schedules work for its
  /// connections after it has ended, so its loop can't be shut down behind it.
  private static let threads = MultiThreadedEventLoopGroup(numberOfThreads: 1)

  private init(_ address: ListenAddress, _ group: ServiceGroup, _ task: Task<Void, Never>) {
    self.address = address
    self.group = group
    self.task = task
  }

  /// Listens on `address`.
  ///
  /// - Parameter readiness: asked at each `/readyz`; must not block. Empty means ready.
  /// - Throws: `.addressInUse`, `.unavailable`.
  public static func start(
    on address: ListenAddress, registry: PrometheusRegistry = Telemetry.registry, logger: Logger,
    readiness: @escaping @Sendable () -> [Check]
  ) async throws(MemQError) -> AdminServer {
    let (started, starting) = AsyncStream.makeStream(of: Result<Int, MemQError>.self)
    let app = Application(
      router: AdminPages.router(registry, readiness),
      configuration: ApplicationConfiguration(
        address: Self.bindAddress(address), serverName: "memq"),
      onServerRunning: { starting.yield(.success($0.localAddress?.port ?? 0)) },
      eventLoopGroupProvider: .shared(self.threads), logger: Self.quiet(logger))
    let group = ServiceGroup(
      configuration: ServiceGroupConfiguration(services: [app], logger: Self.quiet(logger)))
    let task = Task {
      do { try await group.run() } catch {
        // Whoever waits for the start says it; afterwards nobody does.
        guard case .terminated = starting.yield(.failure(Self.failure(error, address))) else {
          return
        }
        logger.error("Admin pages stopped", metadata: ["error": "\(error)"])
      }
    }
    for await result in started {
      switch result {
      case .success(let port):
        return AdminServer(Self.bound(address, port), group, task)
      case .failure(let error):
        await task.value
        throw error
      }
    }
    throw MemQError(.internalError, "the admin pages did not start", subject: "\(address)")
  }

  /// Listens where the configuration says, or beside `listen`.
  ///
  /// - Throws: `.configurationInvalid` when there is no place beside `listen`; as the other.
  public static func start(
    _ configuration: LoadedConfiguration, beside listen: ListenAddress, logger: Logger,
    readiness: @escaping @Sendable () -> [Check]
  ) async throws(MemQError) -> AdminServer {
    let given = configuration.optionalAddress("admin.listen")
    let address = if let given { given } else { try listen.adminAddress() }
    return try await self.start(on: address, logger: logger, readiness: readiness)
  }

  /// Finishes the requests in flight, until the deadline, and closes the port.
  public func stop(deadline: Duration = .seconds(1)) async {
    await self.group.triggerGracefulShutdown()
    let hurry = Task {
      // A request that hangs is broken off.
      guard (try? await Task.sleep(for: deadline)) != nil else { return }
      self.task.cancel()
    }
    await self.task.value
    hurry.cancel()
  }

  private static func bindAddress(_ address: ListenAddress) -> BindAddress {
    switch address {
    case .tcp(let host, let port): .hostname(host, port: port)
    case .unix(let path): .unixDomainSocket(path: path)
    }
  }

  private static func bound(_ address: ListenAddress, _ port: Int) -> ListenAddress {
    switch address {
    case .tcp(let host, _): .tcp(host: host, port: port)
    case .unix: address
    }
  }

  private static func failure(_ error: any Error, _ address: ListenAddress) -> MemQError {
    guard let error = error as? IOError else {
      return MemQError(.unavailable, "cannot listen: \(error)", subject: address.description)
    }
    return PortReservation.refused(address, error.errnoCode)
  }

  /// The HTTP server's own lines are of use only when something is wrong with it.
  private static func quiet(_ logger: Logger) -> Logger {
    var logger = logger
    logger.logLevel = max(logger.logLevel, .warning)
    return logger
  }
}
