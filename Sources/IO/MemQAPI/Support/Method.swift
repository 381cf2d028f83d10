// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQRPC
public import SwiftProtobuf

/// One method with the types of its messages.
public struct Method<
  Request: SwiftProtobuf.Message & Sendable, Response: SwiftProtobuf.Message & Sendable
>:
  Sendable
{
  public let rpc: RPCMethod

  public init(
    service: String, name: String, kind: RPCMethod.Kind, safety: RPCMethod.Safety = .unknown
  ) {
    self.rpc = RPCMethod(service: service, name: name, kind: kind, safety: safety)
  }
}
