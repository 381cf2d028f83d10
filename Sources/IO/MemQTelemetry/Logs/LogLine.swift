// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging

/// A moment as log lines show it: UTC, milliseconds.
struct LogTime: Sendable {
  /// Seconds since 1970-01-01T00:00:00Z.
  let seconds: Int
  let milliseconds: Int

  static var now: LogTime {
    var time = timespec()
    clock_gettime(CLOCK_REALTIME, &time)
    return LogTime(seconds: time.tv_sec, milliseconds: time.tv_nsec / 1_000_000)
  }

  /// RFC 3339: `2026-01-31T07:08:09.123Z`.
  var text: String {
    var parts = tm()
    var seconds = self.seconds
    gmtime_r(&seconds, &parts)
    func digits(_ value: Int, _ width: Int) -> String {
      let text = String(value)
      return String(repeating: "0", count: max(0, width - text.utf8.count)) + text
    }
    let date =
      "\(digits(Int(parts.tm_year) + 1900, 4))-\(digits(Int(parts.tm_mon) + 1, 2))-\(digits(Int(parts.tm_mday), 2))"
    let time =
      "\(digits(Int(parts.tm_hour), 2)):\(digits(Int(parts.tm_min), 2)):\(digits(Int(parts.tm_sec), 2))"
    return "\(date)T\(time).\(digits(self.milliseconds, 3))Z"
  }
}

/// One event, ready to be written.
struct LogLine {
  let time: LogTime
  let level: Logger.Level
  let label: String
  let message: String
  /// In the order they are written.
  let fields: [(key: String, value: Logger.MetadataValue)]

  /// With its line feed.
  func text(_ format: LogFormat) -> String {
    switch format {
    case .text: self.plain
    case .json: self.json
    }
  }

  /// Values with spaces, quotes, `=` or control characters are quoted as JSON strings, so a line stays one line.
  private var plain: String {
    var line = "\(self.time.text) \(self.level.rawValue) \(self.label) "
    line += JSONText.hasControl(self.message) ? JSONText.quoted(self.message) : self.message
    for (key, value) in self.fields {
      let text = value.description
      line += " \(key)=\(Self.isBare(text) ? text : JSONText.quoted(text))"
    }
    return line + "\n"
  }

  private static func isBare(_ text: String) -> Bool {
    !text.isEmpty
      && text.utf8.allSatisfy { $0 > 0x20 && $0 != 0x22 && $0 != 0x3D && $0 != 0x5C && $0 != 0x7F }
  }

  private var json: String {
    var line = "{\"time\":\"\(self.time.text)\",\"level\":\"\(self.level.rawValue)\""
    line +=
      ",\"logger\":\(JSONText.quoted(self.label)),\"message\":\(JSONText.quoted(self.message))"
    if !self.fields.isEmpty {
      let fields = self.fields.map { "\(JSONText.quoted($0.key)):\(JSONText.value($0.value))" }
      line += ",\"metadata\":{\(fields.joined(separator: ","))}"
    }
    return line + "}\n"
  }
}

/// JSON by hand: log lines need strings, arrays and objects only.
enum JSONText {
  static func value(_ value: Logger.MetadataValue) -> String {
    switch value {
    case .string(let text): return self.quoted(text)
    case .stringConvertible(let text): return self.quoted(text.description)
    case .array(let values): return "[\(values.map(self.value).joined(separator: ","))]"
    case .dictionary(let values):
      let fields = values.sorted { $0.key < $1.key }
        .map { "\(self.quoted($0.key)):\(self.value($0.value))" }
      return "{\(fields.joined(separator: ","))}"
    }
  }

  static func hasControl(_ text: String) -> Bool { text.utf8.contains { $0 < 0x20 || $0 == 0x7F } }

  static func quoted(_ text: String) -> String {
    var quoted = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": quoted += "\\\""
      case "\\": quoted += "\\\\"
      case "\n": quoted += "\\n"
      case "\r": quoted += "\\r"
      case "\t": quoted += "\\t"
      default:
        if scalar.value < 0x20 || scalar.value == 0x7F {
          let hex = String(scalar.value, radix: 16)
          quoted += "\\u" + String(repeating: "0", count: 4 - hex.utf8.count) + hex
        } else {
          quoted.unicodeScalars.append(scalar)
        }
      }
    }
    return quoted + "\""
  }
}
