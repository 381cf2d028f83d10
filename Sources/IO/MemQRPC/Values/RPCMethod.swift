// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// The name and shape of one method.
public struct RPCMethod: Hashable, Sendable {
  public enum Kind: Sendable { case unary, clientStreaming, serverStreaming, bidirectional }

  /// Full name of the service, such as `memq.v1.IngestService`.
  public let service: String
  public let name: String
  public let kind: Kind
  /// `/service/name`, as it stands in the request.
  public let path: String

  public init(service: String, name: String, kind: Kind) {
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
