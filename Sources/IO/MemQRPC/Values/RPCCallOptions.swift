// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// What a caller asks of one call.
public struct RPCCallOptions: Sendable {
  /// From start to status; nil = for ever. Sent to the server as `grpc-timeout`; the client enforces it, too.
  public var timeout: Duration?
  /// Custom request metadata.
  public var metadata: RPCMetadata
  /// Largest message, sent or received. The default, 16 MiB, equals the server's.
  public var maxMessageBytes: Int
  /// While not connected: wait for a connection (bounded by `timeout`) instead of failing at once.
  public var waitForReady: Bool
  /// Of the requests. Responses are unpacked whatever this says.
  public var compression = RPCCompression.identity
  /// For calls that may run twice, and whose request is one message of at most 1 MiB known from the start: a failed attempt is followed by
  /// another as long as nothing of a response came. Nil: each call is tried once.
  public var retry: RPCRetryPolicy?
  /// False: of a call that this one is made for, neither the deadline nor the trace is taken over. Otherwise a call made by an async handler
  /// ends with the handler's own, and belongs to its trace.
  public var inherits = true
  /// Over a balanced channel that is sticky: calls with the same number go to the same server. See ``affinity(of:)``.
  public var affinity: UInt64?
  /// It belongs to a ``RetryingCall``, which decides what follows.
  var isAttempt = false
  /// Attempts before this one; sent to the server.
  var previousAttempts = 0

  public init(
    timeout: Duration? = nil, metadata: RPCMetadata = RPCMetadata(),
    maxMessageBytes: Int = RPCLimits.messageBytesMax, waitForReady: Bool = false
  ) {
    self.timeout = timeout
    self.metadata = metadata
    self.maxMessageBytes = maxMessageBytes
    self.waitForReady = waitForReady
  }
}

/// Limits with one value for both transports and both roles.
public enum RPCLimits {
  /// 16 MiB: the largest record batch (8 MiB) and its envelope fit twice.
  public static let messageBytesMax = 16 << 20
  /// Queued bytes of one call above which `send` reports, or waits for, room. 1 MiB keeps a
  /// 25 Gbit/s link busy for 300 µs, longer than a turn of the loop.
  public static let sendQueueHighBytes = 1 << 20
  /// A callback handler that goes on sending without room is stopped, and its call with it, when
  /// this much is queued beyond one largest message.
  public static let sendQueueMaxBytes = 32 << 20
  /// Metadata of a request, as HTTP/2 counts it: beyond this the call fails before it is sent. Most servers take less (ours 16 KiB) and
  /// say so; what is far beyond would cost the whole connection.
  public static let requestMetadataBytesMax = 48 << 10
  /// A request that is kept for further attempts.
  public static let retriedRequestBytesMax = 1 << 20
  /// Received messages of one call that wait for an `async` handler. Flow control counts bytes, and an empty message has none:
  /// beyond this the call ends. Messages of 32 bytes and more fill a window of 8 MiB first.
  public static let queuedMessagesMax = 1 << 18
}
