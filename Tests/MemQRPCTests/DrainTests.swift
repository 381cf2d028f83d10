// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore
import Testing

@testable import MemQRPC

/// What a server that shuts down still owes its peers.
@Suite(.timeLimit(.minutes(5))) struct DrainTests {
  /// More than the kernel takes of it while nobody reads, and little enough for the channel to hold the rest.
  private static let responseBytes = 5 << 20

  private final class Handler: RPCServerHandler {
    let call: RPCServerCall
    let began: Signal<RPCServerCall>
    let ended: Signal<RPCStatus>

    init(_ call: RPCServerCall, _ began: Signal<RPCServerCall>, _ ended: Signal<RPCStatus>) {
      self.call = call
      self.began = began
      self.ended = ended
    }

    func received(_ message: RPCMessage) { self.call.consumed(message.byteCount) }
    func halfClosed() { self.began.fire(self.call) }
    func writable() {}
    func ended(_ status: RPCStatus) { self.ended.fire(status) }
  }

  @Test func `what a peer has not read yet when its last call ends still reaches it`()
    async throws
  {
    let (began, ended) = (Signal<RPCServerCall>(), Signal<RPCStatus>())
    var router = RPCRouter()
    router.callback(.echo) { Handler($0, began, ended) }
    let server = try await RPCServer.start(
      router: router, on: "127.0.0.1:0", group: TestBed.group, logger: TestBed.quietLogger())
    let peer = try await RawPeer.connect(port: server.localPort)
    // Windows of 1 GiB: nothing but the socket holds the response back.
    let window: [UInt8] = [0, 4, 0x40, 0, 0, 0]
    await peer.send(
      RawPeer.preface + RawPeer.frame(4, window) + RawPeer.frame(8, [0x3f, 0, 0, 0])
        + RawPeer.request(stream: 1) + RawPeer.frame(0, flags: 1, stream: 1, [0, 0, 0, 0, 0]))
    let call = await began.value
    let shutdown = Task { await server.shutdown(deadline: .seconds(60)) }
    let ping = try #require(await peer.frame(ofType: 6))
    await peer.send(RawPeer.frame(6, flags: 1, ping.payload))
    #expect(await peer.frame(ofType: 7) != nil)
    await peer.pause()
    call.send(RPCMessage(ByteBuffer(repeating: 7, count: Self.responseBytes)))
    call.finish(.ok)
    #expect(await ended.value.isOK)
    await peer.resume()
    #expect(await peer.rest().count > Self.responseBytes)
    await shutdown.value
  }
}
