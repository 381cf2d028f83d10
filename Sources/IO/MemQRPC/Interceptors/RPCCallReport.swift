// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Why a call was over, beside its status.
public enum RPCCallEnd: Int, Sendable, CaseIterable {
  /// The handler, or the server, said so.
  case answered
  /// Refused before a handler, or another attempt's server, saw it.
  case refused
  /// The other side reset the stream.
  case resetByPeer
  /// Our side cancelled it.
  case cancelledHere
  case deadlinePassed
  /// A message, a queue or what was unread went over a limit.
  case limitBroken
  /// What came is not gRPC.
  case protocolBroken
  case connectionLost

  /// For a call that the transport ends with `status`.
  init(abortedWith status: RPCStatus) {
    switch status.code {
    case .cancelled: self = .cancelledHere
    case .deadlineExceeded: self = .deadlinePassed
    case .resourceExhausted: self = .limitBroken
    case .unavailable: self = .connectionLost
    default: self = .protocolBroken
    }
  }
}

/// What a call moved. Bytes are those of messages, unpacked.
public struct RPCCallCounts: Sendable, Equatable {
  public var messagesReceived = 0
  public var messagesSent = 0
  public var bytesReceived = 0
  public var bytesSent = 0

  mutating func add(_ other: RPCCallCounts) {
    self.messagesReceived += other.messagesReceived
    self.messagesSent += other.messagesSent
    self.bytesReceived += other.bytesReceived
    self.bytesSent += other.bytesSent
  }
}

/// How a call went, for those who count and trace.
public struct RPCCallReport: Sendable {
  public let code: RPCCode
  public let end: RPCCallEnd
  /// From the request's headers, or from the start at the caller, to the status.
  public let duration: Duration
  public let counts: RPCCallCounts
}
