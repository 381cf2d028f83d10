// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import NIOCore

/// What a handler knows about its call.
///
/// One reference: it goes from hand to hand with each call, and most of it is never looked at.
public struct RPCContext: Sendable {
  private final class Fields: @unchecked Sendable {
    let method: RPCMethod
    let metadata: RPCMetadata
    let deadline: NIODeadline?
    let peer: String
    let peerIdentity: RPCPeerIdentity?
    let previousAttempts: Int
    let core: CallCore?
    /// Changed only while a single context holds them.
    var principal: RPCPrincipal?
    var values = RPCContextValues()

    init(
      method: RPCMethod, metadata: RPCMetadata, deadline: NIODeadline?, peer: String,
      peerIdentity: RPCPeerIdentity?, previousAttempts: Int, core: CallCore?
    ) {
      self.method = method
      self.metadata = metadata
      self.deadline = deadline
      self.peer = peer
      self.peerIdentity = peerIdentity
      self.previousAttempts = previousAttempts
      self.core = core
    }

    func copy() -> Fields {
      let copy = Fields(
        method: self.method, metadata: self.metadata, deadline: self.deadline, peer: self.peer,
        peerIdentity: self.peerIdentity, previousAttempts: self.previousAttempts, core: self.core)
      copy.principal = self.principal
      copy.values = self.values
      return copy
    }
  }

  private var fields: Fields

  public var method: RPCMethod { self.fields.method }
  /// Custom request metadata; the headers of HTTP/2 and gRPC themselves are not in it.
  public var metadata: RPCMetadata { self.fields.metadata }
  /// When the call ends with `DEADLINE_EXCEEDED`; nil = the caller waits for ever.
  public var deadline: NIODeadline? { self.fields.deadline }
  /// `127.0.0.1:5000`, `unix:pid=4711,uid=1000`, or `in-process`.
  public var peer: String { self.fields.peer }
  /// Who the peer proved to be by a certificate; nil: without TLS, or without a certificate of its own.
  public var peerIdentity: RPCPeerIdentity? { self.fields.peerIdentity }
  /// Attempts of the caller before this one: `grpc-previous-rpc-attempts`.
  public var previousAttempts: Int { self.fields.previousAttempts }
  /// The call itself; nil in contexts made by hand.
  var core: CallCore? { self.fields.core }

  /// Who calls, when an interceptor has found out.
  public var principal: RPCPrincipal? {
    get { self.fields.principal }
    set {
      self.makeUnique()
      self.fields.principal = newValue
    }
  }

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
    self.fields = Fields(
      method: method, metadata: metadata, deadline: deadline, peer: peer,
      peerIdentity: peerIdentity, previousAttempts: previousAttempts, core: core)
  }

  private mutating func makeUnique() {
    if !isKnownUniquelyReferenced(&self.fields) { self.fields = self.fields.copy() }
  }

  /// What an interceptor left for handlers under a type.
  public subscript<Key: RPCContextKey>(key: Key.Type) -> Key.Value? {
    get { self.fields.values[key] }
    set {
      self.makeUnique()
      self.fields.values[key] = newValue
    }
  }

  /// How responses are encoded, when the client takes that encoding. To be said before the first response.
  public func setCompression(_ compression: RPCCompression) {
    guard let core = self.core else { return }
    core.onLoop { core.compress(compression) }
  }

  /// The caller's place in a trace; nil: it stated none, or none that is well formed.
  public var trace: RPCTrace? {
    self.metadata[first: RPCTrace.metadataName].flatMap { RPCTrace($0) }
  }

  /// Time left until the deadline, never negative; nil without a deadline. For calls made on behalf of this one.
  public var remaining: Duration? {
    self.deadline.map { deadline in
      .nanoseconds(max(0, (deadline - .now()).nanoseconds))
    }
  }
}
