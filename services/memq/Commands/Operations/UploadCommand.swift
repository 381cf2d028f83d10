// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQClient
import MemQModel

struct UploadCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "upload", abstract: "Show and hurry the way of records to the object store.",
    subcommands: [UploadStatusCommand.self, UploadFlush.self])
}

struct UploadStatusCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "Show uploaded offsets, objects, bytes and billed requests.")

  @Argument(help: "Only this topic; default: all.")
  var topic: String?
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let status = try await self.server.withClient { try await $0.admin.uploadStatus(self.topic) }
    var table = TextTable(
      "TOPIC", ">PARTITION", ">FROM", ">ON SSD FROM", ">UPLOADED", ">TO", ">SSD BYTES")
    for row in status.partitions {
      table.add(
        row.topic, "\(row.partition)", "\(row.logStart)", "\(row.localStart)", "\(row.uploaded)",
        "\(row.highWatermark)", "\(row.localBytes)")
    }
    try await self.output.show(
      status.json,
      table.text
        + "\(status.objects) objects, \(byteText(status.objectBytes)), \(status.billedRequests) billed requests; "
        + "\(status.bodies) file bodies, \(byteText(status.bodyBytes))\n")
  }
}

struct UploadFlush: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "flush", abstract: "Upload what is committed now, and wait for it.")

  @Argument(help: "Only this topic; default: all.")
  var topic: String?
  @Option(help: ArgumentHelp("Give up after so long.", valueName: "seconds"))
  var timeout = 300
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard (1...86_400).contains(self.timeout) else {
      throw ValidationError("--timeout must be from 1 to 86400 seconds")
    }
  }

  func run() async throws {
    let result = try await self.server.withClient { client in
      try await client.admin.flushUploads(self.topic, timeout: .seconds(self.timeout))
    }
    try await self.output.show(
      [
        "objects": .number(result.objects), "records": .number(result.records),
        "bytes": .number(result.bytes),
      ],
      "uploaded \(result.records) records in \(result.objects) objects, \(byteText(result.bytes))\n"
    )
  }
}
