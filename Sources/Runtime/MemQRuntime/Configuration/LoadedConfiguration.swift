// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// The effective configuration of a process: every key with its value and where it came from.
///
/// The typed readers trap on names that are not in the table, and on a kind that is not the key's: both are our bugs, as
/// every value was checked when it was loaded.
public struct LoadedConfiguration: Sendable {
  public enum Origin: Sendable, Hashable, CustomStringConvertible {
    case flag(String)
    case environment(String)
    /// `path:line`.
    case file(String)
    case defaultValue

    public var description: String {
      switch self {
      case .flag(let flag): "flag \(flag)"
      case .environment(let variable): "environment \(variable)"
      case .file(let place): "file \(place)"
      case .defaultValue: "default"
      }
    }
  }

  public struct Entry: Sendable {
    public let key: ConfigurationKey
    /// Nil: not set, and without a default.
    public let value: String?
    public let origin: Origin
  }

  public let table: ConfigurationTable
  /// In the table's order.
  public let entries: [Entry]
  /// Sentences for the log: unknown environment variables.
  public let warnings: [String]

  init(table: ConfigurationTable, entries: [Entry], warnings: [String]) {
    self.table = table
    self.entries = entries
    self.warnings = warnings
  }

  private func raw(_ name: String) -> String? {
    guard let entry = self.entries.first(where: { $0.key.name == name }) else {
      preconditionFailure("\(self.table.program) has no configuration key \(name)")
    }
    return entry.value
  }

  private func read<Value>(_ name: String, _ parse: (String) -> Value?) -> Value? {
    guard let text = self.raw(name) else { return nil }
    guard let value = parse(text) else {
      preconditionFailure("configuration key \(name) is of another kind")
    }
    return value
  }

  private func required<Value>(_ name: String, _ value: Value?) -> Value {
    guard let value else { preconditionFailure("configuration key \(name) has no default") }
    return value
  }

  public func has(_ name: String) -> Bool { self.raw(name) != nil }
  public func optionalText(_ name: String) -> String? { self.raw(name) }
  public func text(_ name: String) -> String { self.required(name, self.raw(name)) }
  public func optionalBytes(_ name: String) -> Int64? { self.read(name) { ByteSize($0)?.bytes } }
  public func bytes(_ name: String) -> Int64 { self.required(name, self.optionalBytes(name)) }
  public func optionalDuration(_ name: String) -> Duration? {
    self.read(name) { TimeSpan($0)?.duration }
  }
  public func duration(_ name: String) -> Duration {
    self.required(name, self.optionalDuration(name))
  }
  public func optionalInteger(_ name: String) -> Int? { self.read(name) { Int($0) } }
  public func integer(_ name: String) -> Int { self.required(name, self.optionalInteger(name)) }
  public func flag(_ name: String) -> Bool { self.required(name, self.read(name) { Bool($0) }) }
  public func addresses(_ name: String) -> [String] {
    (self.raw(name) ?? "").split(separator: ",").map(String.init)
  }
  public func optionalAddress(_ name: String) -> ListenAddress? {
    self.read(name) { try? ListenAddress($0) }
  }
  public func address(_ name: String) -> ListenAddress {
    self.required(name, self.optionalAddress(name))
  }
}
