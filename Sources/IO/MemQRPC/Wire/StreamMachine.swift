// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// The rules of one call over the wire, seen from one side: framing, limits, half-closes, the status, credit.
///
/// Pure: bytes and events in, decisions out; `NetStream` carries them out with nghttp2. It is the only state of a call
/// besides the handler.
///
/// | local side | event | then |
/// |---|---|---|
/// | open | `send` | open; the first one of a server wants response headers |
/// | open | `halfClose`, `finish` | closing: what is queued leaves, then the end |
/// | closing | `nextFrame` with the last byte | ended: END_STREAM (client), trailers (server) |
/// | open, closing | `abort` | ended (client: reset); server: closing with nothing queued |
///
/// | remote side | event | then |
/// |---|---|---|
/// | open | `receive` | messages, at most as much unconsumed as the window, or one larger message |
/// | open | `remoteEnded` | half-closed (server), over (client); inside a message it is an error |
///
/// `isOver`: the handler was, or is about to be, told of the end. From then on messages in both directions are
/// dropped and received bytes return as credit at once.
struct StreamMachine: Sendable {
  enum Side: Sendable { case client, server }

  /// What became of a message to send.
  enum Sent {
    /// Queued; without room the sender should wait for `takeRoom`.
    case queued(hasRoom: Bool)
    /// The call is over or closing.
    case ignored
    /// It breaks a limit of ours: end the call with this.
    case refused(RPCStatus)
  }

  /// What to hand to HTTP/2 before, or so that, frames are asked for.
  enum Output {
    case nothing
    /// Server: response headers, then frames.
    case response
    /// Server: the whole response is a status.
    case trailersOnly(RPCStatus)
    /// Frames were deferred: ask again.
    case resume
  }

  enum Frame: Equatable {
    /// Nothing to send now; `output` will say `resume`.
    case deferred
    /// So many bytes; the last frame carries the end, or trailers follow it.
    case data(count: Int, isLast: Bool)
    /// Nothing may be sent any more.
    case invalid
  }

  enum RemoteEnd {
    case ignored
    /// Server: the request is complete. Client: the status in the trailers counts.
    case complete
    /// It ended inside a message.
    case truncated(RPCStatus)
  }

  let side: Side
  let sendMaxBytes: Int
  private var deframer: MessageDeframer
  private var credit: ReceiveCredit
  private var queue = MessageQueue()
  /// When what the peer sends may be packed.
  private var inflow: PackedInflow?

  private(set) var isOver = false
  private(set) var isClosing = false
  /// END_STREAM or the trailers were handed to HTTP/2.
  private(set) var localEnded = false
  private(set) var remoteClosed = false
  /// Server: how the call ends.
  private(set) var finalStatus = RPCStatus.ok
  private var headersSent = false
  private var isDeferred = false
  private var owesRoom = false
  /// Nothing was taken off the queue yet.
  private var isUntouched = true

  init(side: Side, windowBytes: Int, sendMaxBytes: Int, receiveMaxBytes: Int) {
    self.side = side
    self.sendMaxBytes = sendMaxBytes
    self.deframer = MessageDeframer(maxMessageBytes: receiveMaxBytes)
    self.credit = ReceiveCredit(windowBytes: windowBytes)
  }

  // MARK: Sending

  var queuedBytes: Int { self.queue.byteCount }

  mutating func send(_ message: RPCMessage) -> Sent {
    guard !self.isOver, !self.isClosing else { return .ignored }
    guard message.byteCount <= self.sendMaxBytes else {
      return .refused(
        .overLimit("message to send", limit: self.sendMaxBytes, actual: message.byteCount))
    }
    self.queue.append(message)
    let queued = self.queue.byteCount
    guard queued <= RPCLimits.sendQueueMaxBytes + self.sendMaxBytes else {
      return .refused(
        .overLimit("send queue", limit: RPCLimits.sendQueueMaxBytes, actual: queued))
    }
    let hasRoom = queued <= RPCLimits.sendQueueHighBytes
    if !hasRoom { self.owesRoom = true }
    return .queued(hasRoom: hasRoom)
  }

  /// Client: nothing more will be sent.
  mutating func halfClose() {
    guard !self.isOver else { return }
    self.isClosing = true
  }

  /// Server: the status follows what is queued. Only the first counts.
  mutating func finish(_ status: RPCStatus) {
    guard !self.isOver, !self.isClosing else { return }
    self.isClosing = true
    self.finalStatus = status
  }

  /// What is queued will not be sent; a server's status may still be.
  mutating func dropQueued() {
    self.queue.removeAll()
  }

  /// Ends the sending side without what is queued. Server: `status` goes out if it still can.
  mutating func abort(_ status: RPCStatus) {
    self.queue.removeAll()
    guard !self.localEnded else { return }
    self.isClosing = true
    self.finalStatus = status
  }

  /// Server: the response's headers can still be chosen.
  var awaitsHeaders: Bool {
    self.side == .server && !self.headersSent && !self.isOver && !self.isClosing
  }

  /// Ask after `send`, `halfClose`, `finish` and `abort`, while attached to a connection.
  mutating func output() -> Output {
    if self.headersSent {
      guard self.isDeferred else { return .nothing }
      self.isDeferred = false
      return .resume
    }
    guard self.side == .server else { return .nothing }
    self.headersSent = true
    guard self.isClosing && self.queue.isEmpty else { return .response }
    self.localEnded = true
    return .trailersOnly(self.finalStatus)
  }

  /// HTTP/2 has room for a frame of up to `limit` bytes.
  mutating func nextFrame(upTo limit: Int) -> Frame {
    guard !self.localEnded else { return .invalid }
    let count = min(limit, self.queue.byteCount)
    if count == 0 && !self.isClosing {
      self.isDeferred = true
      return .deferred
    }
    let isLast = self.isClosing && count == self.queue.byteCount
    if isLast { self.localEnded = true }
    return .data(count: count, isLast: isLast)
  }

  /// The bytes promised by `nextFrame`, piece by piece.
  mutating func takePiece(upTo limit: Int) -> MessageQueue.Piece? {
    self.isUntouched = false
    return self.queue.take(upTo: limit)
  }

  /// True once after `send` said there was no room, when there is again.
  mutating func takeRoom() -> Bool {
    guard self.owesRoom, self.queue.byteCount <= RPCLimits.sendQueueHighBytes / 2 else {
      return false
    }
    self.owesRoom = false
    return true
  }

  /// Makes `takeRoom` answer as if `send` had said there was no room.
  mutating func oweRoom() {
    self.owesRoom = true
  }

  // MARK: Beginning

  /// Server: nothing of the response was handed to HTTP/2 yet.
  var isUnanswered: Bool { !self.headersSent }

  /// The peer stated an encoding: what it sends may be packed.
  mutating func acceptPacked() {
    self.deframer.acceptsPacked = true
    self.inflow = PackedInflow(windowBytes: self.credit.windowBytes)
  }

  /// Client: the request headers were handed to HTTP/2, which will ask for frames.
  mutating func attached() {
    self.headersSent = true
  }

  /// Server: refused before there was a handler; `status` went out as the whole response.
  mutating func refused(_ status: RPCStatus) {
    self.isOver = true
    self.isClosing = true
    self.headersSent = true
    self.localEnded = true
    self.finalStatus = status
  }

  /// Client: the call goes to another connection. False: something of it is gone and cannot be sent again.
  mutating func rewind(to request: RPCMessage?) -> Bool {
    if let request {
      self.queue.removeAll()
      self.queue.append(request)
    } else if !self.isUntouched {
      return false
    }
    self.localEnded = false
    self.isDeferred = false
    self.headersSent = false
    return true
  }

  // MARK: Receiving

  /// Takes bytes off `input`: a whole message, or nil when it is used up. Of a call with an encoding all messages go to `nextHeld`.
  ///
  /// - Throws: the status to end the call with. What is left of `input` is credit to return.
  mutating func receive(_ input: inout ByteBuffer) throws(RPCStatus) -> RPCMessage? {
    while let message = try self.cut(from: &input) {
      guard self.inflow != nil else { return message }
      guard !self.inflow!.isFull else {
        throw RPCStatus(
          .resourceExhausted,
          "\(RPCLimits.queuedMessagesMax) messages wait to be read, that is the limit")
      }
      self.inflow!.hold(message)
    }
    return nil
  }

  private mutating func cut(from input: inout ByteBuffer) throws(RPCStatus) -> RPCMessage? {
    let before = input.readableBytes
    let held = self.deframer.heldBytes
    let message: RPCMessage?
    do throws(MessageDeframer.Violation) {
      message = try self.deframer.next(from: &input)
    } catch {
      throw self.status(for: error)
    }
    let used = before - input.readableBytes
    if let message {
      self.credit.skipped(used - (message.byteCount - held))
      self.credit.delivered(message.byteCount)
    } else {
      let payload = self.deframer.heldBytes - held
      self.credit.skipped(used - payload)
      self.credit.receivedPartial(payload, of: self.deframer.messageBytes)
    }
    return message
  }

  /// Wire bytes of messages that wait to be unpacked; part of `unconsumedBytes`.
  var heldBytes: Int { self.isOver ? 0 : self.inflow?.heldBytes ?? 0 }

  /// Messages wait to be unpacked.
  var holdsMessages: Bool { self.inflow.map { !$0.isEmpty } ?? false }
  /// One could be now, were it not for the turn's limit.
  var heldIsReady: Bool { self.inflow?.isReady ?? false }

  /// The next message of a call with an encoding, unpacked; nil: none, or not now.
  ///
  /// - Throws: the status to end the call with.
  mutating func nextHeld(by codec: GzipCodec) throws(RPCStatus) -> RPCMessage? {
    guard !codec.isSpent, let held = self.inflow?.next() else { return nil }
    var message = held
    if held.isPacked {
      do throws(GzipCodec.Failure) {
        message = try codec.unpack(held, maxBytes: self.deframer.maxMessageBytes)
        message.wasCompressed = true
      } catch {
        throw self.status(for: error)
      }
    }
    let paid = self.inflow!.deliver(message.byteCount, wireBytes: held.byteCount)
    if paid > 0 { self.credit.consumed(paid, partialOf: self.deframer.messageBytes) }
    return message
  }

  private func status(for failure: GzipCodec.Failure) -> RPCStatus {
    switch failure {
    case .tooLarge: return self.tooLarge(bytes: self.deframer.maxMessageBytes + 1)
    case .corrupt: return RPCStatus(.internal, "a compressed message is not whole, sound gzip")
    }
  }

  private func tooLarge(bytes: Int) -> RPCStatus {
    .overLimit(
      self.side == .server ? "request message" : "received message",
      limit: self.deframer.maxMessageBytes, actual: bytes)
  }

  private func status(for violation: MessageDeframer.Violation) -> RPCStatus {
    switch violation {
    case .tooLarge(let bytes): return self.tooLarge(bytes: bytes)
    case .compressed:
      return RPCStatus(
        .internal, "a message says it is compressed, and no encoding was agreed on")
    case .badFlag(let flag):
      return RPCStatus(.internal, "a message begins with the flag \(flag)")
    }
  }

  /// The handler is done with `bytes` of the messages it got.
  mutating func consumed(_ bytes: Int) {
    guard !self.isOver else { return }
    let wireBytes = self.inflow == nil ? bytes : self.inflow!.consumed(bytes)
    self.credit.consumed(wireBytes, partialOf: self.deframer.messageBytes)
  }

  /// Credit to hand to HTTP/2 now.
  mutating func takeCredit() -> Int {
    self.isOver ? self.credit.takeAllDue() : self.credit.takeDue()
  }

  /// Received bytes that wait for the handler: it can consume them.
  var unconsumedBytes: Int {
    if self.isOver { return 0 }
    guard let inflow = self.inflow else { return self.credit.unconsumedBytes }
    return inflow.unconsumedBytes + inflow.heldBytes
  }

  /// Received bytes of the message in progress: nobody can consume them before the rest has come.
  var partialBytes: Int { self.isOver ? 0 : self.deframer.heldBytes }

  /// The peer will send no more data.
  mutating func remoteEnded() -> RemoteEnd {
    guard !self.remoteClosed else { return .ignored }
    self.remoteClosed = true
    guard !self.isOver else { return .ignored }
    guard !self.deframer.isMidMessage else {
      let what = self.side == .server ? "request" : "response"
      return .truncated(RPCStatus(.internal, "the \(what) ends inside a message"))
    }
    return .complete
  }

  // MARK: The end

  /// The handler is to be told. False: it was already.
  mutating func end() -> Bool {
    guard !self.isOver else { return false }
    self.isOver = true
    self.credit.releaseAll()
    self.inflow = nil
    return true
  }
}
