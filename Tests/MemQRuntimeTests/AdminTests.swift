// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import FoundationNetworking
import Logging
import MemQModel
import MemQTelemetry
import Metrics
import Synchronization
import Testing

@testable import MemQRuntime

private func get(
  _ address: ListenAddress, _ path: String
) async throws -> (status: Int, type: String, body: String) {
  let url = try #require(URL(string: "http://\(address)\(path)"))
  let (data, response) = try await URLSession.shared.data(from: url)
  let http = try #require(response as? HTTPURLResponse)
  return (
    http.statusCode, http.value(forHTTPHeaderField: "Content-Type") ?? "",
    String(decoding: data, as: UTF8.self)
  )
}

@Suite struct AdminTests {
  @Test func `the pages say over HTTP what they should`() async throws {
    let registry = PrometheusRegistry()
    Counter(label: "memq_test_hits", factory: registry).increment(by: 5)
    let problem = Mutex<String?>("still \"starting\"")
    let server = try await AdminServer.start(
      on: try ListenAddress("127.0.0.1:0"), registry: registry, logger: Logger(label: "test")
    ) { [("volume", nil), ("cluster", problem.withLock { $0 })] }
    let metrics = try await get(server.address, "/metrics")
    #expect(metrics.status == 200)
    #expect(metrics.type.hasPrefix("text/plain; version=0.0.4"))
    #expect(Exposition(metrics.body).value("memq_test_hits_total") == 5)
    #expect(try await get(server.address, "/healthz").status == 200)
    #expect(try await get(server.address, "/").body.contains("/readyz"))
    #expect(try await get(server.address, "/nothing").status == 404)
    let unready = try await get(server.address, "/readyz")
    #expect(unready.status == 503)
    #expect(unready.type == "application/json")
    #expect(
      unready.body
        == #"{"ready":false,"checks":[{"check":"volume","ok":true},{"check":"cluster","ok":false,"problem":"still \"starting\""}]}"#
        + "\n")
    problem.withLock { $0 = nil }
    #expect(try await get(server.address, "/readyz").status == 200)
    await server.stop()
  }

  @Test func `a taken port is named`() async throws {
    let first = try await AdminServer.start(
      on: try ListenAddress("127.0.0.1:0"), logger: Logger(label: "test")
    ) { [] }
    let error = await #expect(throws: MemQError.self) {
      try await AdminServer.start(on: first.address, logger: Logger(label: "test")) { [] }
    }
    #expect(error?.code == .addressInUse)
    #expect(error?.subject == first.address.description)
    await first.stop()
  }
}
