// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
public import NIOCore
import NIOPosix

extension RPCNetworkChannel {
  /// Whether the machine behind an address says that nobody listens there: it refuses a connection by each address its name has.
  /// A machine that says nothing within `timeout` refuses nothing.
  public static func isRefused(
    _ target: String, group: any EventLoopGroup, timeout: Duration
  ) async -> Bool {
    guard let address = try? RPCAddress(target) else { return false }
    let bootstrap = ClientBootstrap(group: group).connectTimeout(timeout.timeAmount)
    do {
      let channel =
        switch address {
        case .tcp(let host, let port): try await bootstrap.connect(host: host, port: port).get()
        case .unix(let path): try await bootstrap.connect(unixDomainSocketPath: path).get()
        }
      channel.close(promise: nil)
      return false
    } catch {
      return Self.isRefusal(error)
    }
  }

  private static func isRefusal(_ error: any Error) -> Bool {
    switch error {
    // The file of a socket goes with its owner.
    case let error as IOError: error.errnoCode == ECONNREFUSED || error.errnoCode == ENOENT
    case let error as NIOConnectionError:
      !error.connectionErrors.isEmpty
        && error.connectionErrors.allSatisfy { Self.isRefusal($0.error) }
    default: false
    }
  }
}
