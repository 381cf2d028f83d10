// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CNghttp2
import NIOCore

/// One call over the network: a stream of an HTTP/2 connection, of either role.
///
/// Ownership: the connection's list owns it from the moment nghttp2 knows of the stream until nghttp2 closes
/// the stream, or the connection ends. nghttp2 holds a plain pointer to it for exactly that time.
///
/// Local life: open → closing (nothing more is accepted; what is queued leaves) → sent.
/// `isOver` means the handler has been, or at the end of this turn will be, told.
final class NetStream: CallCore, TurnEnd, @unchecked Sendable {
  enum Handler {
    case none
    case server(any RPCServerHandler)
    case client(any RPCClientHandler)
  }

  // Place in the connection's list.
  var next: NetStream?
  unowned(unsafe) var previous: NetStream?
  /// Nil before the stream is attached and after it was removed.
  unowned(unsafe) var connection: HTTP2Connection?
  var id: Int32 = 0

  let isServer: Bool
  let sendMaxBytes: Int
  var handler = Handler.none
  private var deframer: MessageDeframer
  private var credit: ReceiveCredit
  private var queue = MessageQueue()

  // Headers while they arrive.
  var requestHead: RequestHead?
  var responseHead = ResponseHead()
  var hasResponse = false

  /// What a client call needs to be attached, once or again.
  var start: ClientStart?

  private(set) var isOver = false
  private(set) var isClosing = false
  private(set) var remoteClosed = false
  private var headersSent = false
  private var isDeferred = false
  private var endSent = false
  /// Nothing was taken off the queue yet.
  private var isUntouched = true
  private var finalStatus = RPCStatus.ok
  private var owesWritable = false
  private var accountedBytes = 0
  /// What to tell the handler at the end of the turn.
  private var pendingEnd: RPCStatus?
  private var writableIsDue = false
  private var isWaitingForTurnEnd = false
  /// For the server's observer.
  private(set) var startedAt: NIODeadline?
  private(set) var observedMethod: RPCMethod?

  init(driver: LoopDriver, isServer: Bool, windowBytes: Int, sendMaxBytes: Int, receiveMaxBytes: Int)
  {
    self.isServer = isServer
    self.sendMaxBytes = sendMaxBytes
    self.deframer = MessageDeframer(maxMessageBytes: receiveMaxBytes)
    self.credit = ReceiveCredit(windowBytes: windowBytes)
    super.init(driver: driver)
  }

  // MARK: Sending

  override var queuedBytes: Int { self.queue.byteCount }

  override func enqueue(_ message: RPCMessage) -> Bool {
    guard !self.isOver, !self.isClosing else { return false }
    guard message.byteCount <= self.sendMaxBytes else {
      self.stop(.overLimit("message to send", limit: self.sendMaxBytes, actual: message.byteCount))
      return false
    }
    self.queue.append(message)
    let queued = self.queue.byteCount
    if queued > RPCLimits.sendQueueMaxBytes + self.sendMaxBytes {
      self.stop(
        .overLimit("send queue", limit: RPCLimits.sendQueueMaxBytes, actual: queued))
      return false
    }
    self.startOutput()
    if queued > RPCLimits.sendQueueHighBytes {
      self.owesWritable = true
      return false
    }
    return true
  }

  override func callWritableSoon() {
    self.owesWritable = true
    self.noteDrained()
  }

  /// A send broke a limit of ours: the call ends for both sides.
  private func stop(_ status: RPCStatus) {
    if self.isServer {
      self.queue.removeAll()
      self.finish(status)
    } else {
      self.abort(status)
    }
  }

  override func halfClose() {
    guard !self.isOver, !self.isClosing else { return }
    self.isClosing = true
    self.startOutput()
  }

  override func finish(_ status: RPCStatus) {
    guard !self.isOver, !self.isClosing else { return }
    self.isClosing = true
    self.finalStatus = status
    self.startOutput()
  }

  private func startOutput() {
    guard let connection = self.connection else { return }
    if self.headersSent {
      self.resume(connection)
    } else if self.isServer {
      self.headersSent = true
      if self.isClosing && self.queue.isEmpty {
        self.endSent = true
        connection.submitTrailersOnly(self.finalStatus, on: self)
      } else {
        connection.submitResponse(on: self)
      }
    }
  }

  private func resume(_ connection: HTTP2Connection) {
    guard self.isDeferred else { return }
    self.isDeferred = false
    connection.resume(self)
  }

  /// nghttp2 asks for up to `limit` bytes of DATA. Answers the length, or a negative nghttp2 error.
  func readForFrame(_ limit: Int, _ flags: UnsafeMutablePointer<UInt32>) -> Int {
    guard let connection = self.connection, !self.endSent else {
      return Int(NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE.rawValue)
    }
    let count = min(limit, self.queue.byteCount)
    if count == 0 && !self.isClosing {
      self.isDeferred = true
      return Int(NGHTTP2_ERR_DEFERRED.rawValue)
    }
    flags.pointee |= NGHTTP2_DATA_FLAG_NO_COPY.rawValue
    guard count == self.queue.byteCount && self.isClosing else { return count }
    flags.pointee |= NGHTTP2_DATA_FLAG_EOF.rawValue
    self.endSent = true
    if self.isServer {
      flags.pointee |= NGHTTP2_DATA_FLAG_NO_END_STREAM.rawValue
      connection.submitTrailers(self.finalStatus, on: self)
    }
    return count
  }

  /// Writes the bytes promised to nghttp2 for one frame.
  func writeFrame(_ length: Int, to output: inout FrameOutput) {
    self.isUntouched = false
    var left = length
    while left > 0, let piece = self.queue.take(upTo: left) {
      switch piece {
      case .prefix(let bits, let count):
        output.writePrefix(bits: bits, count: count)
        left -= count
      case .payload(let slice):
        left -= slice.readableBytes
        output.write(slice)
      }
    }
    precondition(left == 0, "the frame was promised more bytes than are queued")
    self.noteDrained()
  }

  private func noteDrained() {
    guard self.owesWritable, self.queue.byteCount <= RPCLimits.sendQueueHighBytes / 2 else {
      return
    }
    self.owesWritable = false
    self.writableIsDue = true
    self.askForTurnEnd()
  }

  // MARK: Server: the beginning

  func observe(_ method: RPCMethod, _ environment: ServerEnvironment) {
    guard environment.observer != nil else { return }
    self.observedMethod = method
    self.startedAt = .now()
  }

  /// The request's headers are no call a handler could take.
  func refuse(_ status: RPCStatus, httpStatus: String?) {
    self.isOver = true
    self.isClosing = true
    self.headersSent = true
    self.endSent = true
    self.finalStatus = status
    self.connection?.submitTrailersOnly(status, on: self, httpStatus: httpStatus)
  }

  // MARK: Receiving

  /// DATA of this stream. The connection's credit was returned already.
  func receive(_ bytes: ByteBuffer) {
    guard !self.isOver else {
      self.connection?.returnCredit(bytes.readableBytes, of: self)
      return
    }
    var input = bytes
    do throws(MessageDeframer.Violation) {
      while input.readableBytes > 0, !self.isOver {
        let before = input.readableBytes
        let held = self.deframer.heldBytes
        let message = try self.deframer.next(from: &input)
        let used = before - input.readableBytes
        if let message {
          self.credit.skipped(used - (message.byteCount - held))
          self.credit.delivered(message.byteCount)
          self.account()
          self.deliver(message)
        } else {
          let payload = self.deframer.heldBytes - held
          self.credit.skipped(used - payload)
          self.credit.receivedPartial(payload, of: self.deframer.messageBytes)
          self.account()
        }
      }
      self.payCredit()
    } catch {
      self.violated(error)
    }
    if input.readableBytes > 0 {
      self.connection?.returnCredit(input.readableBytes, of: self)
    }
  }

  private func deliver(_ message: RPCMessage) {
    switch self.handler {
    case .server(let handler): handler.received(message)
    case .client(let handler): handler.received(message)
    case .none: break
    }
  }

  private func violated(_ violation: MessageDeframer.Violation) {
    let status: RPCStatus
    switch violation {
    case .tooLarge(let bytes):
      let what = self.isServer ? "request message" : "received message"
      status = .overLimit(what, limit: self.deframer.maxMessageBytes, actual: bytes)
    case .compressed:
      status = RPCStatus(.internal, "a message says it is compressed, and no encoding was agreed on")
    case .badFlag(let flag):
      status = RPCStatus(.internal, "a message begins with the flag \(flag)")
    }
    self.abort(status)
  }

  override func consume(_ bytes: Int) {
    guard !self.isOver else { return }
    self.credit.consumed(bytes, partialOf: self.deframer.messageBytes)
    self.account()
    self.payCredit()
  }

  private func payCredit() {
    let due = self.credit.takeDue()
    if due > 0 { self.connection?.returnCredit(due, of: self) }
  }

  /// Keeps the connection's sum of held bytes right.
  private func account() {
    let now = self.credit.unconsumedBytes + self.deframer.heldBytes
    if now != self.accountedBytes {
      self.connection?.heldBytesChanged(by: now - self.accountedBytes)
      self.accountedBytes = now
    }
  }

  /// The peer will send no more data.
  func receivedEnd() {
    guard !self.remoteClosed else { return }
    self.remoteClosed = true
    guard !self.isOver else { return }
    if self.isServer {
      if self.deframer.isMidMessage {
        return self.abort(RPCStatus(.internal, "the request ends inside a message"))
      }
      if case .server(let handler) = self.handler { handler.halfClosed() }
    } else {
      self.receivedStatus()
    }
  }

  private func receivedStatus() {
    let headerMax = self.connection?.profile.settings.headerListBytesMax ?? .max
    var status = self.responseHead.status(listBytesMax: headerMax)
    if status.isOK && self.deframer.isMidMessage {
      status = RPCStatus(.internal, "the response ends inside a message")
    }
    // The server is done before we are: the rest of the request is of no use.
    if !self.endSent { self.connection?.reset(self, NGHTTP2_NO_ERROR.rawValue) }
    self.tell(status)
  }

  // MARK: The end

  /// Ends the call now: the peer gets a status (server) or a reset, the handler hears of it at the end of the turn.
  override func abort(_ status: RPCStatus) {
    guard !self.isOver else { return }
    self.queue.removeAll()
    if self.isServer {
      self.sendStatusNow(status)
    } else if let connection = self.connection {
      self.isClosing = true
      connection.reset(self, NGHTTP2_CANCEL.rawValue)
    }
    self.end(with: status)
  }

  private func sendStatusNow(_ status: RPCStatus) {
    guard let connection = self.connection, !self.endSent else { return }
    self.isClosing = true
    self.finalStatus = status
    if !self.headersSent || connection.sendWindow(of: self) > 0 {
      self.startOutput()
    } else {
      // Without window nghttp2 does not ask for data, so trailers would never follow.
      connection.reset(self, NGHTTP2_CANCEL.rawValue)
    }
  }

  override func deadlinePassed() {
    self.abort(.deadlineExceeded)
  }

  /// The handler hears `status` at the end of the turn: the end may have been asked for from inside it.
  func end(with status: RPCStatus) {
    guard !self.isOver else { return }
    self.isOver = true
    self.pendingEnd = status
    self.released()
    self.askForTurnEnd()
  }

  /// Tells the handler at once. Only where no handler can be on the stack.
  private func tell(_ status: RPCStatus) {
    guard !self.isOver else { return }
    self.isOver = true
    self.released()
    self.deliverEnd(status)
  }

  private func released() {
    self.driver.removeDeadline(self)
    self.credit.releaseAll()
    let due = self.credit.takeAllDue()
    if self.accountedBytes > 0 {
      self.connection?.heldBytesChanged(by: -self.accountedBytes)
      self.accountedBytes = 0
    }
    if due > 0, !self.remoteClosed { self.connection?.returnCredit(due, of: self) }
  }

  private func deliverEnd(_ status: RPCStatus) {
    let handler = self.handler
    self.handler = .none
    self.noteRoom()
    self.start?.slot.ended(self)
    self.start = nil
    switch handler {
    case .server(let handler): handler.ended(status)
    case .client(let handler): handler.ended(status, trailers: status.trailers)
    case .none: break
    }
  }

  /// nghttp2 has closed the stream; the connection has dropped it from its list.
  func closed(_ errorCode: UInt32) {
    if self.isServer {
      if self.endSent {
        self.connection?.callEnded(self, self.finalStatus.code)
        self.tell(self.finalStatus)
      } else {
        self.connection?.callEnded(self, .cancelled)
        self.tell(RPCStatus(.cancelled, "the peer cancelled the call"))
      }
    } else if !self.isOver {
      if errorCode == NGHTTP2_REFUSED_STREAM.rawValue, self.prepareRetry() { return }
      self.tell(Self.status(forReset: errorCode))
    }
  }

  /// The connection is gone.
  func lost(_ reason: String) {
    if self.isServer {
      self.connection?.callEnded(self, .cancelled)
      self.tell(RPCStatus(.cancelled, reason))
    } else if !self.isOver {
      self.tell(RPCStatus(.unavailable, reason))
    }
  }

  private static func status(forReset errorCode: UInt32) -> RPCStatus {
    let text = "the server reset the stream (HTTP/2 error \(errorCode))"
    switch errorCode {
    case NGHTTP2_REFUSED_STREAM.rawValue: return RPCStatus(.unavailable, text)
    case NGHTTP2_CANCEL.rawValue: return RPCStatus(.cancelled, text)
    case NGHTTP2_ENHANCE_YOUR_CALM.rawValue: return RPCStatus(.resourceExhausted, text)
    case NGHTTP2_INADEQUATE_SECURITY.rawValue: return RPCStatus(.permissionDenied, text)
    default: return RPCStatus(.internal, text)
    }
  }

  // MARK: Turn end

  private func askForTurnEnd() {
    guard !self.isWaitingForTurnEnd else { return }
    self.isWaitingForTurnEnd = true
    self.driver.atTurnEnd(self)
  }

  func turnEnded() {
    self.isWaitingForTurnEnd = false
    if let status = self.pendingEnd.take() { return self.deliverEnd(status) }
    guard self.writableIsDue else { return }
    self.writableIsDue = false
    guard !self.isOver else { return }
    self.noteRoom()
    switch self.handler {
    case .server(let handler): handler.writable()
    case .client(let handler): handler.writable()
    case .none: break
    }
  }

  // MARK: Client: attached, and attached again

  /// The server never saw the call: it may go to another connection, once, when nothing of it was sent that is
  /// gone here.
  private func prepareRetry() -> Bool {
    guard let start = self.start, !start.isRetried, !self.hasResponse else { return false }
    if let request = start.request {
      self.queue.removeAll()
      self.queue.append(request)
    } else if !self.isUntouched {
      return false
    }
    self.start?.isRetried = true
    self.endSent = false
    self.isDeferred = false
    self.headersSent = false
    self.connection = nil
    self.id = 0
    start.slot.begin(self)
    return true
  }

  func attached(to connection: HTTP2Connection, id: Int32) {
    self.connection = connection
    self.id = id
    self.headersSent = true
  }
}

/// How a client call begins.
struct ClientStart {
  let slot: ClientSlot
  let path: String
  let metadata: RPCMetadata
  let waitForReady: Bool
  /// The whole request, when it is one message known from the start.
  let request: RPCMessage?
  var isRetried = false
}
