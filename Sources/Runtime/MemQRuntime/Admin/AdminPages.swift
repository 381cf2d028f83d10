// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Hummingbird
import MemQTelemetry
import NIOCore

/// What the admin pages say.
enum AdminPages {
  static func router(
    _ registry: PrometheusRegistry, _ readiness: @escaping @Sendable () -> [AdminServer.Check]
  ) -> Router<BasicRequestContext> {
    let router = Router()
    router.get("/") { _, _ in
      Self.response(.ok, "text/plain; charset=utf-8", "memq: /metrics /healthz /readyz\n")
    }
    router.get("/metrics") { _, _ in
      Self.response(.ok, "text/plain; version=0.0.4; charset=utf-8", registry.exposition())
    }
    router.get("/healthz") { _, _ in Self.response(.ok, "text/plain; charset=utf-8", "ok\n") }
    router.get("/readyz") { _, _ in
      let checks = readiness()
      let isReady = checks.allSatisfy { $0.problem == nil }
      return Self.response(
        isReady ? .ok : .serviceUnavailable, "application/json", Self.json(checks, isReady))
    }
    return router
  }

  /// `{"ready":false,"checks":[{"check":"volume","ok":false,"problem":"…"}]}`.
  static func json(_ checks: [AdminServer.Check], _ isReady: Bool) -> String {
    let items = checks.map { check in
      let problem = check.problem.map { ",\"problem\":\(jsonText($0))" } ?? ""
      return "{\"check\":\(jsonText(check.check)),\"ok\":\(check.problem == nil)\(problem)}"
    }
    return "{\"ready\":\(isReady),\"checks\":[\(items.joined(separator: ","))]}\n"
  }

  private static func response(
    _ status: HTTPResponse.Status, _ type: String, _ text: String
  ) -> Response {
    Response(
      status: status, headers: [.contentType: type, .cacheControl: "no-store"],
      body: ResponseBody(byteBuffer: ByteBuffer(string: text)))
  }
}

/// A JSON string with its quotes.
func jsonText(_ text: String) -> String {
  var quoted = "\""
  for scalar in text.unicodeScalars {
    switch scalar {
    case "\"": quoted += "\\\""
    case "\\": quoted += "\\\\"
    case "\n": quoted += "\\n"
    default:
      if scalar.value < 0x20 {
        let hex = String(scalar.value, radix: 16)
        quoted += "\\u" + String(repeating: "0", count: 4 - hex.utf8.count) + hex
      } else {
        quoted.unicodeScalars.append(scalar)
      }
    }
  }
  return quoted + "\""
}
