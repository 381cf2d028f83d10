// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// The name and shape of one method.
public struct RPCMethod: Hashable, Sendable {
  public enum Kind: Sendable { case unary, clientStreaming, serverStreaming, bidirectional }

  /// What a second run of a call does: protobuf's `idempotency_level`.
  public enum Safety: Sendable {
    case unknown
    /// It changes nothing.
    case noSideEffects
    /// Twice is as good as once.
    case idempotent
  }

  /// Full name of the service, such as `memq.v1.IngestService`.
  public let service: String
  public let name: String
  public let kind: Kind
  public let safety: Safety
  /// `/service/name`, as it stands in the request.
  public let path: String

  public init(service: String, name: String, kind: Kind, safety: Safety = .unknown) {
    self.safety = safety
    self.service = service
    self.name = name
    self.kind = kind
    self.path = "/\(service)/\(name)"
  }
}

extension RPCMethod: CustomStringConvertible {
  public var description: String { "\(self.service)/\(self.name)" }
}

extension RPCMethod {
  /// The request is exactly one message.
  var hasOneRequest: Bool { self.kind == .unary || self.kind == .serverStreaming }
}
