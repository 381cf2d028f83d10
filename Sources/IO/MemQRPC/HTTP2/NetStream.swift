// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CNghttp2
import NIOCore

/// One call over the network: a stream of an HTTP/2 connection, of either role. Carries out what its
/// ``StreamMachine`` decides.
///
/// Ownership: the connection's list owns it from the moment nghttp2 knows of the stream until nghttp2 closes
/// the stream, or the connection ends. nghttp2 holds a plain pointer to it for exactly that time.
///
/// Exclusivity checks are off for what is touched per frame: nothing calls out while it is inside the machine.
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
  @exclusivity(unchecked) unowned(unsafe) var connection: HTTP2Connection?
  @exclusivity(unchecked) private(set) var id: Int32 = 0

  let isServer: Bool
  @exclusivity(unchecked) private var machine: StreamMachine
  @exclusivity(unchecked) var handler = Handler.none

  /// Client: headers and trailers while they arrive. A server's are with the connection.
  @exclusivity(unchecked) var responseHead: ResponseHead?
  /// Response headers came.
  override var hasResponse: Bool { self.responseBegan }
  @exclusivity(unchecked) var responseBegan = false
  /// Server: custom metadata of the response's headers.
  private(set) var responseMetadata = RPCMetadata()

  /// What a client call needs to be attached, once or again.
  var start: ClientStart?

  /// Server: what waits for the call's end.
  var hooked: HookedCall?
  /// Server: since when a message is on its way that is not whole.
  @exclusivity(unchecked) var incompleteSince: NIODeadline?

  /// Parts of the connection's sums of received bytes.
  @exclusivity(unchecked) private var accountedUnconsumed = 0
  @exclusivity(unchecked) private var accountedPartial = 0
  /// How what we send is encoded.
  @exclusivity(unchecked) private(set) var compression = RPCCompression.identity
  private var peerTakesGzip = false
  /// The peer has ended its side (client: with this status), and messages before that wait to be unpacked.
  private var heldEnd: RPCStatus?
  private var heldIsDue = false
  private var isWaitingToUnpack = false
  private var accountedHeld = 0
  /// What to tell the handler at the end of the turn.
  private var pendingEnd: RPCStatus?
  private var roomIsDue = false
  private var isWaitingForTurnEnd = false

  /// A client's call.
  init(
    driver: LoopDriver, windowBytes: Int, maxMessageBytes: Int, compression: RPCCompression
  ) {
    self.isServer = false
    self.responseHead = ResponseHead()
    self.compression = compression
    self.machine = StreamMachine(
      side: .client, windowBytes: windowBytes, sendMaxBytes: maxMessageBytes,
      receiveMaxBytes: maxMessageBytes)
    super.init(driver: driver)
  }

  /// A call that arrives at a server.
  init(id: Int32, on connection: HTTP2Connection) {
    self.isServer = true
    let profile = connection.profile
    self.machine = StreamMachine(
      side: .server, windowBytes: profile.settings.windowBytes,
      sendMaxBytes: profile.maxMessageBytes, receiveMaxBytes: profile.maxMessageBytes)
    self.id = id
    super.init(driver: connection.driver)
    self.connection = connection
  }

  var isOver: Bool { self.machine.isOver }
  var remoteClosed: Bool { self.machine.remoteClosed }

  // MARK: Sending

  override var queuedBytes: Int { self.machine.queuedBytes }

  override func enqueue(_ message: RPCMessage) -> Bool {
    switch self.machine.send(self.compression == .identity ? message : self.packed(message)) {
    case .ignored: return false
    case .refused(let status):
      self.stop(status)
      return false
    case .queued(let hasRoom):
      self.counts.messagesSent += 1
      self.counts.bytesSent += message.byteCount
      self.startOutput()
      return hasRoom
    }
  }

  /// What is too large is refused for what it is, not for what it could be made.
  private func packed(_ message: RPCMessage) -> RPCMessage {
    message.byteCount <= self.machine.sendMaxBytes ? self.driver.gzip.pack(message) : message
  }

  override func compress(_ compression: RPCCompression) {
    guard self.isServer, self.peerTakesGzip, self.machine.isUnanswered else { return }
    self.compression = compression
  }

  /// A send broke a limit of ours: the call ends for both sides.
  private func stop(_ status: RPCStatus) {
    guard self.isServer else { return self.abort(status) }
    self.machine.dropQueued()
    self.finish(status)
  }

  override func callWritableSoon() {
    self.machine.oweRoom()
    self.noteRoomIfDue()
  }

  override func sendHeaders(_ metadata: RPCMetadata) {
    guard self.machine.awaitsHeaders else { return }
    self.responseMetadata = metadata
    self.startOutput()
  }

  override func halfClose() {
    self.machine.halfClose()
    self.startOutput()
  }

  override func finish(_ status: RPCStatus) {
    self.machine.finish(status)
    self.startOutput()
  }

  private func startOutput() {
    guard let connection = self.connection else { return }
    switch self.machine.output() {
    case .nothing: break
    case .resume: connection.resume(self)
    case .response: connection.submitResponse(on: self)
    case .trailersOnly(let status): connection.submitTrailersOnly(status, on: self)
    }
  }

  /// nghttp2 asks for up to `limit` bytes of DATA. Answers the length, or a negative nghttp2 error.
  func readForFrame(_ limit: Int, _ flags: UnsafeMutablePointer<UInt32>) -> Int {
    switch self.machine.nextFrame(upTo: limit) {
    case .invalid: return Int(NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE.rawValue)
    case .deferred: return Int(NGHTTP2_ERR_DEFERRED.rawValue)
    case .data(let count, let isLast):
      flags.pointee |= NGHTTP2_DATA_FLAG_NO_COPY.rawValue
      guard isLast else { return count }
      flags.pointee |= NGHTTP2_DATA_FLAG_EOF.rawValue
      if self.isServer {
        flags.pointee |= NGHTTP2_DATA_FLAG_NO_END_STREAM.rawValue
        self.connection?.submitTrailers(self.machine.finalStatus, on: self)
      }
      return count
    }
  }

  /// Writes the bytes promised to nghttp2 for one frame.
  func writeFrame(_ length: Int, to output: inout FrameOutput) {
    var left = length
    while left > 0, let piece = self.machine.takePiece(upTo: left) {
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
    self.noteRoomIfDue()
  }

  private func noteRoomIfDue() {
    guard self.machine.takeRoom() else { return }
    self.roomIsDue = true
    self.askForTurnEnd()
  }

  // MARK: Server: the beginning

  /// What the request's headers say of encodings.
  func agree(requestIsPacked: Bool, peerTakesGzip: Bool) {
    self.peerTakesGzip = peerTakesGzip
    if requestIsPacked { self.machine.acceptPacked() }
  }

  /// The request's headers are no call a handler could take.
  func refuse(_ status: RPCStatus, httpStatus: String?) {
    self.machine.refused(status)
    self.connection?.submitTrailersOnly(status, on: self, httpStatus: httpStatus)
  }

  // MARK: Receiving

  /// Client: the response's headers.
  func receivedHeaders(_ metadata: RPCMetadata) {
    guard !metadata.isEmpty, case .client(let handler) = self.handler else { return }
    handler.receivedHeaders(metadata)
  }

  /// DATA of this stream. The connection's credit was returned already.
  func receive(_ bytes: ByteBuffer) {
    var input = bytes
    do throws(RPCStatus) {
      while input.readableBytes > 0, !self.machine.isOver {
        guard let message = try self.machine.receive(&input) else { break }
        self.deliver(message)
      }
      if self.machine.holdsMessages { self.unpack() }
      self.account()
      self.payCredit()
      if self.accountedPartial > 0, let connection = self.connection, connection.isOverPartialLimit
      {
        // Waiting could not help: the rest of these messages is what would be waited for.
        throw RPCStatus(
          .resourceExhausted, "too many unfinished messages are on their way on this connection")
      }
    } catch {
      self.abort(error)
    }
    if input.readableBytes > 0 { self.connection?.returnCredit(input.readableBytes, of: self) }
  }

  override func consume(_ bytes: Int) {
    self.machine.consumed(bytes)
    self.account()
    self.payCredit()
    if self.machine.holdsMessages {
      self.heldIsDue = true
      self.askForTurnEnd()
    }
  }

  // MARK: Receiving what may be packed

  /// Client: the response's headers say so.
  func acceptPacked() {
    self.machine.acceptPacked()
  }

  private func deliver(_ message: RPCMessage) {
    self.account()
    self.counts.messagesReceived += 1
    self.counts.bytesReceived += message.byteCount
    switch self.handler {
    case .server(let handler): handler.received(message)
    case .client(let handler): handler.received(message)
    case .none: break
    }
  }

  /// Gives the handler messages that came before, as far as it, and this turn, have room.
  private func unpack() {
    do throws(RPCStatus) {
      self.account()
      while self.connection?.mayUnpack ?? true,
        let message = try self.machine.nextHeld(by: self.driver.gzip)
      {
        self.deliver(message)
      }
    } catch {
      return self.abort(error)
    }
    guard !self.machine.isOver else { return }
    self.account()
    self.payCredit()
    if self.machine.heldIsReady {
      guard !self.isWaitingToUnpack else { return }
      self.isWaitingToUnpack = true
      if let connection = self.connection, !connection.mayUnpack {
        connection.unpackWhenRoom(self)
      } else {
        self.driver.unpackLater(self)
      }
    } else if !self.machine.holdsMessages, let status = self.heldEnd.take() {
      self.completed(status)
    }
  }

  /// In a later turn.
  func unpackMore() {
    self.isWaitingToUnpack = false
    guard !self.machine.isOver else { return }
    self.unpack()
  }

  /// The connection has room again.
  func unpackSoon() {
    self.isWaitingToUnpack = false
    self.heldIsDue = true
    self.askForTurnEnd()
  }

  private func payCredit() {
    let due = self.machine.takeCredit()
    if due > 0 { self.connection?.returnCredit(due, of: self) }
  }

  /// Keeps the connection's sums right.
  private func account() {
    let held = self.machine.heldBytes
    if held != self.accountedHeld {
      self.connection?.heldBytes += held - self.accountedHeld
      self.accountedHeld = held
    }
    let unconsumed = self.machine.unconsumedBytes
    if unconsumed != self.accountedUnconsumed {
      self.connection?.unconsumedBytesChanged(by: unconsumed - self.accountedUnconsumed)
      self.accountedUnconsumed = unconsumed
    }
    let partial = self.machine.partialBytes
    if partial != self.accountedPartial {
      self.connection?.partialBytes += partial - self.accountedPartial
      if partial == 0 {
        self.incompleteSince = nil
      } else if self.accountedPartial == 0 && self.incompleteSince == nil {
        self.incompleteSince = self.connection?.readAt
      }
      self.accountedPartial = partial
    }
  }

  /// The peer will send no more data.
  func receivedEnd() {
    self.incompleteSince = nil
    switch self.machine.remoteEnded() {
    case .ignored: break
    case .truncated(let status):
      if self.isServer { return self.abort(status) }
      // A server that gives up in the middle of a message says why.
      let headerMax = self.connection?.profile.settings.headerListBytesMax ?? .max
      let told = self.responseHead?.status(listBytesMax: headerMax) ?? status
      self.receivedStatus(told.isOK ? status : told)
    case .complete:
      let headerMax = self.connection?.profile.settings.headerListBytesMax ?? .max
      let status = self.responseHead?.status(listBytesMax: headerMax) ?? .ok
      if self.machine.holdsMessages {
        self.heldEnd = status
      } else {
        self.completed(status)
      }
    }
  }

  /// All the peer sent is with the handler.
  private func completed(_ status: RPCStatus) {
    guard !self.machine.isOver else { return }
    if case .server(let handler) = self.handler {
      handler.halfClosed()
    } else {
      self.receivedStatus(status)
    }
  }

  private func receivedStatus(_ status: RPCStatus) {
    // The server is done before we are: the rest of the request is of no use.
    if !self.machine.localEnded { self.connection?.reset(self, NGHTTP2_NO_ERROR.rawValue) }
    self.tell(status)
  }

  // MARK: The end

  /// Ends the call now: the peer gets a status (server) or a reset, the handler hears of it at the end of the turn.
  override func abort(_ status: RPCStatus) {
    guard !self.machine.isOver else { return }
    self.end = RPCCallEnd(abortedWith: status)
    let wasEnded = self.machine.localEnded
    self.machine.abort(status)
    if self.isServer {
      if !wasEnded { self.sendStatusNow() }
    } else {
      self.connection?.reset(self, NGHTTP2_CANCEL.rawValue)
    }
    self.end(with: status)
  }

  private func sendStatusNow() {
    guard let connection = self.connection else { return }
    switch self.machine.output() {
    case .response, .trailersOnly: connection.submitTrailersOnly(self.machine.finalStatus, on: self)
    case .resume, .nothing:
      if connection.sendWindow(of: self) > 0 {
        connection.resume(self)
      } else {
        // Without window nghttp2 does not ask for data, so trailers would never follow.
        connection.reset(self, NGHTTP2_CANCEL.rawValue)
      }
    }
  }

  override func deadlinePassed() {
    self.abort(.deadlineExceeded)
  }

  /// The handler hears `status` at the end of the turn: the end may have been asked for from inside it.
  func end(with status: RPCStatus) {
    guard self.release() else { return }
    if self.end == .answered { self.end = RPCCallEnd(abortedWith: status) }
    self.pendingEnd = status
    self.askForTurnEnd()
  }

  /// Tells the handler at once. Only where no handler can be on the stack.
  private func tell(_ status: RPCStatus) {
    guard self.release() else { return }
    self.deliverEnd(status)
  }

  /// Server: ends the call when its message has been on its way for too long, and nothing of ours holds it up.
  func giveUpIncomplete(at now: NIODeadline, after limit: Duration, isHeldUp: Bool) {
    guard let since = self.incompleteSince, !self.machine.isOver else { return }
    if isHeldUp || self.accountedUnconsumed > 0 {
      self.incompleteSince = now
    } else if now - since > limit.timeAmount {
      self.abort(
        RPCStatus(.deadlineExceeded, "a message of the request did not come whole within \(limit)"))
    }
  }

  private func release() -> Bool {
    guard self.machine.end() else { return false }
    self.heldEnd = nil
    self.driver.removeDeadline(self)
    self.account()
    if !self.machine.remoteClosed { self.payCredit() }
    return true
  }

  private func deliverEnd(_ status: RPCStatus) {
    let handler = self.handler
    self.handler = .none
    self.noteRoom()
    if let start = self.start.take() { start.slot.ended(self) }
    switch handler {
    case .server(let handler): handler.ended(status)
    case .client(let handler): handler.ended(status, trailers: status.trailers)
    case .none: break
    }
  }

  /// nghttp2 has closed the stream; the connection has dropped it from its list.
  func closed(_ errorCode: UInt32) {
    if self.isServer {
      let wasAnswered = self.machine.localEnded
      if !wasAnswered, self.end == .answered { self.end = .resetByPeer }
      self.report(wasAnswered ? self.machine.finalStatus.code : .cancelled)
      self.tell(
        wasAnswered
          ? self.machine.finalStatus : RPCStatus(.cancelled, "the peer cancelled the call"))
    } else if !self.machine.isOver {
      if self.heldEnd != nil { return self.leave() }
      let farewell = self.connection?.farewell
      if errorCode == NGHTTP2_REFUSED_STREAM.rawValue, self.retry() { return }
      self.end = errorCode == NGHTTP2_REFUSED_STREAM.rawValue ? .refused : .resetByPeer
      self.tell(farewell.map { RPCStatus(.unavailable, $0) } ?? Self.status(forReset: errorCode))
    }
  }

  /// A server call is over, for those who count.
  private func report(_ code: RPCCode) {
    if let hooked = self.hooked.take() { hooked.ended(code, self) }
  }

  /// The connection is gone.
  func lost(_ reason: String) {
    if self.isServer {
      if self.end == .answered { self.end = .connectionLost }
      self.report(.cancelled)
      self.tell(RPCStatus(.cancelled, reason))
    } else if self.heldEnd != nil {
      self.leave()
    } else {
      self.end = .connectionLost
      self.tell(RPCStatus(.unavailable, reason))
    }
  }

  /// Client: the connection has no more part in a call whose response is whole and waits for its handler.
  private func leave() {
    self.connection?.heldBytes -= self.accountedHeld
    self.connection?.unconsumedBytesChanged(by: -self.accountedUnconsumed)
    self.connection = nil
    self.accountedHeld = 0
    self.accountedUnconsumed = 0
    self.unpackSoon()
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
    if self.heldIsDue {
      self.heldIsDue = false
      if !self.machine.isOver { self.unpack() }
    }
    guard self.roomIsDue else { return }
    self.roomIsDue = false
    guard !self.machine.isOver else { return }
    self.noteRoom()
    switch self.handler {
    case .server(let handler): handler.writable()
    case .client(let handler): handler.writable()
    case .none: break
    }
  }

  // MARK: Client: attached, and attached again

  func attached(to connection: HTTP2Connection, id: Int32) {
    self.connection = connection
    self.id = id
    self.machine.attached()
  }

  private func rewound(_ request: RPCMessage) -> RPCMessage {
    self.compression == .identity ? request : self.packed(request)
  }

  /// The server never saw the call: it goes out again. Once on a connection that goes on, as the server has reached a limit of
  /// streams; several times when the connection takes no more calls, as after each GOAWAY another connection is asked.
  private func retry() -> Bool {
    let moves = self.connection?.acceptsCalls == false
    guard let start = self.start, !self.hasResponse,
      moves ? start.moves < ClientStart.movesMax : !start.isRetried,
      self.machine.rewind(to: start.request.map { self.rewound($0) })
    else { return false }
    if moves { self.start?.moves += 1 } else { self.start?.isRetried = true }
    self.connection = nil
    self.id = 0
    start.slot.begin(self)
    return true
  }
}

/// How a client call begins. Apart from the stream, of which a server has most: above 1 KiB each allocation is several times as dear.
final class ClientStart {
  let slot: ClientSlot
  let path: String
  let metadata: RPCMetadata
  let waitForReady: Bool
  /// The whole request, when it is one message known from the start.
  let request: RPCMessage?
  let previousAttempts: Int
  /// It was refused once by a connection that takes others.
  var isRetried = false
  /// Connections that went away before the call reached the server.
  var moves = 0
  /// Restarts of a server, one right after another, that a call lives through.
  static let movesMax = 5

  init(
    slot: ClientSlot, path: String, metadata: RPCMetadata, waitForReady: Bool,
    request: RPCMessage?, previousAttempts: Int
  ) {
    self.slot = slot
    self.path = path
    self.metadata = metadata
    self.waitForReady = waitForReady
    self.request = request
    self.previousAttempts = previousAttempts
  }
}
