// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CNghttp2
import Logging
import NIOCore
import NIOSSL
import NIOTLS

/// One HTTP/2 connection of either role: a channel handler around one nghttp2 session.
///
/// Rules that keep nghttp2 safe:
/// - `nghttp2_session_mem_recv` and `mem_send` run under `isInSession` and never inside each other; callbacks
///   only submit, resume and consume. The session is deleted outside of both.
/// - Output leaves once a turn, after the loop's jobs: `turnEnded`.
/// - The list of streams owns them; nghttp2's pointers to them die with `streamClosed` or the session.
///
/// Exclusivity checks are off for what is touched per frame.
final class HTTP2Connection: ChannelInboundHandler, TurnEnd, @unchecked Sendable {
  typealias InboundIn = ByteBuffer
  typealias OutboundOut = ByteBuffer

  enum Phase {
    /// Server: the first bytes have not come, or not been understood.
    case opening
    /// Server: the peer does not speak HTTP/2 and was told; what it still sends is dropped.
    case rejecting
    case open
    /// No new calls; closes when the open ones have ended.
    case draining
    /// Server: all calls have ended and all was said; what was written is on its way, what still comes is dropped.
    case lingering
    case closed
  }

  let profile: ConnectionProfile
  private let lease: LoopDriver.Lease
  let driver: LoopDriver
  @exclusivity(unchecked) private(set) var phase = Phase.opening
  /// Called once, when the connection is over.
  var onClose: ((HTTP2Connection) -> Void)?
  /// Client: the peer's settings came, or it sent a GOAWAY.
  var onSettings: (() -> Void)?
  var onGoAway: ((HTTP2Connection) -> Void)?

  @exclusivity(unchecked) var session: OpaquePointer?
  var context: ChannelHandlerContext?
  @exclusivity(unchecked) var firstStream: NetStream?
  @exclusivity(unchecked) private(set) var openStreams = 0
  @exclusivity(unchecked) private var isInSession = false
  @exclusivity(unchecked) private var isDirty = false
  @exclusivity(unchecked) var mustClose: String?

  // Input
  private var early = ByteBuffer()
  @exclusivity(unchecked) private var input = ByteBuffer()
  @exclusivity(unchecked) private var inputBase: UnsafeRawPointer?
  @exclusivity(unchecked) private var unconsumedBytes = 0
  /// Of those, what the server's budget was told.
  @exclusivity(unchecked) private var budgetedBytes = 0
  /// Of messages that are not whole yet, over all streams.
  @exclusivity(unchecked) var partialBytes = 0
  @exclusivity(unchecked) private(set) var withheldCredit = 0
  /// Of those not consumed: packed ones, which no handler has.
  @exclusivity(unchecked) var heldBytes = 0
  /// Calls whose packed messages wait until handlers have taken what is unpacked.
  private var waitingToUnpack: [NetStream] = []
  @exclusivity(unchecked) private var emptyFrames = 0
  /// When bytes were read last.
  @exclusivity(unchecked) private(set) var readAt = NIODeadline.distantPast
  @exclusivity(unchecked) private(set) var frames = FrameTracker(prefaceBytes: 24)
  /// The frame that was not whole when `owedSince` was noted.
  var owedFrame = -1
  var owedSince = NIODeadline.distantPast
  var owedIsWatched = false
  /// Its time is over, and it was looked at once since.
  var owedIsLate = false
  @exclusivity(unchecked) var pings = PingPolice()
  @exclusivity(unchecked) var controlFrames = ControlFrameBudget()

  // Output
  @exclusivity(unchecked) private var output = FrameOutput()
  @exclusivity(unchecked) private var isWritable = true
  @exclusivity(unchecked) private var didPause = false
  /// Output between flushes: a channel, and all the more a TLS handler, tells of fullness only then. A TLS handler keeps a buffer
  /// as large as what it once encrypted at a time.
  private let flushBytes: Int
  /// Largest DATA frame we make.
  let frameBytes: Int
  @exclusivity(unchecked) var headerBlock = HeaderBlock()

  /// Server: the headers of the request that is arriving, and its stream; 0: none.
  @exclusivity(unchecked) var requestHead = RequestHead()
  @exclusivity(unchecked) var requestHeadID: Int32 = 0

  // Liveness
  let timers = Timers()
  private(set) var settingsReceived = false
  @exclusivity(unchecked) var bytesReadSinceTick = false
  var isAwaitingPong = false
  var keepaliveIsRunning = false
  var keepaliveIsIdle = false
  var keepaliveGeneration = 0
  var keepaliveFactor = 1
  private(set) var wasToldTooManyPings = false
  @exclusivity(unchecked) var idleSince = NIODeadline.distantPast
  private var drainTimer: Scheduled<Void>?
  private var drainDeadline = NIODeadline.distantFuture
  private var isLeaving = false
  private var finalGoAwaySent = false
  private(set) var peerName = ""
  /// What the peer's certificate says; nil: it showed none.
  private(set) var peerIdentity: RPCPeerIdentity?
  /// TLS: the handshake is done, and the peer agreed to HTTP/2.
  private var hasAgreedToHTTP2 = false
  /// Why the connection ended, where more is known than that it did.
  @exclusivity(unchecked) private(set) var farewell: String?

  init(profile: ConnectionProfile, lease: LoopDriver.Lease) {
    self.profile = profile
    self.lease = lease
    self.driver = lease.driver
    self.flushBytes = profile.tls == nil ? 1 << 20 : 128 << 10
    self.frameBytes = min(profile.settings.frameBytes, profile.tls == nil ? .max : 64 << 10)
  }

  /// What timers hold: cleared when the connection ends. A weak reference to the connection itself would make every
  /// retain of it slow.
  final class Timers: @unchecked Sendable {
    var connection: HTTP2Connection?
  }

  static func with<R>(
    _ owner: UnsafeMutableRawPointer?, _ body: (HTTP2Connection) -> R
  ) -> R {
    Unmanaged<HTTP2Connection>.fromOpaque(owner!)._withUnsafeGuaranteedRef { body($0) }
  }

  var isServer: Bool {
    switch self.profile.role {
    case .server: true
    case .client: false
    }
  }

  /// New calls may be attached.
  var acceptsCalls: Bool { self.phase == .open && self.mustClose == nil }

  // MARK: Channel life

  func handlerAdded(context: ChannelHandlerContext) {
    self.context = context
    self.timers.connection = self
    if context.channel.isActive { self.begin(context) }
  }

  func channelActive(context: ChannelHandlerContext) {
    self.begin(context)
    context.fireChannelActive()
  }

  private func begin(_ context: ChannelHandlerContext) {
    guard self.session == nil, self.phase == .opening else { return }
    self.peerName = context.channel.peerDescription
    let loop = context.eventLoop
    loop.scheduleTask(in: self.profile.prefaceTimeout.timeAmount) { [timers] in
      timers.connection?.prefaceIsDue(loop, isLast: false)
    }
    if !self.isServer { self.openSession() }
  }

  /// Looks twice: after a loop was busy for long its timers come before what waits in its sockets.
  private func prefaceIsDue(_ loop: any EventLoop, isLast: Bool) {
    guard !self.settingsReceived else { return }
    guard isLast else {
      let wait = min(self.profile.prefaceTimeout, .seconds(1)).timeAmount
      loop.scheduleTask(in: wait) { [timers] in
        timers.connection?.prefaceIsDue(loop, isLast: true)
      }
      return
    }
    if !self.isServer {
      self.farewell =
        "\(self.profile.target) does not speak HTTP/2: nothing came for \(self.profile.prefaceTimeout)"
    }
    self.close("no HTTP/2 preface came in time")
  }

  private func openSession() {
    let session = HTTP2Session.make(
      server: self.isServer, owner: Unmanaged.passUnretained(self).toOpaque())
    self.session = session
    self.phase = .open
    let settings = self.profile.settings
    var entries = [
      nghttp2_settings_entry(NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, settings.windowBytes),
      nghttp2_settings_entry(NGHTTP2_SETTINGS_MAX_FRAME_SIZE, settings.frameBytes),
      nghttp2_settings_entry(NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, settings.headerListBytesMax),
    ]
    if self.isServer {
      entries.append(
        nghttp2_settings_entry(
          NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, self.profile.maxConcurrentStreams))
    } else {
      entries.append(nghttp2_settings_entry(NGHTTP2_SETTINGS_ENABLE_PUSH, 0))
    }
    nghttp2_submit_settings(session, 0, entries, entries.count)
    // The connection's window is never the bottleneck before a stream's is: its credit returns at receipt.
    nghttp2_session_set_local_window_size(
      session, 0, 0, Int32(max(settings.windowBytes, 1 << 20)))
    self.markDirty()
    self.watchAge()
    if settings.keepaliveIdleInterval != nil { self.watchPeer() }
  }

  func channelInactive(context: ChannelHandlerContext) {
    self.over("the connection was lost")
    context.fireChannelInactive()
  }

  func handlerRemoved(context: ChannelHandlerContext) {
    self.over("the connection was closed")
    self.context = nil
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    guard self.phase != .closed, self.phase != .rejecting else { return }
    if let tls = self.profile.tls { self.noteFailure(of: tls, error, context) }
    self.profile.logger.debug(
      "Connection failed", metadata: ["peer": "\(self.peerName)", "error": "\(error)"])
    self.close("the connection failed: \(error)")
  }

  private func noteFailure(of tls: RPCTLS, _ error: any Error, _ context: ChannelHandlerContext) {
    if self.isServer && self.phase == .opening && !self.hasAgreedToHTTP2 {
      let certificate = try? context.pipeline.syncOperations.nioSSL_peerCertificate()
      if let reason = TLSFailure.server(error, certificate: certificate) {
        tls.noteFailure(peer: self.peerName, reason)
      }
    } else {
      self.farewell = TLSFailure.later(error, target: self.profile.target, tls: tls)
    }
  }

  func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
    if case ChannelEvent.inputClosed = event { return self.close("the peer closed the connection") }
    if event is PlaintextGuard.PlaintextPeer { self.phase = .rejecting }
    if case TLSUserEvent.handshakeCompleted(let negotiated) = event {
      self.hasAgreedToHTTP2 = negotiated == TLSMaterial.applicationProtocol
      self.identifyPeer(context)
    }
    context.fireUserInboundEventTriggered(event)
  }

  /// Server: takes down what the client's certificate says, once.
  private func identifyPeer(_ context: ChannelHandlerContext) {
    guard let certificate = try? context.pipeline.syncOperations.nioSSL_peerCertificate() else {
      return
    }
    self.peerIdentity = RPCPeerIdentity(certificate)
  }

  /// Closes without ado; every call fails.
  func close(_ reason: String) {
    guard self.phase != .closed else { return }
    if self.isInSession {
      self.mustClose = self.mustClose ?? reason
      return
    }
    let context = self.context
    self.over(reason)
    context?.close(promise: nil)
  }

  /// Ends every call and the session, once.
  private func over(_ reason: String) {
    guard self.phase != .closed else { return }
    let reason = self.farewell ?? reason
    precondition(!self.isInSession, "the session ends while it runs")
    self.phase = .closed
    self.timers.connection = nil
    self.drainTimer?.cancel()
    self.drainTimer = nil
    while let stream = self.firstStream {
      self.unlink(stream)
      stream.lost(reason)
      if stream.connection === self { stream.connection = nil }
    }
    self.resumeUnpacking()
    if let session = self.session { nghttp2_session_del(session) }
    self.session = nil
    let onClose = self.onClose
    self.onClose = nil
    self.onSettings = nil
    self.onGoAway = nil
    onClose?(self)
    self.driver.readEnded()
  }

  // MARK: The list of streams

  func link(_ stream: NetStream) {
    stream.next = self.firstStream
    self.firstStream?.previous = stream
    self.firstStream = stream
    self.openStreams += 1
  }

  func unlink(_ stream: NetStream) {
    let next = stream.next
    next?.previous = stream.previous
    if let previous = stream.previous {
      previous.next = next
    } else {
      self.firstStream = next
    }
    stream.next = nil
    stream.previous = nil
    self.openStreams -= 1
    if self.openStreams == 0 { self.idleSince = max(self.idleSince, self.readAt) }
  }

  func stream(_ id: Int32) -> Unmanaged<NetStream>? {
    guard let session = self.session,
      let pointer = nghttp2_session_get_stream_user_data(session, id)
    else { return nil }
    return Unmanaged<NetStream>.fromOpaque(pointer)
  }

  // MARK: Input

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    var bytes = self.unwrapInboundIn(data)
    self.driver.readBegan()
    self.bytesReadSinceTick = true
    self.readAt = .now()
    if self.phase == .rejecting || self.phase == .lingering { return }
    if self.phase == .opening {
      self.early.writeBuffer(&bytes)
      guard self.understandPreface(context) else { return }
      bytes = self.early
      self.early = ByteBuffer()
    }
    self.feed(bytes)
  }

  /// False: more bytes are needed, or the peer does not speak HTTP/2 and was told.
  private func understandPreface(_ context: ChannelHandlerContext) -> Bool {
    switch Preface.judge(self.early.readableBytesView) {
    case .http2 where self.profile.tls != nil && !self.hasAgreedToHTTP2:
      self.profile.logger.debug(
        "A TLS client that did not ask for HTTP/2", metadata: ["peer": "\(self.peerName)"])
      self.reject(context, with: Preface.goAway("ALPN h2 is required"))
      return false
    case .http2:
      self.openSession()
      return true
    case .tooShort: return false
    case .http1:
      self.reject(
        context,
        with: ByteBuffer(string: Preface.http1Answer(isSecure: self.profile.tls != nil)))
      return false
    case .tls:
      self.profile.logger.debug(
        "A TLS client at a port without TLS", metadata: ["peer": "\(self.peerName)"])
      self.close("the peer speaks TLS")
      return false
    case .other:
      self.close("the peer does not speak HTTP/2")
      return false
    }
  }

  private func reject(_ context: ChannelHandlerContext, with answer: ByteBuffer) {
    self.phase = .rejecting
    self.early = ByteBuffer()
    context.writeAndFlush(self.wrapOutboundOut(answer), promise: nil)
    // Closing both ways at once could reset the connection before the peer has read the answer.
    context.close(mode: .output, promise: nil)
    context.eventLoop.scheduleTask(in: .seconds(1)) { [timers] in
      timers.connection?.close("the peer does not speak what this port does")
    }
  }

  private func feed(_ bytes: ByteBuffer) {
    guard let session = self.session, self.phase != .closed else { return }
    if !self.isServer, !self.settingsReceived, let answer = Preface.http1Text(bytes) {
      self.farewell =
        "\(self.profile.target) does not speak HTTP/2 like this; it answers: \(answer)"
      return self.close("the peer speaks HTTP/1")
    }
    self.input = bytes
    self.isInSession = true
    let result = bytes.withUnsafeReadableBytes { pointer -> Int in
      self.inputBase = pointer.baseAddress
      if self.isServer { self.frames.advance(pointer) }
      return nghttp2_session_mem_recv(
        session, pointer.baseAddress?.assumingMemoryBound(to: UInt8.self), pointer.count)
    }
    self.inputBase = nil
    self.input = ByteBuffer()
    self.isInSession = false
    if result < 0 {
      self.profile.logger.debug(
        "Peer broke HTTP/2",
        metadata: [
          "peer": "\(self.peerName)",
          "error": "\(String(cString: nghttp2_strerror(Int32(result))))",
        ])
      // nghttp2 may have a GOAWAY that says why.
      self.drainOutput()
      self.close("the peer broke the HTTP/2 protocol")
    }
    self.closeIfAsked()
    if self.isServer { self.watchOwedFrame() }
  }

  func channelReadComplete(context: ChannelHandlerContext) {
    self.markDirty()
    self.driver.readEnded()
    context.fireChannelReadComplete()
  }

  /// A slice of the buffer being read, without a copy.
  private func slice(_ bytes: UnsafePointer<UInt8>, _ count: Int) -> ByteBuffer {
    let offset = UnsafeRawPointer(bytes) - self.inputBase!
    return self.input.getSlice(at: self.input.readerIndex + offset, length: count)!
  }

  // MARK: nghttp2 callbacks while reading

  func dataReceived(_ id: Int32, _ bytes: UnsafePointer<UInt8>, _ count: Int) -> Int32 {
    self.emptyFrames = 0
    // Only whole messages count: were credit withheld for unfinished ones, they could never be finished.
    if self.holdsBack {
      if self.withheldCredit == 0 { self.notePause() }
      self.withheldCredit += count
    } else {
      nghttp2_session_consume_connection(self.session, count)
    }
    guard let stream = self.stream(id) else {
      nghttp2_session_consume_stream(self.session, id, count)
      return 0
    }
    let slice = self.slice(bytes, count)
    stream._withUnsafeGuaranteedRef { $0.receive(slice) }
    return 0
  }

  func frameReceived(_ frame: UnsafePointer<nghttp2_frame>) -> Int32 {
    let head = frame.pointee.hd
    let isEnd = head.flags & UInt8(NGHTTP2_FLAG_END_STREAM.rawValue) != 0
    switch UInt32(head.type) {
    case NGHTTP2_HEADERS.rawValue:
      self.headersComplete(head.stream_id, isEnd: isEnd)
    case NGHTTP2_DATA.rawValue:
      if isEnd {
        self.stream(head.stream_id)?._withUnsafeGuaranteedRef { $0.receivedEnd() }
      } else if head.length == 0 {
        self.countEmptyFrame()
      }
    case NGHTTP2_SETTINGS.rawValue:
      if head.flags & UInt8(NGHTTP2_FLAG_ACK.rawValue) == 0 {
        self.receivedSettings()
        self.countControlFrame()
      }
    case NGHTTP2_PING.rawValue:
      if head.flags & UInt8(NGHTTP2_FLAG_ACK.rawValue) != 0 {
        self.receivedPong(frame.pointee.ping)
      } else {
        self.judgePing()
      }
    case NGHTTP2_WINDOW_UPDATE.rawValue, NGHTTP2_PRIORITY.rawValue:
      self.countControlFrame()
    case NGHTTP2_GOAWAY.rawValue:
      if !self.isServer { self.farewell = self.farewellText(frame.pointee.goaway) }
      if self.phase == .open { self.phase = .draining }
      self.onGoAway?(self)
    default: break
    }
    return 0
  }

  /// Empty frames cost the sender nothing and carry nothing.
  private func countEmptyFrame() {
    self.emptyFrames += 1
    if self.emptyFrames == 1000 {
      nghttp2_session_terminate_session(self.session, NGHTTP2_ENHANCE_YOUR_CALM.rawValue)
    }
  }

  /// Why the server ends the connection, when it is for more than its own leave.
  private func farewellText(_ frame: nghttp2_goaway) -> String? {
    guard frame.error_code != NGHTTP2_NO_ERROR.rawValue else { return self.farewell }
    let bytes = UnsafeBufferPointer(start: frame.opaque_data, count: frame.opaque_data_len)
    self.wasToldTooManyPings = bytes.elementsEqual("too_many_pings".utf8)
    let isText = bytes.allSatisfy { $0 >= 0x20 && $0 <= 0x7e }
    let text = isText ? String(decoding: bytes.prefix(256), as: UTF8.self) : ""
    return "\(self.profile.target) ended the connection"
      + (text.isEmpty ? " (HTTP/2 error \(frame.error_code))" : ": \(text)")
  }

  private func receivedSettings() {
    guard !self.settingsReceived else { return }
    self.settingsReceived = true
    self.onSettings?()
  }

  func streamClosed(_ id: Int32, _ code: UInt32) -> Int32 {
    guard let found = self.stream(id) else { return 0 }
    let stream = found.takeUnretainedValue()
    nghttp2_session_set_stream_user_data(self.session, id, nil)
    self.unlink(stream)
    stream.closed(code)
    // A call that went out again may be on this very connection, under another id.
    if stream.connection === self && stream.id == id { stream.connection = nil }
    return 0
  }

  // MARK: What streams ask for

  /// Streams call it when bytes waiting for their handlers become more or fewer.
  func unconsumedBytesChanged(by delta: Int) {
    self.unconsumedBytes += delta
    if let budget = self.profile.budget {
      let change = self.unconsumedBytes - self.budgetedBytes
      if abs(change) >= ReceiveBudget.stepBytes || self.unconsumedBytes == 0 && change != 0 {
        budget.changed(by: change)
        self.budgetedBytes = self.unconsumedBytes
      }
    }
    if delta < 0, self.withheldCredit > 0, !self.holdsBack {
      nghttp2_session_consume_connection(self.session, self.withheldCredit)
      self.withheldCredit = 0
      self.markDirty()
    }
    if delta < 0, !self.waitingToUnpack.isEmpty, self.mayUnpack { self.resumeUnpacking() }
  }

  /// Packed messages may become unpacked ones. With nothing delivered always: no handler would make room.
  var mayUnpack: Bool { self.unconsumedBytes == self.heldBytes || !self.holdsBack }

  func unpackWhenRoom(_ stream: NetStream) {
    self.waitingToUnpack.append(stream)
  }

  private func resumeUnpacking() {
    let waiting = self.waitingToUnpack
    self.waitingToUnpack = []
    for stream in waiting { stream.unpackSoon() }
  }

  /// No more data for now. One with nothing unconsumed always goes on: nobody would tell it that others have made room.
  private var holdsBack: Bool {
    guard self.unconsumedBytes > 0 else { return false }
    return self.unconsumedBytes > self.profile.settings.unconsumedBytesMax
      || self.profile.budget?.isSpent == true
  }

  private func notePause() {
    guard self.unconsumedBytes <= self.profile.settings.unconsumedBytesMax,
      case .server(_, let environment) = self.profile.role
    else { return }
    environment.observer?.receivingPaused()
  }

  var isOverPartialLimit: Bool { self.partialBytes > self.profile.settings.partialBytesMax }

  func returnCredit(_ count: Int, of stream: NetStream) {
    guard self.session != nil, stream.id != 0 else { return }
    nghttp2_session_consume_stream(self.session, stream.id, count)
    self.markDirty()
  }

  func resume(_ stream: NetStream) {
    guard self.session != nil else { return }
    nghttp2_session_resume_data(self.session, stream.id)
    self.markDirty()
  }

  func reset(_ stream: NetStream, _ code: UInt32) {
    guard self.session != nil else { return }
    nghttp2_submit_rst_stream(self.session, 0, stream.id, code)
    self.markDirty()
  }

  func sendWindow(of stream: NetStream) -> Int {
    guard let session = self.session else { return 0 }
    return Int(
      min(
        nghttp2_session_get_remote_window_size(session),
        nghttp2_session_get_stream_remote_window_size(session, stream.id)))
  }

  // MARK: Output

  /// Frames are, or may be, waiting: write them at the end of the turn.
  func markDirty() {
    guard !self.isDirty else { return }
    self.isDirty = true
    self.driver.atTurnEnd(self)
  }

  func turnEnded() {
    self.isDirty = false
    self.drainOutput()
    self.closeIfAsked()
    self.closeIfDrained()
  }

  /// Writes what nghttp2 has, at most 16 MiB a turn; the rest in the next, so that other connections get theirs.
  private func drainOutput() {
    guard let session = self.session, !self.isInSession, let context = self.context else { return }
    for _ in 0..<16 {
      self.didPause = false
      self.isInSession = true
      self.collectFrames(session)
      self.isInSession = false
      guard self.output.byteCount > 0 else { return }
      self.output.takeBuffers { context.write(self.wrapOutboundOut($0), promise: nil) }
      context.flush()
      guard self.didPause, self.isWritable, self.phase != .closed else { return }
    }
    self.markDirty()
  }

  private func collectFrames(_ session: OpaquePointer) {
    while true {
      var bytes: UnsafePointer<UInt8>?
      let count = nghttp2_session_mem_send(session, &bytes)
      if count < 0 {
        self.mustClose = "nghttp2 failed: \(String(cString: nghttp2_strerror(Int32(count))))"
        return
      }
      guard count > 0, let bytes else { return }
      self.output.writeFrameHead(UnsafeRawBufferPointer(start: bytes, count: count))
    }
  }

  /// nghttp2 asks a stream for DATA. Pausing keeps the frame in nghttp2's queue: control frames still leave.
  func readData(_ id: Int32, _ limit: Int, _ flags: UnsafeMutablePointer<UInt32>) -> Int {
    if !self.isWritable || self.output.byteCount >= self.flushBytes {
      self.didPause = true
      return Int(NGHTTP2_ERR_PAUSE.rawValue)
    }
    guard let stream = self.stream(id) else {
      return Int(NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE.rawValue)
    }
    return stream._withUnsafeGuaranteedRef { $0.readForFrame(limit, flags) }
  }

  func sendData(_ id: Int32, _ head: UnsafePointer<UInt8>, _ length: Int) -> Int32 {
    guard let stream = self.stream(id) else {
      return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE.rawValue
    }
    self.controlFrames.sent(length)
    self.output.writeFrameHead(UnsafeRawBufferPointer(start: head, count: 9))
    stream._withUnsafeGuaranteedRef { $0.writeFrame(length, to: &self.output) }
    return 0
  }

  func channelWritabilityChanged(context: ChannelHandlerContext) {
    self.isWritable = context.channel.isWritable
    if self.isWritable { self.markDirty() }
    context.fireChannelWritabilityChanged()
  }

  private func closeIfAsked() {
    guard !self.isInSession, let reason = self.mustClose.take() else { return }
    // A GOAWAY may say why.
    self.drainOutput()
    self.close(reason)
  }

  private func closeIfDrained() {
    guard let session = self.session, !self.isInSession else { return }
    if nghttp2_session_want_read(session) == 0 && nghttp2_session_want_write(session) == 0 {
      if self.phase == .draining && self.isServer {
        self.linger()
      } else if self.phase != .lingering {
        self.close("the connection was shut down")
      }
    } else if self.phase == .draining && !self.isServer && self.openStreams == 0 {
      self.close("the server is shutting down")
    }
  }

  // MARK: Draining

  /// For a peer that does not close its side, once everything has left.
  private static let lingerMax: TimeAmount = .seconds(10)

  /// nghttp2 has handed everything over, but the channel may still hold megabytes of it. Closing now would drop them; and closing while
  /// the peer still sends would make the kernel drop what it holds. So: write it all, say that nothing follows, and wait for the peer.
  private func linger() {
    guard let context = self.context else { return }
    self.phase = .lingering
    if self.drainTimer == nil {
      // The peer said goodbye first: it is given time to read, and not for ever.
      let grace = self.profile.limits.ageGrace.timeAmount
      self.drainTimer = context.eventLoop.scheduleTask(in: grace) { [timers] in
        timers.connection?.close("the connection was shut down")
      }
    }
    let written = context.eventLoop.makePromise(of: Void.self)
    context.writeAndFlush(self.wrapOutboundOut(ByteBuffer()), promise: written)
    let timers = self.timers
    written.futureResult.whenComplete { _ in
      guard let connection = timers.connection, let context = connection.context else { return }
      context.close(mode: .output, promise: nil)
      context.eventLoop.scheduleTask(in: Self.lingerMax) {
        timers.connection?.close("the connection was shut down")
      }
    }
  }

  /// The bytes of the drain's PING: answers to those of keepalive say nothing of the notice.
  private static let drainPing = Array("memqgoes".utf8)

  private func receivedPong(_ frame: nghttp2_ping) {
    guard self.isLeaving, self.isServer else { return }
    let isDrains = withUnsafeBytes(of: frame.opaque_data) { $0.elementsEqual(Self.drainPing) }
    if isDrains { self.sendFinalGoAway() }
  }

  /// Server: tells the peer to open no more streams, waits a round trip for those on their way, and closes when all
  /// have ended, or at `deadline`.
  func drain(deadline: NIODeadline) {
    guard let context = self.context, self.phase != .closed else { return }
    let hasCalls = self.phase == .open || self.phase == .draining
    guard self.session != nil, hasCalls || self.phase == .lingering else {
      return self.close("the server is shutting down")
    }
    if deadline < self.drainDeadline {
      self.drainDeadline = deadline
      self.drainTimer?.cancel()
      self.drainTimer = context.eventLoop.scheduleTask(deadline: deadline) { [timers] in
        timers.connection?.close("the server is shutting down")
      }
    }
    guard self.phase == .open else { return }
    self.phase = .draining
    self.isLeaving = true
    if self.isServer {
      nghttp2_submit_shutdown_notice(self.session)
    }
    self.markDirty()
  }

  /// PINGs overtake GOAWAYs that wait: sent only now, its answer says that the peer has seen the notice.
  func noticeSent() {
    guard self.isLeaving, !self.finalGoAwaySent else { return }
    nghttp2_submit_ping(self.session, 0, Self.drainPing)
  }

  /// From here on nghttp2 refuses new streams, and wants nothing more once the open ones are done.
  private func sendFinalGoAway() {
    guard let session = self.session, !self.finalGoAwaySent else { return }
    self.finalGoAwaySent = true
    nghttp2_submit_goaway(
      session, 0, nghttp2_session_get_last_proc_stream_id(session), NGHTTP2_NO_ERROR.rawValue, nil,
      0)
    self.markDirty()
  }
}

extension nghttp2_settings_entry {
  fileprivate init(_ id: nghttp2_settings_id, _ value: Int) {
    self.init(settings_id: Int32(id.rawValue), value: UInt32(value))
  }
}
