// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import MemQClient
import MemQModel
import MemQSystem
import Synchronization

struct FilePutCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "put", abstract: "Put files.",
    discussion: """
      A file is named by the last part of its path, or by --name; with --recursive by its path relative to the folder. A symbolic link is
      followed when it is named here, and skipped inside a folder. Exit status 3: a file was refused by a verdict; the others are put all the same.
      """)

  @Argument(help: "The topic.")
  var topic: String
  @Argument(help: "Files; with --recursive also folders.")
  var paths: [String]
  @Flag(name: .shortAndLong, help: "Put everything below the folders.")
  var recursive = false
  @Option(help: "Its name in the topic; for one file.")
  var name: String?
  @Option(help: "Goes before every name.")
  var prefix = ""
  @Option(help: "Puts at once, from 1 to 256.")
  var concurrency = 32
  @Option(help: "Media type, for readers.")
  var contentType = ""
  @Option(help: ArgumentHelp("A free attribute; may be repeated.", valueName: "name=value"))
  var attribute: [Assignment] = []
  @Option(
    help: ArgumentHelp(
      "Give up when nothing moved for so long; until then a broken put goes on where it stood.",
      valueName: "seconds"))
  var resumeTimeout = 120
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard (1...256).contains(self.concurrency) else {
      throw ValidationError("--concurrency must be from 1 to 256")
    }
    guard (0...86_400).contains(self.resumeTimeout) else {
      throw ValidationError("--resume-timeout must be from 0 to 86400 seconds")
    }
    guard self.name == nil || self.paths.count == 1 && !self.recursive else {
      throw ValidationError("--name needs exactly one path, without --recursive")
    }
  }

  func run() async throws {
    let report = PutReport(isJSON: self.output.isJSON)
    let work = Task { try await self.server.withClient { try await self.put($0, report) } }
    Interrupts.onFirst { work.cancel() }
    let result = await work.result
    try await report.finish()
    if case .failure(let error) = result { throw error }
    if let status = report.exitStatus { throw ExitCode(status) }
  }

  private func put(_ client: MemQClient, _ report: PutReport) async throws {
    var options = FileClient.PutOptions()
    options.contentType = self.contentType
    options.attributes = try self.attribute.dictionary()
    options.resumeTimeout = .seconds(self.resumeTimeout)
    let files = client.files()
    for path in self.paths {
      try Task.checkCancellation()
      if self.recursive && Self.isFolder(path) {
        _ = try await files.putFolder(
          path, to: self.topic, prefix: self.prefix, concurrency: self.concurrency,
          options: options
        ) { await report.add($0) }
      } else {
        try await self.putOne(path, files, options, report)
      }
    }
  }

  private func putOne(
    _ path: String, _ files: FileClient, _ options: FileClient.PutOptions, _ report: PutReport
  ) async throws {
    let name = self.prefix + (self.name ?? Self.lastPart(path))
    let bar = ProgressBar(name, total: Self.byteCount(path))
    defer { bar.finish() }
    do {
      let info = try await files.put(path, to: self.topic, as: name, options: options) {
        bar.show($0)
      }
      await report.add(.published(info))
    } catch {
      // What every further file would meet, too, ends the command.
      switch error.code {
      case .topicNotFound, .topicDeleted, .unavailable, .cancelled: throw error
      default: await report.add(.failed(name: name, error))
      }
    }
  }

  private static func isFolder(_ path: String) -> Bool {
    var status = stat()
    return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
  }

  private static func byteCount(_ path: String) -> Int64 {
    var status = stat()
    return stat(path, &status) == 0 ? Int64(status.st_size) : 0
  }

  private static func lastPart(_ path: String) -> String {
    path.split(separator: "/").last.map(String.init) ?? path
  }
}

/// What became of the files of one put command.
final class PutReport: Sendable {
  /// Text that waits to be written: events come from several tasks.
  private struct State {
    var sum = FileClient.FolderSummary()
    var pending = ""
    var isFirst = true
    var lastShown: MonotonicInstant = .zero
    var lastFlush: MonotonicInstant = .zero
    /// Why the report cannot be written; the puts go on.
    var failure: (any Error)?
  }

  /// Faster than anybody reads.
  private static let interval: Duration = .milliseconds(100)

  private let isJSON: Bool
  private let clock = SystemClock()
  private let showsProgress = Output.errorsAreOnTerminal
  private let state = Mutex(State())

  init(isJSON: Bool) { self.isJSON = isJSON }

  /// Returns when the report has room for more.
  func add(_ event: FileClient.FolderEvent) async {
    switch event {
    case .failed(let name, let error): self.note("memq: \(Self.line(name, error))")
    case .skipped(let name, let why):
      self.note("memq: skipped \(TextTable.printable(name)): \(why)")
    case .published: break
    }
    let now = self.clock.monotonic
    let line = self.state.withLock { state -> String? in
      state.sum.count(event)
      self.append(event, &state)
      guard self.showsProgress, now - state.lastShown >= Self.interval else { return nil }
      state.lastShown = now
      return "\(state.sum.published) files, \(byteText(state.sum.publishedBytes))"
    }
    if let line { Output.status(line) }
    await self.write(now)
  }

  private static func line(_ name: String, _ error: MemQError) -> String {
    error.subject == name || error.subject.hasSuffix("/" + name)
      ? "\(error)" : "\(TextTable.printable(name)): \(error)"
  }

  private func note(_ text: String) {
    if self.showsProgress { Output.status("") }
    Output.note(text)
  }

  private func append(_ event: FileClient.FolderEvent, _ state: inout State) {
    let entry: JSON
    switch event {
    case .published(let info):
      guard self.isJSON else {
        // A folder's files are summed up at the end.
        if state.sum.published == 1 { state.pending = Self.text(info) } else { state.pending = "" }
        return
      }
      guard case .object(let fields) = info.json else { return }
      entry = .object([("result", "published")] + fields)
    case .failed(let name, let error):
      entry = [
        "result": error.isVerdict ? "refused" : "failed", "name": .string(name),
        "code": .string(error.code.name), "error": .text(error),
      ]
    case .skipped(let name, let why):
      entry = ["result": "skipped", "name": .string(name), "reason": .string(why)]
    }
    guard self.isJSON else { return }
    state.pending += (state.isFirst ? "{\"files\": [\n  " : ",\n  ") + entry.line
    state.isFirst = false
  }

  private static func text(_ info: FileInfo) -> String {
    "put \(TextTable.printable(info.name)): version \(info.version), \(info.size) bytes, "
      + "sha-256 \(hexText(info.sha256)), \(info.verdict.text)\n"
  }

  /// Writes what has gathered of the document, and once a second sends it on its way: nothing waits for the end.
  private func write(_ now: MonotonicInstant) async {
    guard self.isJSON, self.state.withLock({ $0.failure == nil }) else { return }
    do {
      try await Output.standard.write(taking: {
        self.state.withLock { state in
          defer { state.pending = "" }
          return state.pending
        }
      })
      let mustFlush = self.state.withLock { state in
        guard now - state.lastFlush >= .seconds(1) else { return false }
        state.lastFlush = now
        return true
      }
      if mustFlush { try await Output.standard.flush() }
    } catch {
      self.state.withLock { $0.failure = $0.failure ?? error }
    }
  }

  /// The end of the document, or the sum for people.
  func finish() async throws {
    await self.write(self.clock.monotonic)
    if let failure = self.state.withLock({ $0.failure }) { throw failure }
    if self.showsProgress { Output.status("") }
    let state = self.state.withLock { $0 }
    let sum = state.sum
    guard !self.isJSON else {
      let summary: JSON = [
        "published": .number(sum.published), "published_bytes": .number(sum.publishedBytes),
        "refused": .number(sum.refused), "failed": .number(sum.failed),
        "skipped": .number(sum.skipped),
      ]
      return try await Output.standard.write(
        (state.isFirst ? "{\"files\": [" : "\n") + "], \"summary\": \(summary.line)}\n")
    }
    if sum.published + sum.refused + sum.failed + sum.skipped == 1 {
      return try await Output.standard.write(state.pending)
    }
    var text = "put \(sum.published) files, \(byteText(sum.publishedBytes))"
    if sum.refused > 0 { text += "; \(sum.refused) refused by a verdict" }
    if sum.failed > 0 { text += "; \(sum.failed) failed" }
    if sum.skipped > 0 { text += "; \(sum.skipped) skipped" }
    try await Output.standard.line(text)
  }

  /// 3: refused by a verdict, 1: failed; nil: everything was put.
  var exitStatus: Int32? {
    let sum = self.state.withLock { $0.sum }
    if sum.failed > 0 { return 1 }
    return sum.refused > 0 ? 3 : nil
  }
}
