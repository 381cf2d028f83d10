// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import MemQClient
import MemQModel
import NIOCore

struct FileGetCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "get", abstract: "Get a file, whole or a part.",
    discussion: """
      A file stands under DEST whole and checked against its SHA-256, or not at all. With DEST "-" the bytes go to standard output as they come;
      they count only when the exit status is 0.
      """)

  @Argument(help: "The topic.")
  var topic: String
  @Argument(help: "The file's name.")
  var name: String
  @Option(
    name: [.customShort("o"), .customLong("dest")],
    help:
      "Where to: a file, a folder, or - for standard output. Default: the name's last part, here.")
  var dest: String?
  @Option(name: .customLong("output"), help: "How to report: for people, or one JSON document.")
  var output = OutputFormat.text
  @Option(help: "First byte.")
  var offset: Int64 = 0
  @Option(help: "Number of bytes; default: to the end.")
  var length: Int64?
  @Option(help: "This version; default: the latest.")
  var fileVersion: Int64?
  @Option(
    help: ArgumentHelp(
      "Give up when nothing came for so long; until then a broken get goes on where it stood.",
      valueName: "seconds"))
  var resumeTimeout = 120
  @OptionGroup var server: ServerOptions

  func validate() throws {
    guard self.offset >= 0 else { throw ValidationError("--offset must not be negative") }
    guard self.length.map({ $0 > 0 }) ?? true else {
      throw ValidationError("--length must be positive")
    }
    guard (0...86_400).contains(self.resumeTimeout) else {
      throw ValidationError("--resume-timeout must be from 0 to 86400 seconds")
    }
  }

  private var range: FileClient.ByteRange {
    FileClient.ByteRange(offset: self.offset, length: self.length)
  }

  func run() async throws {
    let work = Task { try await self.server.withClient { try await self.get($0.files()) } }
    Interrupts.onFirst { work.cancel() }
    try await work.value
  }

  private func get(_ files: FileClient) async throws {
    let wait = Duration.seconds(self.resumeTimeout)
    if self.dest == "-" {
      var failure: (any Error)?
      do {
        let info = try await files.get(
          self.topic, self.name, version: self.fileVersion, range: self.range, resumeTimeout: wait
        ) { bytes throws(MemQError) in
          do {
            try await Output.standard.write(Array(buffer: bytes))
          } catch {
            failure = error
            throw MemQError(.invalidArgument, "the output cannot be written")
          }
        }
        try await Output.standard.flush()
        if self.output == .json { Output.note(info.json.text) }
      } catch {
        throw failure ?? error
      }
      return
    }
    let path = self.path
    let bar = ProgressBar(self.name, total: await self.total(files))
    let info = try await files.get(
      self.topic, self.name, version: self.fileVersion, range: self.range, toFile: path,
      resumeTimeout: wait
    ) { bar.show($0) }
    bar.finish()
    try await self.report(info, path)
  }

  /// Asked only for the sake of a progress bar.
  private func total(_ files: FileClient) async -> Int64 {
    guard Output.errorsAreOnTerminal else { return 0 }
    let info = try? await files.stat(self.topic, self.name, version: self.fileVersion)
    let rest = max(0, (info?.size ?? 0) - self.offset)
    return self.length.map { min($0, rest) } ?? rest
  }

  private var path: String {
    let last = self.name.split(separator: "/").last.map(String.init) ?? self.name
    guard let dest = self.dest else { return last }
    var status = stat()
    let isFolder = stat(dest, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
    return isFolder ? (dest.hasSuffix("/") ? dest + last : "\(dest)/\(last)") : dest
  }

  private func report(_ info: FileInfo, _ path: String) async throws {
    switch self.output {
    case .json:
      guard case .object(let fields) = info.json else { return }
      try await Output.standard.line(JSON.object([("path", .string(path))] + fields).text)
    case .text:
      let part = self.range == .whole ? "\(info.size) bytes" : "a part of \(info.size) bytes"
      try await Output.standard.line(
        "got \(TextTable.printable(info.name)) version \(info.version) as \(path): \(part), sha-256 \(hexText(info.sha256))"
      )
    }
  }
}
