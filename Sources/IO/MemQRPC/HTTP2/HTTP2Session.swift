// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CNghttp2

/// Making nghttp2 sessions: options against hostile peers, and the table of C callbacks.
///
/// Every callback gets the connection by `user_data` and streams by their id, never by a pointer in a data
/// source, which may outlive the stream. The table is written once and only read then.
enum HTTP2Session {
  /// A peer may reset so many streams at once, and so many a second after that; then it gets a GOAWAY.
  private static let resetBurst: UInt64 = 1000
  private static let resetsPerSecond: UInt64 = 33
  /// CONTINUATION frames of one header block.
  private static let continuationsMax = 8
  /// Entries of one SETTINGS frame.
  private static let settingsMax = 32
  /// Acknowledgements of PING and SETTINGS that the peer has not read.
  private static let outboundAcksMax = 1000

  static func make(server: Bool, owner: UnsafeMutableRawPointer) -> OpaquePointer {
    var options: OpaquePointer?
    precondition(nghttp2_option_new(&options) == 0, "out of memory")
    nghttp2_option_set_no_auto_window_update(options, 1)
    nghttp2_option_set_stream_reset_rate_limit(options, self.resetBurst, self.resetsPerSecond)
    nghttp2_option_set_max_continuations(options, self.continuationsMax)
    nghttp2_option_set_max_settings(options, self.settingsMax)
    nghttp2_option_set_max_outbound_ack(options, self.outboundAcksMax)
    nghttp2_option_set_max_send_header_block_length(options, 1 << 20)
    nghttp2_option_set_no_closed_streams(options, 1)
    defer { nghttp2_option_del(options) }
    var session: OpaquePointer?
    let result =
      server
      ? nghttp2_session_server_new2(&session, self.callbacks.table, owner, options)
      : nghttp2_session_client_new2(&session, self.callbacks.table, owner, options)
    precondition(result == 0, "nghttp2 cannot make a session: out of memory")
    return session!
  }

  private struct Table: @unchecked Sendable {
    let table: OpaquePointer
  }

  private static let callbacks: Table = {
    var table: OpaquePointer?
    precondition(nghttp2_session_callbacks_new(&table) == 0, "out of memory")
    let all = table!
    nghttp2_session_callbacks_set_on_begin_headers_callback(all) { _, frame, owner in
      HTTP2Connection.with(owner) { $0.beginHeaders(frame!) }
    }
    nghttp2_session_callbacks_set_on_header_callback(all) {
      _, frame, name, nameLength, value, valueLength, _, owner in
      HTTP2Connection.with(owner) {
        $0.header(
          frame!, UnsafeBufferPointer(start: name, count: nameLength),
          UnsafeBufferPointer(start: value, count: valueLength))
      }
    }
    nghttp2_session_callbacks_set_on_frame_recv_callback(all) { _, frame, owner in
      HTTP2Connection.with(owner) { $0.frameReceived(frame!) }
    }
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(all) {
      _, _, id, bytes, count, owner in
      HTTP2Connection.with(owner) { $0.dataReceived(id, bytes!, count) }
    }
    nghttp2_session_callbacks_set_on_stream_close_callback(all) { _, id, code, owner in
      HTTP2Connection.with(owner) { $0.streamClosed(id, code) }
    }
    nghttp2_session_callbacks_set_on_frame_send_callback(all) { _, frame, owner in
      HTTP2Connection.with(owner) { $0.frameSent(frame!) }
    }
    nghttp2_session_callbacks_set_send_data_callback(all) { _, frame, head, length, _, owner in
      HTTP2Connection.with(owner) { $0.sendData(frame!.pointee.hd.stream_id, head!, length) }
    }
    nghttp2_session_callbacks_set_data_source_read_length_callback(all) {
      _, _, _, connectionWindow, streamWindow, frameMax, owner in
      HTTP2Connection.with(owner) {
        let window = min(Int(connectionWindow), Int(streamWindow))
        return min(window, Int(frameMax), $0.frameBytes)
      }
    }
    return Table(table: all)
  }()

  /// The source of every stream's DATA frames.
  static var dataProvider: nghttp2_data_provider {
    nghttp2_data_provider(source: nghttp2_data_source()) {
      _, id, _, length, flags, _, owner in
      HTTP2Connection.with(owner) { $0.readData(id, length, flags!) }
    }
  }
}
