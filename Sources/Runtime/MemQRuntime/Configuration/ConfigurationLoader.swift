// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Configuration
import Glibc
import MemQModel

/// Puts a configuration together: flag > `MEMQ_*` environment > YAML file > default.
///
/// Unknown flags and unknown keys in the file are errors that name them and the nearest known ones; unknown `MEMQ_*`
/// variables are one warning, because others may own them.
public struct ConfigurationLoader: Sendable {
  /// Variables of the command line and of Deploy/local: known, and never ours.
  static let foreignVariables: Set<String> = ["MEMQ_SERVER", "MEMQ_DATA"]
  /// The command line's, too.
  static let foreignPrefix = "MEMQ_CLIENT_"
  static let configVariable = "MEMQ_CONFIG"

  public let table: ConfigurationTable
  private let arguments: [String]
  private let environment: [String: String]

  /// - Parameter arguments: without the program's name.
  public init(
    _ table: ConfigurationTable, arguments: [String],
    environment: [String: String] = ConfigurationLoader.processEnvironment
  ) {
    self.table = table
    self.arguments = arguments
    self.environment = environment
  }

  /// What the arguments ask for; `.help` and `.version` need nothing else to be right.
  public var command: ConfigurationCommand { FlagParser(self.table, self.arguments).command }

  /// Reads everything. May be called again: the file is read anew.
  public func load() throws(ConfigurationError) -> LoadedConfiguration {
    let flags = FlagParser(self.table, self.arguments)
    var problems = flags.problems
    let path = flags.configFile ?? self.environment[Self.configVariable]
    let file = try path.map { path throws(ConfigurationError) in
      do throws(ConfigurationError) {
        return try ConfigurationFile(path: path)
      } catch {
        throw ConfigurationError(problems + error.problems)
      }
    }
    let lines = self.lines(of: file, &problems)
    let providers = self.providers(flags, file, lines)
    var entries: [LoadedConfiguration.Entry] = []
    for key in self.table.keys {
      entries.append(self.entry(key, providers, lines, file, &problems))
    }
    guard problems.isEmpty else { throw ConfigurationError(problems) }
    return LoadedConfiguration(table: self.table, entries: entries, warnings: self.warnings)
  }

  // MARK: The file

  /// The known keys of the file with their lines; everything else becomes a problem.
  private func lines(
    of file: ConfigurationFile?, _ problems: inout [MemQError]
  ) -> [String: ConfigurationFile.Entry] {
    var lines: [String: ConfigurationFile.Entry] = [:]
    func refuse(_ entry: ConfigurationFile.Entry, _ message: String) {
      problems.append(
        MemQError(
          .configurationInvalid, message, subject: "\(file?.path ?? ""):\(entry.line)"))
    }
    for entry in file?.entries ?? [] {
      if self.table.key(entry.name) == nil {
        let hint = NearestNames.hint(for: entry.name, among: self.table.keys.map(\.name))
        refuse(entry, "\(self.table.program) has no configuration key \(entry.name)\(hint)")
      } else if entry.value == nil {
        refuse(entry, "\(entry.name) has no value")
      } else if lines.updateValue(entry, forKey: entry.name) != nil {
        refuse(entry, "\(entry.name) stands in the file twice")
      }
    }
    return lines
  }

  // MARK: The four places

  private enum Place: CaseIterable { case flag, environment, file, defaultValue }

  private func providers(
    _ flags: FlagParser, _ file: ConfigurationFile?, _ lines: [String: ConfigurationFile.Entry]
  ) -> [(place: Place, provider: any ConfigProvider)] {
    func memory(_ name: String, _ value: (ConfigurationKey) -> String?) -> InMemoryProvider {
      var values: [AbsoluteConfigKey: ConfigValue] = [:]
      for key in self.table.keys {
        guard let text = value(key) else { continue }
        values[AbsoluteConfigKey(key.components)] = ConfigValue(.string(text), isSecret: false)
      }
      return InMemoryProvider(name: name, values: values)
    }
    let known = Set(self.table.keys.compactMap(\.variable))
    let environment = EnvironmentVariablesProvider(
      environmentVariables: self.environment.filter { known.contains($0.key) })
    return [
      (.flag, memory("flags") { flags.values[$0.name] }),
      (.environment, environment.prefixKeys(with: "memq")),
      (.file, memory(file?.path ?? "file") { lines[$0.name]?.value ?? nil }),
      (.defaultValue, memory("defaults") { $0.defaultValue }),
    ]
  }

  private func entry(
    _ key: ConfigurationKey, _ providers: [(place: Place, provider: any ConfigProvider)],
    _ lines: [String: ConfigurationFile.Entry], _ file: ConfigurationFile?,
    _ problems: inout [MemQError]
  ) -> LoadedConfiguration.Entry {
    for (place, provider) in providers {
      guard let text = Self.text(provider, key) else { continue }
      let origin: LoadedConfiguration.Origin
      switch place {
      case .flag: origin = .flag(key.flag)
      case .environment: origin = .environment(key.variable ?? "")
      case .file: origin = .file("\(file?.path ?? ""):\(lines[key.name]?.line ?? 0)")
      case .defaultValue: origin = .defaultValue
      }
      if let wanted = key.problem(with: text) {
        problems.append(
          MemQError(
            .configurationInvalid, "\(key.name) is \"\(text)\"; it must be \(wanted)",
            subject: "\(origin)"))
      }
      return LoadedConfiguration.Entry(key: key, value: text, origin: origin)
    }
    if key.isRequired {
      let variable = key.variable.map { ", \($0)" } ?? ""
      problems.append(
        MemQError(
          .configurationInvalid,
          "must be set (\(key.flag)\(variable), or in the file): \(key.help)",
          subject: key.name))
    }
    return LoadedConfiguration.Entry(key: key, value: nil, origin: .defaultValue)
  }

  private static func text(_ provider: any ConfigProvider, _ key: ConfigurationKey) -> String? {
    let found = try? provider.value(forKey: AbsoluteConfigKey(key.components), type: .string)
    guard case .string(let text)? = found?.value?.content else { return nil }
    return text
  }

  // MARK: The environment

  private var warnings: [String] {
    let known = Set(self.table.keys.compactMap(\.variable) + [Self.configVariable])
    let unknown = self.environment.keys.filter {
      $0.hasPrefix("MEMQ_") && !known.contains($0) && !Self.foreignVariables.contains($0)
        && !$0.hasPrefix(Self.foreignPrefix)
    }.sorted()
    guard !unknown.isEmpty else { return [] }
    let named = unknown.map { $0 + NearestNames.hint(for: $0, among: known.sorted()) }
    return ["unknown environment variables: \(named.joined(separator: ", "))"]
  }

  /// This process's environment.
  public static var processEnvironment: [String: String] {
    var variables: [String: String] = [:]
    var next = environ
    while let entry = next.pointee {
      let text = String(cString: entry)
      if let equals = text.firstIndex(of: "=") {
        variables[String(text[..<equals])] = String(text[text.index(after: equals)...])
      }
      next += 1
    }
    return variables
  }
}
