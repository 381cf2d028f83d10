// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQClient
import MemQModel

struct TopicCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "topic", abstract: "Make, list, describe, change, trim and delete topics.",
    subcommands: [
      TopicCreate.self, TopicList.self, TopicDescribe.self, TopicAlter.self, TopicTrim.self,
      TopicDelete.self,
    ])
}

/// `scan.policy`, under the name people type.
enum ScanChoice: String, ExpressibleByArgument, CaseIterable {
  case off, gate
}

private func settings(_ given: [Assignment], _ scan: ScanChoice?) throws -> [String: String] {
  var settings = try given.dictionary()
  if let scan {
    guard settings.updateValue(scan.rawValue, forKey: "scan.policy") == nil else {
      throw ValidationError("--scan and --set scan.policy are both given")
    }
  }
  return settings
}

struct TopicCreate: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "create", abstract: "Make a topic.")

  @Argument(help: "Its name: 1 to 249 of a-z A-Z 0-9 . _ -")
  var name: String
  @Option(help: "Number of partitions; default: the cluster's (1).")
  var partitions: Int?
  @Option(
    help: "Copies of each partition; default: 3, or as many as there are storage nodes when fewer.")
  var replicationFactor: Int?
  @Option(help: "Whether a scanner judges what comes before it is visible.")
  var scan: ScanChoice?
  @Option(help: ArgumentHelp("A setting; may be repeated.", valueName: "name=value"))
  var set: [Assignment] = []
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let settings = try settings(self.set, self.scan)
    let topic = try await self.server.withClient { client in
      try await client.admin.createTopic(
        self.name, partitions: self.partitions, replicationFactor: self.replicationFactor,
        settings: settings)
    }
    topic.warnOfOneCopy()
    try await self.output.show(
      topic.json,
      "made topic \(topic.name): \(topic.partitionCount) partitions, "
        + "replication factor \(topic.replicationFactor)\n")
  }
}

struct TopicList: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List topics by name.")

  @Option(help: "Only names beginning so.")
  var prefix = ""
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let topics = try await self.server.withClient { try await $0.admin.topics(prefix: self.prefix) }
    var table = TextTable("NAME", ">PARTITIONS", ">REPLICATION", "SETTINGS")
    for topic in topics {
      table.add(
        topic.name, String(topic.partitionCount), String(topic.replicationFactor),
        topic.settings.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }
          .joined(separator: " "))
    }
    try await self.output.show(.array(topics.map(\.json)), table.text)
  }
}

struct TopicDescribe: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "describe", abstract: "Show one topic with its partitions and settings.")

  @Argument(help: "Its name.")
  var name: String
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let (topic, uploads) = try await self.server.withClient { client in
      (
        try await client.admin.describeTopic(self.name),
        try? await client.admin.uploadStatus(self.name)
      )
    }
    let marks = Dictionary(
      (uploads?.partitions ?? []).map { ($0.partition, $0) },
      uniquingKeysWith: { first, _ in first })
    try await self.output.show(Self.json(topic, marks), Self.text(topic, marks))
  }

  private static func json(
    _ topic: TopicDescription, _ marks: [PartitionIndex: UploadStatus.Partition]
  ) -> JSON {
    guard case .object(var fields) = topic.topic.json else { return .null }
    fields.append(
      (
        "effective_settings",
        .object(topic.settings.map { ($0.name, .string($0.value)) })
      ))
    fields.append(
      (
        "partition_list",
        .array(
          topic.partitions.map { partition in
            guard case .object(var row) = partition.json(topic: topic.topic.name) else {
              return .null
            }
            if let mark = marks[partition.partition] {
              row.append(("log_start_offset", .number(mark.logStart.rawValue)))
              row.append(("local_start_offset", .number(mark.localStart.rawValue)))
              row.append(("high_watermark", .number(mark.highWatermark.rawValue)))
            }
            return .object(row)
          })
      ))
    return .object(fields)
  }

  private static func text(
    _ topic: TopicDescription, _ marks: [PartitionIndex: UploadStatus.Partition]
  ) -> String {
    var table = TextTable(
      ">PARTITION", ">LEADER", ">EPOCH", "REPLICAS", "IN SYNC", ">FROM", ">UPLOADED", ">TO")
    for partition in topic.partitions {
      let mark = marks[partition.partition]
      table.add(
        "\(partition.partition)", partition.leader.map { "\($0)" } ?? "none",
        "\(partition.leaderEpoch)", partition.replicas.map { "\($0)" }.joined(separator: ","),
        partition.isr.map { "\($0)" }.joined(separator: ","), mark.map { "\($0.logStart)" } ?? "",
        "\(partition.uploadedOffset)", mark.map { "\($0.highWatermark)" } ?? "")
    }
    var settings = TextTable("SETTING", "VALUE", "")
    for setting in topic.settings {
      settings.add(setting.name, setting.value, setting.isGiven ? "set" : "default")
    }
    return """
      topic \(topic.topic.name), id \(topic.topic.id), made \(TimeText.iso(topic.topic.createdAt))

      \(table.text)
      \(settings.text)
      """
  }
}

struct TopicAlter: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "alter", abstract: "Change settings, or add partitions.")

  @Argument(help: "Its name.")
  var name: String
  @Option(help: "New number of partitions; more than now.")
  var partitions: Int?
  @Option(help: "Whether a scanner judges what comes before it is visible.")
  var scan: ScanChoice?
  @Option(help: ArgumentHelp("A setting; may be repeated.", valueName: "name=value"))
  var set: [Assignment] = []
  @Option(
    help: ArgumentHelp("A setting that returns to its default; may be repeated.", valueName: "name")
  )
  var unset: [String] = []
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard self.partitions != nil || self.scan != nil || !self.set.isEmpty || !self.unset.isEmpty
    else {
      throw ValidationError("nothing to change: give --partitions, --scan, --set or --unset")
    }
  }

  func run() async throws {
    let settings = try settings(self.set, self.scan)
    let topic = try await self.server.withClient { client in
      try await client.admin.alterTopic(
        self.name, settings: settings, unset: self.unset, partitions: self.partitions)
    }
    topic.warnOfOneCopy()
    try await self.output.show(topic.json, "changed topic \(topic.name)\n")
  }
}

extension TopicInfo {
  /// On standard error: copies that an acknowledgement does not wait for are not what people think they pay for.
  fileprivate func warnOfOneCopy() {
    let given = self.settings.map { (name: $0.key, value: $0.value) }
    guard self.replicationFactor >= 2,
      let settings = try? TopicSettings(given, replicationFactor: self.replicationFactor),
      settings.minInSyncReplicas == 1
    else { return }
    Output.note(
      "memq: warning: topic \(self.name) has replication factor \(self.replicationFactor) and "
        + "min.insync.replicas 1: with acks=all, too, it acknowledges records that one node alone may hold"
    )
  }
}

struct TopicDelete: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "delete", abstract: "Delete a topic with its records, files and group offsets.")

  @Argument(help: "Its name.")
  var name: String
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    try await self.server.withClient { try await $0.admin.deleteTopic(self.name) }
    try await self.output.show(["deleted": .string(self.name)], "deleted topic \(self.name)\n")
  }
}

struct TopicTrim: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "trim",
    abstract: "Delete a topic's oldest records, for good and on every tier.")

  @Argument(help: "Its name.")
  var name: String
  @Option(help: "The first offset to keep; \"end\": delete everything that is committed.")
  var before: TrimPoint
  @Option(help: "The partition; may be repeated. Default: all.")
  var partition: [Int32] = []
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let starts = try await self.server.withClient { client in
      var partitions = self.partition
      if partitions.isEmpty {
        let topic = try await client.admin.describeTopic(self.name)
        partitions = topic.partitions.map(\.partition.rawValue)
      }
      let offsets = Dictionary(
        partitions.map { (PartitionIndex($0), self.before.offset) },
        uniquingKeysWith: { first, _ in first })
      return try await client.admin.deleteRecords(self.name, before: offsets)
    }
    let sorted = starts.sorted { $0.key < $1.key }
    try await self.output.show(
      .array(
        sorted.map { partition, start in
          [
            "topic": .string(self.name), "partition": .number(partition.rawValue),
            "log_start_offset": .number(start.rawValue),
          ]
        }),
      sorted.map { "\(self.name)/\($0.key) begins at \($0.value)\n" }.joined())
  }
}

/// Up to where records go.
struct TrimPoint: ExpressibleByArgument {
  /// Nil: the committed end.
  let offset: Offset?

  init?(argument: String) {
    if argument == "end" {
      self.offset = nil
    } else if let number = Int64(argument), number >= 0 {
      self.offset = Offset(number)
    } else {
      return nil
    }
  }
}
