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

  /// One reference for all names: each call passes them along.
  private final class Names: Sendable {
    let service: String
    let name: String
    let path: String

    init(service: String, name: String) {
      self.service = service
      self.name = name
      self.path = "/\(service)/\(name)"
    }
  }

  private let names: Names
  public let kind: Kind
  public let safety: Safety

  /// Full name of the service, such as `memq.v1.IngestService`.
  public var service: String { self.names.service }
  public var name: String { self.names.name }
  /// `/service/name`, as it stands in the request.
  public var path: String { self.names.path }

  public init(service: String, name: String, kind: Kind, safety: Safety = .unknown) {
    self.names = Names(service: service, name: name)
    self.kind = kind
    self.safety = safety
  }

  public static func == (left: RPCMethod, right: RPCMethod) -> Bool {
    left.path == right.path && left.kind == right.kind && left.safety == right.safety
  }

  public func hash(into hasher: inout Hasher) {
    hasher.combine(self.path)
  }
}

extension RPCMethod: CustomStringConvertible {
  public var description: String { "\(self.service)/\(self.name)" }
}

extension RPCMethod {
  /// The request is exactly one message.
  var hasOneRequest: Bool { self.kind == .unary || self.kind == .serverStreaming }
}
