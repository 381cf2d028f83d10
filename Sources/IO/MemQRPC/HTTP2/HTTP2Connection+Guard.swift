// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CNghttp2
import Logging
import NIOCore

/// Watching over a connection: whether the peer is there, what it does, how old the connection is.
extension HTTP2Connection {
  // MARK: Keepalive

  /// Runs while calls are open: a peer, or a path, that is silently gone is noticed.
  func watchPeer() {
    guard !self.keepaliveIsRunning || self.keepaliveIsIdle else { return }
    self.keepaliveIsRunning = true
    self.bytesReadSinceTick = false
    self.isAwaitingPong = false
    self.scheduleTick()
  }

  /// Outdated ticks do nothing: a call that begins must not wait for the next look at an idle connection.
  private func scheduleTick(after wait: Duration? = nil) {
    let settings = self.profile.settings
    self.keepaliveIsIdle = self.openStreams == 0
    let interval =
      (self.keepaliveIsIdle ? settings.keepaliveIdleInterval : nil) ?? settings.keepaliveInterval
    self.keepaliveGeneration &+= 1
    let generation = self.keepaliveGeneration
    self.schedule(
      at: .after(wait ?? interval * self.keepaliveFactor),
      while: { $0.keepaliveGeneration == generation }
    ) { $0.tick() }
  }

  private func tick() {
    guard self.phase == .open || self.phase == .draining else { return }
    let settings = self.profile.settings
    let isAlive = self.bytesReadSinceTick
    self.bytesReadSinceTick = false
    if !isAlive && self.isAwaitingPong { return self.close("the peer does not answer") }
    if self.isServer { self.giveUpIncompleteMessages() }
    guard self.openStreams > 0 || settings.keepaliveIdleInterval != nil else {
      self.isAwaitingPong = false
      self.keepaliveIsRunning = false
      return
    }
    self.isAwaitingPong = !isAlive
    if isAlive {
      self.scheduleTick()
    } else {
      nghttp2_submit_ping(self.session, 0, nil)
      self.markDirty()
      self.scheduleTick(after: settings.keepaliveTimeout)
    }
  }

  private func giveUpIncompleteMessages() {
    let now = NIODeadline.now()
    var cursor = self.firstStream
    while let stream = cursor {
      cursor = stream.next
      // Without credit for the connection no stream of it comes on.
      let isHeldUp = self.withheldCredit > 0
      stream.giveUpIncomplete(
        at: now, after: self.profile.limits.messageTimeout, isHeldUp: isHeldUp)
    }
  }

  // MARK: What a peer may not do

  func countControlFrame() {
    if self.isServer, !self.controlFrames.spend() { self.expel("control_frames") }
  }

  func judgePing() {
    guard self.isServer else { return }
    let isBorne = self.pings.received(
      at: self.readAt, hasCalls: self.openStreams > 0, self.profile.limits)
    if !isBorne { self.expel("too_many_pings") }
  }

  /// Ends the connection for what its peer does, and tells it why.
  private func expel(_ why: String) {
    guard let session = self.session, self.mustClose == nil,
      case .server(_, let environment) = self.profile.role
    else { return }
    let text = Array(why.utf8)
    nghttp2_submit_goaway(
      session, 0, nghttp2_session_get_last_proc_stream_id(session),
      NGHTTP2_ENHANCE_YOUR_CALM.rawValue, text, text.count)
    self.mustClose = "the peer was sent away: \(why)"
    self.profile.logger.debug(
      "Peer sent away", metadata: ["peer": "\(self.peerName)", "why": "\(why)"])
    environment.observer?.peerExpelled(why)
    self.markDirty()
  }

  /// Notes that a frame is not whole, and looks again when its time is over.
  func watchOwedFrame() {
    guard self.phase != .closed, self.frames.isOwed else { return }
    if self.owedFrame != self.frames.completed {
      self.owedFrame = self.frames.completed
      self.owedSince = self.readAt
      self.owedIsLate = false
    }
    guard !self.owedIsWatched else { return }
    self.owedIsWatched = true
    let due = self.owedSince + self.profile.limits.frameTimeout.timeAmount
    self.schedule(at: due) { $0.owedFrameIsDue() }
  }

  private func owedFrameIsDue() {
    self.owedIsWatched = false
    guard self.phase == .open || self.phase == .draining, self.frames.isOwed,
      self.owedFrame == self.frames.completed
    else { return }
    let due = self.owedSince + self.profile.limits.frameTimeout.timeAmount
    if due > .now() {
      self.watchOwedFrame()
    } else if self.owedIsLate {
      self.expel("frame_timeout")
    } else {
      // After a stall of ours timers run before sockets are read: the rest may be there already.
      self.owedIsLate = true
      self.owedIsWatched = true
      self.schedule(at: .now() + .seconds(1)) { $0.owedFrameIsDue() }
    }
  }

  // MARK: Age

  /// Begins to count the connection's age, and its time without calls.
  func watchAge() {
    if self.isServer, let max = self.profile.limits.ageMax {
      let age = max.timeAmount.nanoseconds
      // Connections that were made at once must not all end at once.
      let wait = Int64(Double(age) * Double.random(in: 0.9...1.1))
      self.schedule(at: .now() + .nanoseconds(wait)) { connection in
        connection.drain(deadline: .after(connection.profile.limits.ageGrace))
      }
    }
    if let max = self.profile.idleMax {
      self.idleSince = .now()
      self.lookForIdleness(at: self.idleSince + max.timeAmount)
    }
  }

  /// One timer however many calls come and go.
  private func lookForIdleness(at time: NIODeadline) {
    self.schedule(at: time) { connection in
      guard let max = connection.profile.idleMax else { return }
      let now = NIODeadline.now()
      let due = (connection.openStreams > 0 ? now : connection.idleSince) + max.timeAmount
      if due > now { return connection.lookForIdleness(at: due) }
      // A call may begin while the notice is on its way: it gets the time of any other.
      let profile = connection.profile
      let grace = connection.isServer ? profile.limits.ageGrace : profile.settings.keepaliveTimeout
      connection.drain(deadline: .after(grace))
    }
  }

  /// The timer of a connection that ended stays with its loop until it is due: so none is set for more than a minute at a time.
  ///
  /// - Parameter isCurrent: asked each time; false ends it.
  private func schedule(
    at deadline: NIODeadline,
    while isCurrent: @escaping @Sendable (HTTP2Connection) -> Bool = { _ in true },
    _ body: @escaping @Sendable (HTTP2Connection) -> Void
  ) {
    let next = min(deadline, .now() + .seconds(60))
    self.context?.eventLoop.scheduleTask(deadline: next) { [timers] in
      guard let connection = timers.connection, isCurrent(connection) else { return }
      if next < deadline {
        connection.schedule(at: deadline, while: isCurrent, body)
      } else {
        body(connection)
      }
    }
  }
}
