// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import NIOCore

/// What a handler knows about its call.
public struct RPCContext: Sendable {
  public let method: RPCMethod
  /// Custom request metadata; the headers of HTTP/2 and gRPC themselves are not in it.
  public let metadata: RPCMetadata
  /// When the call ends with `DEADLINE_EXCEEDED`; nil = the caller waits for ever.
  public let deadline: NIODeadline?
  /// `127.0.0.1:5000`, `unix:pid=4711,uid=1000`, or `in-process`.
  public let peer: String
  /// Who the peer proved to be by a certificate; nil: without TLS, or without a certificate of its own.
  public let peerIdentity: RPCPeerIdentity?
  /// Attempts of the caller before this one: `grpc-previous-rpc-attempts`.
  public private(set) var previousAttempts = 0
  /// The call itself; nil in contexts made by hand.
  let core: CallCore?

  public init(
    method: RPCMethod, metadata: RPCMetadata = RPCMetadata(), deadline: NIODeadline? = nil,
    peer: String, peerIdentity: RPCPeerIdentity? = nil
  ) {
    self.init(
      method: method, metadata: metadata, deadline: deadline, peer: peer,
      peerIdentity: peerIdentity, core: nil)
  }

  init(
    method: RPCMethod, metadata: RPCMetadata, deadline: NIODeadline?, peer: String,
    peerIdentity: RPCPeerIdentity?, core: CallCore?, previousAttempts: Int = 0
  ) {
    self.previousAttempts = previousAttempts
    self.core = core
    self.method = method
    self.metadata = metadata
    self.deadline = deadline
    self.peer = peer
    self.peerIdentity = peerIdentity
  }

  /// How responses are encoded, when the client takes that encoding. To be said before the first response.
  public func setCompression(_ compression: RPCCompression) {
    guard let core = self.core else { return }
    core.onLoop { core.compress(compression) }
  }

  /// Time left until the deadline, never negative; nil without a deadline. For calls made on behalf of this one.
  public var remaining: Duration? {
    self.deadline.map { deadline in
      .nanoseconds(max(0, (deadline - .now()).nanoseconds))
    }
  }
}
