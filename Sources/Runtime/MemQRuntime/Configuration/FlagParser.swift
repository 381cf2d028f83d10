// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What the arguments ask for.
public enum ConfigurationCommand: Sendable, Hashable {
  case run
  /// `--help`, `-h`.
  case help
  /// `--version`.
  case version
  /// `config check`: read everything, say what is wrong.
  case check
  /// `config print`: effective values and where each came from.
  case print
}

/// Reads flags strictly: unknown ones, missing values and stray words are refused by name.
struct FlagParser {
  let table: ConfigurationTable
  private(set) var command = ConfigurationCommand.run
  /// By key name.
  private(set) var values: [String: String] = [:]
  private(set) var configFile: String?
  private(set) var problems: [MemQError] = []

  static let configFlag = "--config"

  /// - Parameter arguments: without the program's name.
  init(_ table: ConfigurationTable, _ arguments: [String]) {
    self.table = table
    var rest = arguments[...]
    if rest.first == "config" {
      rest = rest.dropFirst()
      switch rest.popFirst() {
      case "check": self.command = .check
      case "print": self.command = .print
      case let word:
        self.refuse("config \(word ?? "")", "use config check or config print")
      }
    }
    while let argument = rest.popFirst() { self.take(argument, &rest) }
  }

  private mutating func refuse(_ subject: String, _ message: String) {
    self.problems.append(MemQError(.configurationInvalid, message, subject: subject))
  }

  private mutating func take(_ argument: String, _ rest: inout ArraySlice<String>) {
    switch argument {
    case "--help", "-h": return self.command = .help
    case "--version":
      if self.command != .help { self.command = .version }
      return
    default: break
    }
    guard argument.hasPrefix("--") else {
      return self.refuse(argument, "flags begin with --; --help lists them")
    }
    let equals = argument.firstIndex(of: "=")
    let flag = String(argument[..<(equals ?? argument.endIndex)])
    let key = self.table.keys.first { $0.flag == flag }
    guard key != nil || flag == Self.configFlag else {
      // What follows is most likely its value: one mistake, one problem.
      if equals == nil, let next = rest.first, !next.hasPrefix("--") { rest = rest.dropFirst() }
      let known = self.table.keys.map(\.flag) + [Self.configFlag, "--help", "--version"]
      return self.refuse(
        flag, "no such flag" + NearestNames.hint(for: flag, among: known) + "; --help lists all")
    }
    guard let value = self.value(of: key, argument, equals, &rest) else {
      return self.refuse(flag, "a value is missing")
    }
    self.set(key, flag, value)
  }

  private func value(
    of key: ConfigurationKey?, _ argument: String, _ equals: String.Index?,
    _ rest: inout ArraySlice<String>
  ) -> String? {
    if let equals { return String(argument[argument.index(after: equals)...]) }
    if key?.kind == .flag {
      // `--flag false` would be read as a flag and a stray word by half of the world: only `--flag=false` is taken.
      return "true"
    }
    guard let next = rest.first, !next.hasPrefix("--") else { return nil }
    rest = rest.dropFirst()
    return next
  }

  private mutating func set(_ key: ConfigurationKey?, _ flag: String, _ value: String) {
    guard let key else {
      if self.configFile != nil { self.refuse(flag, "given twice") }
      return self.configFile = value
    }
    if self.values.updateValue(value, forKey: key.name) != nil { self.refuse(flag, "given twice") }
  }
}
