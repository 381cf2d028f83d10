// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// What the first bytes of a connection say about the peer.
enum Preface: Equatable {
  case http2
  case http1
  /// A ClientHello where no TLS is spoken.
  case tls
  case tooShort
  case other

  private static let magic = Array("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".utf8)

  /// Decides as soon as the bytes allow it; the rest of an HTTP/2 preface is nghttp2's to check.
  static func judge(_ bytes: some Collection<UInt8>) -> Preface {
    let head = bytes.prefix(Self.magic.count)
    if Self.magic.starts(with: head) {
      return head.count >= 4 ? .http2 : .tooShort
    }
    if head.first == PlaintextGuard.handshakeRecord { return .tls }
    // "METHOD " of HTTP/1; the longest registered method has 17 letters.
    for byte in head {
      if byte == UInt8(ascii: " ") { return head.first == byte ? .other : .http1 }
      guard byte >= UInt8(ascii: "A"), byte <= UInt8(ascii: "Z") else { return .other }
    }
    return head.count < Self.magic.count ? .tooShort : .other
  }

  static func http1Answer(isSecure: Bool) -> String {
    let body =
      "This port speaks gRPC over HTTP/2, \(isSecure ? "with" : "without") TLS. Use a gRPC client.\n"
    return "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"
      + "Content-Length: \(body.utf8.count)\r\n\r\n\(body)"
  }

  /// What a server says that answers HTTP/2 with HTTP/1: its last line, or its first when the rest is none; nil: it is no HTTP/1.
  static func http1Text(_ bytes: ByteBuffer) -> String? {
    guard bytes.readableBytesView.starts(with: "HTTP/1.".utf8) else { return nil }
    let head = bytes.readableBytesView.prefix(1024)
    guard head.allSatisfy({ $0 >= 0x20 && $0 <= 0x7e || $0 == 10 || $0 == 13 }) else {
      return "HTTP/1"
    }
    let lines = String(decoding: head, as: UTF8.self).split { $0.isNewline }
    let isText = lines.last.map { !$0.contains("<") && !$0.contains(": ") } ?? false
    return (isText ? lines.last : lines.first).map(String.init)
  }

  /// The shortest HTTP/2 that says why a connection cannot be: empty SETTINGS and a GOAWAY with INADEQUATE_SECURITY and `text`.
  ///
  /// It does not say that no stream was seen: clients would repeat their calls at once and for ever, and never tell anybody.
  static func goAway(_ text: String) -> ByteBuffer {
    var bytes = ByteBuffer()
    bytes.writeBytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    let length = UInt32(8 + text.utf8.count)
    bytes.writeInteger(length << 8 | 7)
    bytes.writeBytes([0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 12])
    bytes.writeString(text)
    return bytes
  }
}
