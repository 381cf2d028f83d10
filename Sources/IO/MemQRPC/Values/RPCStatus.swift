// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// How a call ended.
///
/// Client calls throw it when the code is not `ok`; handlers throw it to end a call with it.
public struct RPCStatus: Error, Sendable {
  public var code: RPCCode
  /// Text for people. Any Unicode; percent-encoded on the wire.
  public var message: String
  /// `grpc-status-details-bin`: an encoded google.rpc.Status, opaque to this module. Empty = absent.
  public var details: [UInt8]
  /// Custom metadata that came, or goes, with the status.
  public var trailers: RPCMetadata
  /// What the server says of further attempts: `grpc-retry-pushback-ms`.
  public var pushback: RPCPushback?
  /// The call found no connection: nothing of it was sent, so it can't have had an effect.
  public internal(set) var isUnsent = false

  public init(
    _ code: RPCCode, _ message: String = "", details: [UInt8] = [],
    trailers: RPCMetadata = RPCMetadata()
  ) {
    self.code = code
    self.message = message
    self.details = details
    self.trailers = trailers
  }

  public static let ok = RPCStatus(.ok)

  public var isOK: Bool { self.code == .ok }
}

extension RPCStatus: CustomStringConvertible {
  public var description: String {
    self.message.isEmpty ? "\(self.code)" : "\(self.code): \(self.message)"
  }
}

extension RPCStatus {
  /// Trailer names under which the transport states a limit and the value that broke it.
  public static let limitTrailer = "memq-limit"
  public static let actualTrailer = "memq-actual"

  /// `text`, or its beginning and an ellipsis when it has more than `bytes` bytes of UTF-8.
  public static func shortened(_ text: String, toBytes bytes: Int) -> String {
    guard text.utf8.count > bytes else { return text }
    var short = String.UnicodeScalarView()
    var left = bytes - 3
    for scalar in text.unicodeScalars {
      left -= UTF8.width(scalar)
      if left < 0 { break }
      short.append(scalar)
    }
    return String(short) + "…"
  }

  /// A limit was broken: `RESOURCE_EXHAUSTED` with both numbers, in the text and as trailers.
  public static func overLimit(_ what: String, limit: Int, actual: Int) -> RPCStatus {
    var trailers = RPCMetadata()
    trailers.add(Self.limitTrailer, String(limit))
    trailers.add(Self.actualTrailer, String(actual))
    return RPCStatus(
      .resourceExhausted, "\(what) is \(actual) bytes, the limit is \(limit) bytes",
      trailers: trailers)
  }

  static let deadlineExceeded = RPCStatus(.deadlineExceeded, "the deadline passed")
  static let cancelled = RPCStatus(.cancelled, "the call was cancelled")
}
