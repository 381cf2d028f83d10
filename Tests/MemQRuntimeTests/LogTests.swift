// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Logging
import Synchronization
import Testing

@testable import MemQTelemetry

private final class Lines: LogSink {
  private let lines = Mutex<[String]>([])
  func write(_ line: String) { self.lines.withLock { $0.append(line) } }
  var all: [String] { self.lines.withLock { $0 } }
}

private func logger(_ control: LogControl, _ lines: Lines) -> Logger {
  Logger(label: "memq.test") {
    StructuredLogHandler(
      label: $0, control: control, sink: lines,
      now: { LogTime(seconds: 1_769_843_289, milliseconds: 7) })
  }
}

@Suite struct LogTests {
  @Test func `a text line is one line, with its metadata sorted and quoted where needed`() {
    let lines = Lines()
    var logger = logger(LogControl(), lines)
    logger[metadataKey: "node"] = "7"
    logger.notice(
      "Replica left the ISR",
      metadata: [
        "partition": "t/0", "lag.ms": "31000", "error": "no \"route\"\nat all", "empty": "",
      ])
    #expect(
      lines.all == [
        #"2026-01-31T07:08:09.007Z notice memq.test Replica left the ISR empty="" error="no \"route\"\nat all" lag.ms=31000 node=7 partition=t/0"#
          + "\n"
      ])
  }

  @Test func `a JSON line parses and holds everything`() throws {
    let lines = Lines()
    let logger = logger(LogControl(format: .json), lines)
    let message: Logger.Message = "Odd \u{1} \"text\" \\ ü"
    logger.warning(message, metadata: ["list": ["a", "b"], "map": ["k": "v"], "n": "\(5)"])
    let line = try #require(lines.all.first)
    #expect(line.filter { $0 == "\n" }.count == 1)
    let parsed = try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
    #expect(parsed?["message"] as? String == message.description)
    #expect(parsed?["level"] as? String == "warning")
    #expect(parsed?["logger"] as? String == "memq.test")
    #expect(parsed?["time"] as? String == "2026-01-31T07:08:09.007Z")
    let metadata = parsed?["metadata"] as? [String: Any]
    #expect(metadata?["list"] as? [String] == ["a", "b"])
    #expect(metadata?["map"] as? [String: String] == ["k": "v"])
    #expect(metadata?["n"] as? String == "5")
  }

  @Test func `the level can change while loggers exist`() {
    let lines = Lines()
    let control = LogControl(level: .info)
    let logger = logger(control, lines)
    logger.debug("unseen")
    control.level = .debug
    logger.debug("seen")
    var quiet = logger
    quiet.logLevel = .error
    quiet.warning("unseen, too")
    #expect(lines.all.count == 1)
  }
}
