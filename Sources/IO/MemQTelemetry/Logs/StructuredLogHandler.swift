// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
import Synchronization

/// How a log line looks.
public enum LogFormat: String, Sendable, CaseIterable {
  /// `2026-01-31T07:08:09.123Z info memq.ingest Message key=value`
  case text
  /// One JSON object per line.
  case json
}

/// Level and format of a process's logs; may change while it runs.
public final class LogControl: Sendable {
  private let state: Mutex<(level: Logger.Level, format: LogFormat)>

  public init(level: Logger.Level = .info, format: LogFormat = .text) {
    self.state = Mutex((level, format))
  }

  public var level: Logger.Level {
    get { self.state.withLock { $0.level } }
    set { self.state.withLock { $0.level = newValue } }
  }
  public var format: LogFormat {
    get { self.state.withLock { $0.format } }
    set { self.state.withLock { $0.format = newValue } }
  }
}

/// Where lines go: one call per line, line feed included.
public protocol LogSink: Sendable {
  func write(_ line: String)
}

/// A swift-log back end: one line per event, metadata sorted by key.
public struct StructuredLogHandler: LogHandler {
  public let label: String
  public var metadata: Logger.Metadata = [:]
  public var metadataProvider: Logger.MetadataProvider?
  private let control: LogControl
  private let sink: any LogSink
  private let now: @Sendable () -> LogTime
  /// Set by a holder of this very logger; otherwise the process's level counts.
  private var ownLevel: Logger.Level?

  public init(label: String, control: LogControl, sink: any LogSink) {
    self.init(label: label, control: control, sink: sink, now: { LogTime.now })
  }

  init(
    label: String, control: LogControl, sink: any LogSink, now: @escaping @Sendable () -> LogTime
  ) {
    self.label = label
    self.control = control
    self.sink = sink
    self.now = now
  }

  public var logLevel: Logger.Level {
    get { self.ownLevel ?? self.control.level }
    set { self.ownLevel = newValue }
  }

  public subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { self.metadata[key] }
    set { self.metadata[key] = newValue }
  }

  public func log(event: LogEvent) {
    var fields = self.metadata
    if let provided = self.metadataProvider?.get() {
      fields.merge(provided) { _, new in new }
    }
    if let given = event.metadata { fields.merge(given) { _, new in new } }
    if let error = event.error { fields["error"] = "\(error)" }
    let line = LogLine(
      time: self.now(), level: event.level, label: self.label,
      message: event.message.description, fields: fields.sorted { $0.key < $1.key })
    self.sink.write(line.text(self.control.format))
  }
}
