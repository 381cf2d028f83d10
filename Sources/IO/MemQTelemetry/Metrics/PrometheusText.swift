// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Writes Prometheus's text exposition format, version 0.0.4.
struct PrometheusText {
  private(set) var text = ""

  mutating func header(_ name: String, _ kind: MetricDefinition.Kind, help: String) {
    self.text += "# HELP \(name) \(Self.escapedHelp(help))\n# TYPE \(name) \(kind.rawValue)\n"
  }

  /// - Parameter labels: `a="1",b="2"` with values escaped, or empty.
  mutating func sample(_ name: String, _ labels: String, _ value: String) {
    self.text += labels.isEmpty ? "\(name) \(value)\n" : "\(name){\(labels)} \(value)\n"
  }

  /// Sorted by name, so that one set of labels has one form.
  static func labels(_ dimensions: [(String, String)]) -> String {
    dimensions.sorted { $0.0 < $1.0 }
      .map { "\(Self.labelName($0.0))=\"\(Self.escapedValue($0.1))\"" }.joined(separator: ",")
  }

  static func number(_ value: Double) -> String {
    if value.isNaN { return "NaN" }
    if value.isInfinite { return value < 0 ? "-Inf" : "+Inf" }
    if value == value.rounded(), abs(value) < 1e15 { return String(Int64(value)) }
    return "\(value)"
  }

  /// Letters, digits, `_` and `:`; anything else becomes `_`.
  static func metricName(_ label: String) -> String {
    Self.name(label, allowingColon: true)
  }

  static func labelName(_ label: String) -> String {
    Self.name(label, allowingColon: false)
  }

  private static func name(_ label: String, allowingColon: Bool) -> String {
    var name = ""
    for scalar in label.unicodeScalars {
      switch scalar {
      case "a"..."z", "A"..."Z", "_": name.unicodeScalars.append(scalar)
      case "0"..."9": name += name.isEmpty ? "_\(scalar)" : "\(scalar)"
      case ":" where allowingColon: name += ":"
      default: name += "_"
      }
    }
    return name.isEmpty ? "_" : name
  }

  private static func escapedHelp(_ text: String) -> String {
    Self.escaped(text, quote: false)
  }

  private static func escapedValue(_ text: String) -> String {
    Self.escaped(text, quote: true)
  }

  private static func escaped(_ text: String, quote: Bool) -> String {
    var escaped = ""
    for character in text.unicodeScalars {
      switch character {
      case "\\": escaped += "\\\\"
      case "\n": escaped += "\\n"
      case "\"" where quote: escaped += "\\\""
      default: escaped.unicodeScalars.append(character)
      }
    }
    return escaped
  }
}
