// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQRPC
import Testing

/// A client that is gone without a word, as behind a cut cable.
@Suite(.timeLimit(.minutes(10))) struct SilentPeerTests {
  @Test func `a client that answers no ping loses its connection and its calls, others go on`()
    async throws
  {
    let started = Signal<Void>()
    let ended = Signal<Void>()
    var router = RPCRouter.standard()
    router.unary(.hang) { _, _ in
      started.fire(())
      defer { ended.fire(()) }
      try await Task.sleep(for: .seconds(3_600))
      return RPCMessage()
    }
    var configuration = RPCServer.Configuration()
    configuration.connection.keepaliveInterval = .milliseconds(100)
    configuration.connection.keepaliveTimeout = .milliseconds(100)
    try await withBed(.network, router, server: configuration) { bed in
      let peer = try await RawPeer.connect(port: bed.servers[0].localPort)
      await peer.send(
        RawPeer.hello
          + RawPeer.frame(
            1, flags: 4, stream: 1, RawPeer.requestHeaders("/memq.test.Test/Hang"))
          + RawPeer.frame(0, flags: 1, stream: 1, [0, 0, 0, 0, 0]))
      await started.value
      // It reads, as a kernel does for a program that hangs, and says nothing more.
      _ = await peer.rest()
      await ended.value
      _ = try await bed.channel.unary(.echo, RPCMessage())
      await peer.close()
    }
  }
}
