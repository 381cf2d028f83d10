// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQRPC

/// The shape of every service library's node, as its executable and the one-process build use it.
public protocol ServiceNode: Sendable {
  /// Adds its RPC handlers; called once, before `start`.
  func register(on router: inout RPCRouter)
  /// Recovers and begins to work. Cancelled when the process is told to stop meanwhile.
  func start() async throws(MemQError)
  /// For `/readyz`; no problem = fine. Never blocks.
  var readiness: [(check: String, problem: String?)] { get }
  /// Stops taking work, finishes what runs, hands over, closes.
  func drain(deadline: Duration) async
}
