// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQClient
import MemQModel

struct FileCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "file", abstract: "Put, get, list, describe and delete files.",
    subcommands: [
      FilePutCommand.self, FileGetCommand.self, FileList.self, FileStat.self, FileDelete.self,
    ])
}

struct FileList: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List all files of a topic by name, the latest version of each.")

  @Argument(help: "The topic.")
  var topic: String
  @Option(help: "Only names beginning so.")
  var prefix = ""
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    try await self.server.withClient { client in
      // Page by page: a topic may hold more files than memory.
      var list = JSONList()
      var isFirst = true
      var failure: (any Error)?
      func write(_ page: [FileInfo]) async throws(MemQError) {
        let text: String
        if self.output.isJSON {
          text = page.map { list.next($0.json) }.joined()
        } else {
          text = (isFirst ? Self.title : "") + page.map(Self.row).joined()
        }
        isFirst = false
        do {
          try await Output.standard.write(text)
        } catch {
          failure = error
          throw MemQError(.cancelled, "the output cannot be written")
        }
      }
      do {
        try await client.files(threads: 1).list(self.topic, prefix: self.prefix, page: write)
      } catch {
        throw failure ?? error
      }
      if self.output.isJSON { try await Output.standard.write(list.end) }
    }
  }

  private static let title = "        SIZE  VERSION  VERDICT      SHA-256           NAME\n"

  private static func row(_ file: FileInfo) -> String {
    func right(_ text: String, _ width: Int) -> String {
      String(repeating: " ", count: max(0, width - text.count)) + text
    }
    func left(_ text: String, _ width: Int) -> String {
      text + String(repeating: " ", count: max(0, width - text.count))
    }
    return right(String(file.size), 12) + right(String(file.version), 9) + "  "
      + left(file.verdict.kind.rawValue, 13) + hexText(file.sha256.prefix(8)) + "  "
      + TextTable.printable(file.name) + "\n"
  }
}

struct FileStat: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "stat", abstract: "Describe one file.")

  @Argument(help: "The topic.")
  var topic: String
  @Argument(help: "The file's name.")
  var name: String
  @Option(help: "This version; default: the latest.")
  var fileVersion: Int64?
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let file = try await self.server.withClient { client in
      try await client.files(threads: 1).stat(self.topic, self.name, version: self.fileVersion)
    }
    try await self.output.show(file.json, file.text)
  }
}

struct FileDelete: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "delete", abstract: "Delete files, all versions of each.")

  @Argument(help: "The topic.")
  var topic: String
  @Argument(help: "Names.")
  var names: [String]
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    try await self.server.withClient { client in
      let files = client.files(threads: 1)
      for name in self.names { try await files.delete(self.topic, name) }
    }
    try await self.output.show(
      ["deleted": .strings(self.names)], self.names.map { "deleted \($0)\n" }.joined())
  }
}

extension FileInfo {
  /// For people.
  var text: String {
    var text = """
      name      \(TextTable.printable(self.name))
      topic     \(self.topic), partition \(self.partition), offset \(self.offset)
      version   \(self.version), published \(TimeText.iso(self.publishedAt))
      size      \(self.size) bytes
      sha-256   \(hexText(self.sha256))
      verdict   \(self.verdict.text)

      """
    if !self.contentType.isEmpty { text += "type      \(TextTable.printable(self.contentType))\n" }
    for (name, value) in self.attributes.sorted(by: { $0.key < $1.key }) {
      text += "attribute \(TextTable.printable(name))=\(TextTable.printable(value))\n"
    }
    return text
  }
}

extension Verdict {
  var text: String {
    switch self.kind {
    case .clean: "clean (\(self.engine))"
    case .infected: "infected: \(self.signature) (\(self.engine))"
    case .notScanned: "not scanned: \(self.reason)"
    case .off: "off: nobody looked"
    }
  }
}

/// A JSON array, element by element.
struct JSONList {
  private var count = 0

  /// The text of the next element with what goes before it.
  mutating func next(_ element: JSON) -> String {
    defer { self.count += 1 }
    return (self.count == 0 ? "[\n  " : ",\n  ") + element.line
  }

  var end: String { self.count == 0 ? "[]\n" : "\n]\n" }
}
