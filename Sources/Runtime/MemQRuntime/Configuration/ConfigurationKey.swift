// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// One thing that can be configured. Flag, environment variable and place in the file follow from its name.
public struct ConfigurationKey: Sendable, Hashable {
  public enum Kind: Sendable, Hashable {
    case text
    /// `host:port`, `[v6]:port` or `unix:/path`.
    case address
    /// Several of them, separated by commas; in a file also a list.
    case addresses
    case path
    /// See ``ByteSize``.
    case size
    /// See ``TimeSpan``.
    case duration
    case integer(ClosedRange<Int>)
    /// true or false; as a flag without a value: true.
    case flag
    case choice([String])
  }

  /// When a change counts.
  public enum Reload: String, Sendable {
    /// At the next start.
    case restart
    /// When the process gets SIGHUP.
    case live
  }

  /// Words joined by dots, the most significant first: `admin.listen`.
  public let name: String
  public let kind: Kind
  /// As it would be written; nil: none, and the service does what `help` says.
  public let defaultValue: String?
  /// One or two sentences: what it is, and why somebody would change it.
  public let help: String
  public let reload: Reload
  /// False: no environment variable sets it.
  public let hasEnvironment: Bool
  /// The service does not start without it.
  public let isRequired: Bool

  public init(
    _ name: String, _ kind: Kind, default defaultValue: String? = nil, reload: Reload = .restart,
    hasEnvironment: Bool = true, isRequired: Bool = false, _ help: String
  ) {
    self.name = name
    self.kind = kind
    self.defaultValue = defaultValue
    self.reload = reload
    self.hasEnvironment = hasEnvironment
    self.isRequired = isRequired
    self.help = help
  }

  public var components: [String] { self.name.split(separator: ".").map(String.init) }
  /// `--admin-listen`.
  public var flag: String { "--" + self.components.joined(separator: "-") }
  /// `MEMQ_ADMIN_LISTEN`; nil when there is none.
  public var variable: String? {
    self.hasEnvironment ? "MEMQ_" + self.components.joined(separator: "_").uppercased() : nil
  }

  /// The kind in words: "size", "duration", "text, json".
  public var kindText: String {
    switch self.kind {
    case .text: "text"
    case .address: "address"
    case .addresses: "addresses"
    case .path: "path"
    case .size: "size"
    case .duration: "duration"
    case .integer(let range): "\(range.lowerBound) to \(range.upperBound)"
    case .flag: "true or false"
    case .choice(let values): values.joined(separator: ", ")
    }
  }

  /// The same key with another default.
  public func with(default value: String?) -> ConfigurationKey {
    ConfigurationKey(
      self.name, self.kind, default: value, reload: self.reload,
      hasEnvironment: self.hasEnvironment, isRequired: self.isRequired, self.help)
  }

  /// Nil when `text` is a value of this key's kind; else what it should be.
  func problem(with text: String) -> String? {
    switch self.kind {
    case .text, .path: return text.isEmpty ? "a value that is not empty" : nil
    case .address: return ListenAddress.problem(text)
    case .addresses:
      let parts = text.split(separator: ",", omittingEmptySubsequences: false)
      for part in parts {
        if let problem = ListenAddress.problem(String(part)) { return problem }
      }
      return nil
    case .size: return ByteSize(text) == nil ? "a size such as 64MiB, 1GB or 4096" : nil
    case .duration: return TimeSpan(text) == nil ? "a time such as 250ms, 10s or 7d" : nil
    case .integer(let range):
      guard let number = Int(text), range.contains(number) else {
        return "a whole number from \(range.lowerBound) to \(range.upperBound)"
      }
      return nil
    case .flag: return Bool(text) == nil ? "true or false" : nil
    case .choice(let values):
      return values.contains(text) ? nil : "one of \(values.joined(separator: ", "))"
    }
  }
}

/// All keys of one program.
public struct ConfigurationTable: Sendable {
  /// The program as a person types it: `memq-ingest`, `memq serve`.
  public let program: String
  /// One sentence: what it does.
  public let summary: String
  public let keys: [ConfigurationKey]

  /// - Precondition: no name twice, and none is the beginning of another (both could not stand in one file).
  public init(program: String, summary: String, keys: [ConfigurationKey]) {
    for (index, key) in keys.enumerated() {
      for other in keys[(index + 1)...] {
        precondition(
          key.name != other.name && !key.name.hasPrefix(other.name + ".")
            && !other.name.hasPrefix(key.name + "."),
          "configuration keys \(key.name) and \(other.name) collide")
      }
    }
    self.program = program
    self.summary = summary
    self.keys = keys
  }

  public func key(_ name: String) -> ConfigurationKey? { self.keys.first { $0.name == name } }
}
