// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQRPC
import MemQRuntime
import MemQTelemetry
import NIOCore
import NIOPosix
import Testing

/// What calls leave in the metrics of both sides.
@Suite(.timeLimit(.minutes(5))) struct RPCMetricsTests {
  @Test func `calls are counted by method, code, bytes and what ended them`() async throws {
    let method = RPCMethod(service: "memq.v1.TestService", name: "Echo", kind: .unary)
    let registry = PrometheusRegistry()
    let metrics = RPCMetrics(factory: registry)
    var router = RPCRouter()
    router.unary(method) { request, _ in
      if request.isEmpty { throw RPCStatus(.notFound, "nothing") }
      return request
    }
    router.intercept(metrics.serverInterceptor)
    router.intercept(.bearer { $0 == "good" ? RPCPrincipal(name: "good") : nil })
    let logger = Logger(label: "test")
    let group = MultiThreadedEventLoopGroup.singleton
    let server = try await RPCServer.start(
      router: router, on: "127.0.0.1:0", group: group, logger: logger)
    let channel = RPCInterceptedChannel(
      RPCNetworkChannel(target: server.localAddress, group: group, logger: logger),
      [
        metrics.clientInterceptor,
        RPCClientInterceptor(before: { _, options in
          if options.metadata.isEmpty { options.metadata.add("authorization", "Bearer good") }
        }),
      ])
    for _ in 0..<3 {
      _ = try await channel.unary(method, RPCMessage(bytes: [1, 2, 3, 4]))
    }
    _ = try? await channel.unary(method, RPCMessage())
    var stranger = RPCCallOptions()
    stranger.metadata.add("authorization", "Bearer bad")
    _ = try? await channel.unary(method, RPCMessage(bytes: [1]), stranger)
    await channel.close(deadline: .seconds(5))
    await server.shutdown(deadline: .seconds(5))

    let page = registry.exposition()
    for prefix in ["memq_rpc", "memq_rpc_client"] {
      let lines = [
        "\(prefix)_calls_total{code=\"OK\",method=\"TestService/Echo\"} 3",
        "\(prefix)_calls_total{code=\"NOT_FOUND\",method=\"TestService/Echo\"} 1",
        "\(prefix)_calls_total{code=\"UNAUTHENTICATED\",method=\"TestService/Echo\"} 1",
        "\(prefix)_call_duration_seconds_count{method=\"TestService/Echo\"} 5",
        "\(prefix)_calls_in_flight 0",
      ]
      for line in lines { #expect(page.contains(line), "\(line)") }
    }
    #expect(
      page.contains(
        "memq_rpc_message_bytes_total{direction=\"sent\",method=\"TestService/Echo\"} 12"))
    #expect(page.contains("memq_rpc_resets_total{reason=\"refused\"} 1"))
  }
}
