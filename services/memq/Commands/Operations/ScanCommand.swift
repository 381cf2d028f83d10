// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import MemQClient
import MemQModel

struct ScanCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "scan", abstract: "Show the scanner.", subcommands: [ScanStatusCommand.self])
}

struct ScanStatusCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "Show engines, rules, queue and verdicts.")

  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let status = try await self.server.withClient { try await $0.admin.scanStatus() }
    var table = TextTable("ENGINE", "READY", ">RULES", "DATABASE", "PROBLEM")
    for engine in status.engines {
      table.add(
        engine.name, engine.isReady ? "yes" : "no", "\(engine.rules)",
        String(engine.databaseVersion.prefix(16)), engine.problem)
    }
    try await self.output.show(
      status.json,
      table.text + """
        waiting \(status.queued), running \(status.running); since its start: \(status.clean) clean, \
        \(status.infected) infected, \(status.notScanned) not scanned, \(byteText(status.scannedBytes)) read
        scratch disk: \(byteText(status.scratchUsedBytes)) of \(byteText(status.scratchMaxBytes))

        """)
  }
}

struct QuarantineCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "quarantine", abstract: "List, release and delete files that a verdict refused.",
    subcommands: [QuarantineList.self, QuarantineRelease.self, QuarantineDelete.self])
}

struct QuarantineList: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List quarantined files, oldest first.")

  @Argument(help: "Only this topic; default: all.")
  var topic: String?
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let entries = try await self.server.withClient { try await $0.admin.quarantine(self.topic) }
    var table = TextTable("ID", "TOPIC", "NAME", "SIGNATURE", ">SIZE", "SINCE")
    for entry in entries {
      table.add(
        entry.id, entry.topic, entry.name,
        entry.verdict.signature.isEmpty ? entry.verdict.reason : entry.verdict.signature,
        "\(entry.size)", TimeText.iso(entry.quarantinedAt))
    }
    try await self.output.show(.array(entries.map(\.json)), table.text)
  }
}

/// Who decides and why: stands in the audit record.
struct AuditOptions: ParsableArguments {
  @Option(help: "Why, for the audit record.")
  var reason = ""
  @Option(help: "Who decides, for the audit record. Default: the user of this process.")
  var actor: String?

  var name: String {
    if let actor = self.actor { return actor }
    guard let entry = getpwuid(getuid()) else { return "uid \(getuid())" }
    return String(cString: entry.pointee.pw_name)
  }
}

struct QuarantineRelease: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "release", abstract: "Publish a quarantined file all the same.")

  @Argument(help: "The entry, as quarantine list shows it.")
  var id: String
  @OptionGroup var audit: AuditOptions
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let entry = try await self.server.withClient { client in
      try await client.admin.releaseQuarantined(
        self.id, actor: self.audit.name, reason: self.audit.reason)
    }
    try await self.output.show(
      entry.json, "released \(entry.topic)/\(TextTable.printable(entry.name))\n")
  }
}

struct QuarantineDelete: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "delete", abstract: "Delete a quarantined file.")

  @Argument(help: "The entry, as quarantine list shows it.")
  var id: String
  @OptionGroup var audit: AuditOptions
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let entry = try await self.server.withClient { client in
      try await client.admin.deleteQuarantined(
        self.id, actor: self.audit.name, reason: self.audit.reason)
    }
    try await self.output.show(
      entry.json, "deleted \(entry.topic)/\(TextTable.printable(entry.name))\n")
  }
}
