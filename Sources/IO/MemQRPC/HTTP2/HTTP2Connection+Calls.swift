// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CNghttp2
import NIOCore

/// Headers in and out: where streams begin and end.
extension HTTP2Connection {
  // MARK: Headers in

  // Frames stay where they are: the union is large, and these are called for every header.

  func beginHeaders(_ frame: UnsafePointer<nghttp2_frame>) -> Int32 {
    let head = frame.pointee.hd
    guard self.isServer, UInt32(head.type) == NGHTTP2_HEADERS.rawValue,
      frame.pointee.headers.cat == NGHTTP2_HCAT_REQUEST
    else { return 0 }
    // The rest of the block follows without any other frame in between: one head for all streams is enough.
    if self.requestHeadID != 0 { self.requestHead = RequestHead() }
    self.requestHeadID = head.stream_id
    let stream = NetStream(id: head.stream_id, on: self)
    self.link(stream)
    self.controlFrames.streamBegan()
    nghttp2_session_set_stream_user_data(
      self.session, stream.id, Unmanaged.passUnretained(stream).toOpaque())
    return 0
  }

  func header(
    _ frame: UnsafePointer<nghttp2_frame>, _ name: UnsafeBufferPointer<UInt8>,
    _ value: UnsafeBufferPointer<UInt8>
  ) -> Int32 {
    let profile = self.profile
    let id = frame.pointee.hd.stream_id
    let listBytesMax = profile.settings.headerListBytesMax
    if let routes = profile.routes {
      // Trailers of a request mean nothing to gRPC: the head is gone by then.
      guard id == self.requestHeadID else { return 0 }
      self.requestHead.add(name, value, routes: routes, listBytesMax: listBytesMax)
    } else {
      self.stream(id)?._withUnsafeGuaranteedRef {
        $0.responseHead?.add(name, value, listBytesMax: listBytesMax)
      }
    }
    return 0
  }

  func headersComplete(_ id: Int32, isEnd: Bool) {
    guard let found = self.stream(id) else { return }
    let stream = found.takeUnretainedValue()
    switch self.profile.role {
    case .server(_, let environment):
      if id == self.requestHeadID {
        self.requestHeadID = 0
        var head = RequestHead()
        swap(&head, &self.requestHead)
        self.beginCall(stream, head, environment, isEnd: isEnd)
      }
    case .client:
      if !isEnd && !stream.hasResponse { self.beginResponse(stream) }
    }
    if isEnd { stream.receivedEnd() }
  }

  private func beginCall(
    _ stream: NetStream, _ head: RequestHead, _ environment: ServerEnvironment, isEnd: Bool
  ) {
    if let refusal = head.refusal(listBytesMax: self.profile.settings.headerListBytesMax) {
      return self.refuse(stream, refusal)
    }
    let route = head.route!
    // Both times begin when the request was read: what then held it up is ours.
    stream.deadline = head.timeoutNanoseconds.map { self.readAt + .nanoseconds($0) }
    stream.agree(requestIsPacked: head.isPacked, peerTakesGzip: head.takesGzip)
    var context = RPCContext(
      method: route.method, metadata: head.metadata, deadline: stream.deadline,
      peer: self.peerName, peerIdentity: self.peerIdentity, core: stream,
      previousAttempts: head.previousAttempts)
    if let hooks = route.hooks {
      let refusal = hooks.before(&context, environment)
      stream.hooked = HookedCall(hooks: hooks, context: context, startedAt: self.readAt)
      if let refusal {
        stream.end = .refused
        return stream.refuse(refusal, httpStatus: nil)
      }
    }
    self.driver.addDeadline(stream)
    self.watchPeer()
    if !isEnd, route.method.hasOneRequest { stream.incompleteSince = self.readAt }
    let call = RPCServerCall(core: stream, context: context, environment: environment)
    stream.handler = .server(route.make(call))
  }

  private func refuse(_ stream: NetStream, _ refusal: RequestHead.Refusal) {
    switch refusal {
    case .grpc(let status): stream.refuse(status, httpStatus: nil)
    case .http(let httpStatus, let status): stream.refuse(status, httpStatus: httpStatus)
    }
  }

  private func beginResponse(_ stream: NetStream) {
    guard let head = stream.responseHead else { return }
    let max = self.profile.settings.headerListBytesMax
    if head.isInformational {
      stream.responseHead = ResponseHead()
      return
    }
    stream.responseBegan = true
    if let refusal = head.refusal(listBytesMax: max) { return stream.abort(refusal) }
    if head.isPacked { stream.acceptPacked() }
    stream.receivedHeaders(head.takeMetadata())
  }

  // MARK: Headers out, server

  /// Response headers; messages follow.
  func submitResponse(on stream: NetStream) {
    guard let session = self.session else { return }
    var provider = HTTP2Session.dataProvider
    self.markDirty()
    if stream.compression != .gzip && stream.responseMetadata.isEmpty {
      let headers = StaticHeaderList.responseOK
      nghttp2_submit_response(session, stream.id, headers.start, headers.count, &provider)
      return
    }
    self.headerBlock.removeAll()
    self.headerBlock.add(.statusOK)
    self.headerBlock.add(.contentType)
    if stream.compression == .gzip { self.headerBlock.add(.encodingGzip) }
    self.headerBlock.add(.acceptEncoding)
    self.headerBlock.add(stream.responseMetadata)
    self.headerBlock.withList { list, count in
      _ = nghttp2_submit_response(session, stream.id, list, count, &provider)
    }
  }

  /// The whole response in one frame: no messages, only a status.
  func submitTrailersOnly(_ status: RPCStatus, on stream: NetStream, httpStatus: String? = nil) {
    guard let session = self.session else { return }
    self.headerBlock.removeAll()
    if let httpStatus {
      self.headerBlock.add(":status", httpStatus)
    } else {
      self.headerBlock.add(.statusOK)
    }
    self.headerBlock.add(.contentType)
    self.headerBlock.add(.acceptEncoding)
    self.headerBlock.add(status)
    self.headerBlock.withList { list, count in
      _ = nghttp2_submit_response(session, stream.id, list, count, nil)
    }
    self.markDirty()
  }

  /// The status behind the messages.
  func submitTrailers(_ status: RPCStatus, on stream: NetStream) {
    guard let session = self.session else { return }
    if status.isOK && status.message.isEmpty && status.trailers.isEmpty {
      let trailers = StaticHeaderList.trailersOK
      nghttp2_submit_trailer(session, stream.id, trailers.start, trailers.count)
      return
    }
    self.headerBlock.removeAll()
    self.headerBlock.add(status)
    self.headerBlock.withList { list, count in
      _ = nghttp2_submit_trailer(session, stream.id, list, count)
    }
  }

  func frameSent(_ frame: UnsafePointer<nghttp2_frame>) -> Int32 {
    guard self.isServer else { return 0 }
    let head = frame.pointee.hd
    let type = UInt32(head.type)
    if type == NGHTTP2_HEADERS.rawValue || type == NGHTTP2_DATA.rawValue {
      self.pings.sentSomething()
    } else if type == NGHTTP2_GOAWAY.rawValue {
      self.noticeSent()
    }
    guard type == NGHTTP2_HEADERS.rawValue,
      head.flags & UInt8(NGHTTP2_FLAG_END_STREAM.rawValue) != 0,
      let stream = self.stream(head.stream_id)
    else { return 0 }
    let remoteClosed = stream._withUnsafeGuaranteedRef { $0.remoteClosed }
    if !remoteClosed {
      // The rest of the request is of no use; without this the stream would live until the client ends it.
      nghttp2_submit_rst_stream(self.session, 0, head.stream_id, NGHTTP2_NO_ERROR.rawValue)
    }
    return 0
  }

  // MARK: Headers out, client

  /// Opens a stream for the call. False: nghttp2 has no stream ids left, the connection is used up.
  func attach(_ stream: NetStream, _ start: ClientStart) -> Bool {
    guard let session = self.session, case .client(let authority) = self.profile.role else {
      return false
    }
    var provider = HTTP2Session.dataProvider
    self.headerBlock.removeAll()
    self.headerBlock.add(.post)
    self.headerBlock.add(self.profile.tls == nil ? .schemeHTTP : .schemeHTTPS)
    self.headerBlock.add(":path", start.path)
    self.headerBlock.add(":authority", authority)
    self.headerBlock.add(.teTrailers)
    self.headerBlock.add(.contentType)
    if stream.compression == .gzip { self.headerBlock.add(.encodingGzip) }
    self.headerBlock.add(.acceptEncoding)
    self.headerBlock.add(.userAgent)
    if let deadline = stream.deadline {
      let left = (deadline - .now()).nanoseconds
      self.headerBlock.add(
        "grpc-timeout", GRPCTimeout.format(nanoseconds: left), isIndexed: false)
    }
    if start.previousAttempts > 0 {
      self.headerBlock.add("grpc-previous-rpc-attempts", String(start.previousAttempts))
    }
    self.headerBlock.add(start.metadata)
    let id = self.headerBlock.withList { list, count in
      nghttp2_submit_request(
        session, nil, list, count, &provider, Unmanaged.passUnretained(stream).toOpaque())
    }
    guard id > 0 else { return false }
    stream.attached(to: self, id: id)
    self.link(stream)
    self.watchPeer()
    self.markDirty()
    return true
  }
}
