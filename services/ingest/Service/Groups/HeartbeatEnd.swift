// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQRPC
import Synchronization

/// How a heartbeat's call ended, for its handler, which only hears that it is cancelled: by the client, or with the client's connection.
final class HeartbeatEnd: RPCContextKey, Sendable {
  typealias Value = HeartbeatEnd

  private let wasLost = Atomic<Bool>(false)

  /// False as long as the call goes on, and for calls within the process.
  var isConnectionLost: Bool { self.wasLost.load(ordering: .acquiring) }

  /// It hears of the end before the handler does.
  static let interceptor = RPCServerInterceptor { method in
    guard method == IngestMethods.heartbeatGroup.rpc else { return nil }
    return RPCServerInterceptor.Hooks(
      before: { $0[HeartbeatEnd.self] = HeartbeatEnd() },
      after: { context, report in
        guard report.end == .connectionLost else { return }
        context[HeartbeatEnd.self]?.wasLost.store(true, ordering: .releasing)
      })
  }
}
