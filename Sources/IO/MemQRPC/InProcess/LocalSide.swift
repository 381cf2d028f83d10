// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import NIOCore

/// One side of a call inside this process. Both sides live on one loop; what one does, the other's handler
/// hears at the end of the turn, never inside the call.
///
/// Flow control as over the network: at most `windowBytes` of messages (or one larger message) are with the
/// receiver unconsumed, the rest waits in the sender's queue.
class LocalSide: CallCore, TurnEnd, @unchecked Sendable {
  enum Event {
    case headers(RPCMetadata)
    case message(RPCMessage)
    case halfClosed
    case writable
    case ended(RPCStatus)
  }

  /// As the network's stream window for data.
  static let windowBytes = 8 << 20

  /// Nil once this side is over. The two sides hold each other until then.
  final var peer: LocalSide?
  private let sendMaxBytes: Int
  private var queue = Deque<RPCMessage>()
  /// A message was sent, or the headers by themselves.
  final private var hasBegun = false
  final private(set) var unsentBytes = 0
  /// Sent, and not yet consumed by the peer.
  private var inFlightBytes = 0
  /// Received, and not yet consumed by our handler.
  private var unconsumedBytes = 0
  private var owesWritable = false
  /// What follows the queued messages: a half-close or a status.
  private var lastEvent: Event?
  private var lastIsSent = false
  private var inbox = Deque<Event>()
  private var isWaitingForTurnEnd = false
  final private(set) var isOver = false

  init(driver: LoopDriver, sendMaxBytes: Int) {
    self.sendMaxBytes = sendMaxBytes
    super.init(driver: driver)
  }

  // MARK: Events in

  final func post(_ event: Event) {
    guard !self.isOver else { return }
    self.inbox.append(event)
    if !self.isWaitingForTurnEnd {
      self.isWaitingForTurnEnd = true
      self.driver.atTurnEnd(self)
    }
  }

  final func turnEnded() {
    self.isWaitingForTurnEnd = false
    while let event = self.inbox.popFirst() {
      if case .message(let message) = event {
        self.unconsumedBytes += message.byteCount
        self.counts.messagesReceived += 1
        self.counts.bytesReceived += message.byteCount
      }
      if case .ended = event {
        self.inbox.removeAll()
        self.isOver = true
        self.peer = nil
        self.driver.removeDeadline(self)
      }
      self.handle(event)
    }
  }

  /// Tells the handler.
  func handle(_ event: Event) { fatalError("abstract") }

  /// Why a message cannot be received here, if it cannot.
  func refusal(of message: RPCMessage) -> RPCStatus? { fatalError("abstract") }

  // MARK: Sending

  final override func enqueue(_ message: RPCMessage) -> Bool {
    guard !self.isOver, let peer = self.peer, self.lastEvent == nil else { return false }
    if message.byteCount > self.sendMaxBytes {
      self.abort(
        .overLimit("message to send", limit: self.sendMaxBytes, actual: message.byteCount))
      return false
    }
    if let status = peer.refusal(of: message) {
      self.abort(status)
      return false
    }
    self.queue.append(message)
    self.counts.messagesSent += 1
    self.counts.bytesSent += message.byteCount
    self.hasBegun = true
    self.unsentBytes += message.byteCount
    self.pump()
    if self.unsentBytes > RPCLimits.sendQueueMaxBytes + self.sendMaxBytes {
      self.abort(
        .overLimit(
          "send queue", limit: RPCLimits.sendQueueMaxBytes, actual: self.unsentBytes))
      return false
    }
    let hasRoom = self.unsentBytes <= RPCLimits.sendQueueHighBytes
    if !hasRoom { self.owesWritable = true }
    return hasRoom
  }

  final override func sendHeaders(_ metadata: RPCMetadata) {
    guard !self.isOver, let peer = self.peer, self.lastEvent == nil, !self.hasBegun else { return }
    self.hasBegun = true
    if !metadata.isEmpty { peer.post(.headers(metadata)) }
  }

  private func pump() {
    guard let peer = self.peer else { return }
    while let head = self.queue.first,
      self.inFlightBytes == 0 || self.inFlightBytes + head.byteCount <= Self.windowBytes
    {
      self.queue.removeFirst()
      self.unsentBytes -= head.byteCount
      self.inFlightBytes += head.byteCount
      peer.post(.message(head))
    }
    if self.owesWritable && self.unsentBytes <= RPCLimits.sendQueueHighBytes / 2 {
      self.owesWritable = false
      self.post(.writable)
    }
    if self.queue.isEmpty, !self.lastIsSent, let last = self.lastEvent {
      self.sendLast(last, to: peer)
    }
  }

  private func sendLast(_ event: Event, to peer: LocalSide) {
    self.lastIsSent = true
    peer.post(event)
    if case .ended(let status) = event { self.post(.ended(status)) }
  }

  final override func callWritableSoon() {
    self.owesWritable = true
    self.pump()
  }

  final override var queuedBytes: Int { self.unsentBytes }

  final override func consume(_ bytes: Int) {
    guard !self.isOver, let peer = self.peer else { return }
    precondition(bytes <= self.unconsumedBytes, "consumed more than was received")
    self.unconsumedBytes -= bytes
    peer.inFlightBytes -= bytes
    peer.pump()
  }

  // MARK: Ends

  /// What follows the queued messages.
  final func close(with event: Event) {
    guard !self.isOver, self.lastEvent == nil else { return }
    self.lastEvent = event
    self.pump()
  }

  final override func abort(_ status: RPCStatus) {
    guard !self.isOver, let peer = self.peer else { return }
    self.end = RPCCallEnd(abortedWith: status)
    peer.end = self.end == .cancelledHere ? .resetByPeer : self.end
    self.queue.removeAll()
    self.unsentBytes = 0
    self.lastEvent = .ended(status)
    self.lastIsSent = true
    peer.queue.removeAll()
    peer.unsentBytes = 0
    peer.dropInbox()
    self.dropInbox()
    peer.post(.ended(status))
    self.post(.ended(status))
  }

  private func dropInbox() {
    self.inbox.removeAll()
  }

  final override func deadlinePassed() {
    self.abort(.deadlineExceeded)
  }
}

/// The caller's side.
final class LocalClientSide: LocalSide, @unchecked Sendable {
  /// Set before the call begins.
  var handler: (any RPCClientHandler)?
  private let channel: RPCInProcessChannel
  private let receiveMaxBytes: Int

  init(driver: LoopDriver, channel: RPCInProcessChannel, maxMessageBytes: Int) {
    self.channel = channel
    self.receiveMaxBytes = maxMessageBytes
    super.init(driver: driver, sendMaxBytes: maxMessageBytes)
  }

  override func halfClose() {
    self.close(with: .halfClosed)
  }

  override func refusal(of message: RPCMessage) -> RPCStatus? {
    guard message.byteCount > self.receiveMaxBytes else { return nil }
    return .overLimit("received message", limit: self.receiveMaxBytes, actual: message.byteCount)
  }

  override func handle(_ event: Event) {
    switch event {
    case .headers(let metadata): self.handler?.receivedHeaders(metadata)
    case .message(let message): self.handler?.received(message)
    case .halfClosed: break
    case .writable:
      self.noteRoom()
      self.handler?.writable()
    case .ended(let status):
      self.noteRoom()
      self.handler.take()?.ended(status, trailers: status.trailers)
      self.channel.ended(ObjectIdentifier(self))
    }
  }
}

/// The handler's side.
final class LocalServerSide: LocalSide, @unchecked Sendable {
  /// Set at the start of the call.
  var handler: (any RPCServerHandler)?
  /// What waits for the call's end.
  var hooked: HookedCall?
  private let receiveMaxBytes: Int

  init(driver: LoopDriver, maxMessageBytes: Int) {
    self.receiveMaxBytes = maxMessageBytes
    super.init(driver: driver, sendMaxBytes: maxMessageBytes)
  }

  override func finish(_ status: RPCStatus) {
    self.close(with: .ended(status))
  }

  override func refusal(of message: RPCMessage) -> RPCStatus? {
    guard message.byteCount > self.receiveMaxBytes else { return nil }
    return .overLimit("request message", limit: self.receiveMaxBytes, actual: message.byteCount)
  }

  override func handle(_ event: Event) {
    switch event {
    case .headers: break
    case .message(let message): self.handler?.received(message)
    case .halfClosed: self.handler?.halfClosed()
    case .writable:
      self.noteRoom()
      self.handler?.writable()
    case .ended(let status):
      self.noteRoom()
      if let hooked = self.hooked.take() { hooked.ended(status.code, self) }
      self.handler.take()?.ended(status)
    }
  }
}
