// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// The texts that are made from a table: help, effective values, the page in the docs.
extension ConfigurationTable {
  /// `--help`.
  public var helpText: String {
    var text = "\(self.summary)\n\nUsage: \(self.program) [flags]\n"
    // `memq serve` is configured by `memq config`.
    let command = self.program.prefix { $0 != " " }
    text += "       \(command) config check|print [flags]\n\nFlags:\n"
    var rows: [(String, String)] = [
      (
        "--config FILE",
        "YAML file with any of the keys below (MEMQ_CONFIG). A flag counts more than an environment variable, that more than the file."
      )
    ]
    for key in self.keys {
      var notes: [String] = []
      if key.isRequired { notes.append("required") }
      if let value = key.defaultValue { notes.append("default \(value)") }
      if let variable = key.variable { notes.append(variable) }
      let note = notes.isEmpty ? "" : " (\(notes.joined(separator: ", ")))"
      rows.append((Self.usage(key), key.help + note))
    }
    rows.append(("--help", "Prints this text."))
    rows.append(("--version", "Prints the version."))
    for (flag, help) in rows {
      text += "  \(flag)\n"
      for line in Self.wrapped(help, width: 88) { text += "      \(line)\n" }
    }
    return text
  }

  private static func usage(_ key: ConfigurationKey) -> String {
    switch key.kind {
    case .flag: key.flag
    case .text: "\(key.flag) TEXT"
    case .address: "\(key.flag) HOST:PORT"
    case .addresses: "\(key.flag) HOST:PORT,…"
    case .path: "\(key.flag) PATH"
    case .size: "\(key.flag) SIZE"
    case .duration: "\(key.flag) TIME"
    case .integer: "\(key.flag) NUMBER"
    case .choice(let values): "\(key.flag) \(values.joined(separator: "|"))"
    }
  }

  private static func wrapped(_ text: String, width: Int) -> [String] {
    var lines: [String] = []
    var line = ""
    for word in text.split(separator: " ") {
      if !line.isEmpty, line.count + 1 + word.count > width {
        lines.append(line)
        line = ""
      }
      line += line.isEmpty ? "\(word)" : " \(word)"
    }
    return line.isEmpty ? lines : lines + [line]
  }

  /// A Markdown section with the table of keys, as docs/operations/configuration.md holds it.
  public var markdown: String {
    var text = "## \(self.program)\n\n\(self.summary)\n\n"
    text += "| key | flag | variable | kind | default | changes at | meaning |\n"
    text += "|---|---|---|---|---|---|---|\n"
    for key in self.keys {
      let cells = [
        "`\(key.name)`", "`\(key.flag)`", key.variable.map { "`\($0)`" } ?? "none", key.kindText,
        key.isRequired ? "required" : key.defaultValue.map { "`\($0)`" } ?? "none",
        key.reload.rawValue, key.help,
      ]
      text += "| \(cells.map(Self.cell).joined(separator: " | ")) |\n"
    }
    return text
  }

  private static func cell(_ text: String) -> String {
    String(text.flatMap { $0 == "|" ? Array("\\|") : [$0] })
  }
}

extension LoadedConfiguration {
  /// `config print`: YAML that gives the same configuration when read back, each line with its origin.
  public var printout: String {
    let rows = self.entries.map { entry in
      (entry.value.map { "\(entry.key.name): \(Self.quoted($0))" } ?? "# \(entry.key.name):", entry)
    }
    let width = min(60, rows.map(\.0.count).max() ?? 0)
    return rows.map { row, entry in
      let origin = entry.value == nil ? "not set" : entry.origin.description
      return row + String(repeating: " ", count: max(0, width - row.count)) + "  # \(origin)\n"
    }.joined()
  }

  private static func quoted(_ text: String) -> String {
    let isPlain = text.allSatisfy {
      $0.isASCII && ($0.isLetter || $0.isNumber || "./_-,:".contains($0))
    }
    let isSafe = isPlain && text.first.map { $0.isLetter || $0.isNumber || $0 == "/" } ?? false
    if isSafe && !text.hasSuffix(":") { return text }
    return "\"" + text.flatMap { "\\\"".contains($0) ? ["\\", $0] : [$0] } + "\""
  }
}
