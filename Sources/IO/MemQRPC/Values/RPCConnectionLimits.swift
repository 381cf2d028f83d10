// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// How long a server bears a connection, and what on it.
public struct RPCConnectionLimits: Sendable {
  /// A connection this old, ± 10 %, takes no new calls and closes behind its last one: so clients find new servers behind a
  /// balancer, and new certificates. Nil: for ever.
  public var ageMax: Duration?
  /// What still runs on it so long after that is cut off.
  public var ageGrace: Duration = .seconds(300)
  /// A connection without a call for so long is closed. Nil: never.
  public var idleMax: Duration?
  /// PINGs of a client that come faster, while it has calls open, are strikes, unless we sent it something in between. Our own
  /// clients send one in 30 s at most; gRPC's own bound, 300 s, would leave dead servers unnoticed for as long.
  public var pingIntervalMin: Duration = .seconds(10)
  /// The same, while it has none.
  public var pingIdleIntervalMin: Duration = .seconds(300)
  /// Strikes that are borne; the next ends the connection with `too_many_pings`.
  public var pingStrikesMax = 2
  /// From the first byte of a frame other than DATA to its last, and from that of a header block to its.
  public var frameTimeout: Duration = .seconds(10)
  /// From the first byte of a message, or from the headers of a call with one message, to that message's last byte. Time in which the
  /// handler holds the sender back does not count. Looked at every ``RPCConnectionSettings/keepaliveInterval``.
  public var messageTimeout: Duration = .seconds(300)

  public init() {}
}
