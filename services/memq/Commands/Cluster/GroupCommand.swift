// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQClient
import MemQModel

struct GroupCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "group", abstract: "List, describe, reset and delete consumer groups.",
    subcommands: [GroupList.self, GroupDescribe.self, GroupReset.self, GroupDelete.self])
}

/// Names of topics by id.
private func topicNames(_ client: MemQClient) async throws -> [TopicID: String] {
  Dictionary(
    try await client.admin.topics().map { ($0.id, $0.name) }, uniquingKeysWith: { a, _ in a })
}

struct GroupList: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List groups by name.")

  @Option(help: "Only names beginning so.")
  var prefix = ""
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let groups = try await self.server.withClient { try await $0.admin.groups(prefix: self.prefix) }
    var table = TextTable("NAME", "MEMBER", "CLIENT", ">OFFSETS")
    for group in groups {
      table.add(group.name, group.memberID ?? "", group.clientID, String(group.commits.count))
    }
    let rows: [JSON] = groups.map { group in
      [
        "name": .string(group.name), "member": .optional(group.memberID, JSON.string),
        "client_id": .string(group.clientID), "topics": .strings(group.topics),
        "committed_partitions": .number(group.commits.count),
      ]
    }
    try await self.output.show(.array(rows), table.text)
  }
}

struct GroupDescribe: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "describe", abstract: "Show a group's offsets and how far behind they are.")

  @Argument(help: "Its name.")
  var name: String
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let (group, rows) = try await self.server.withClient { client in
      let group = try await client.admin.describeGroup(self.name)
      return (group, try await self.rows(group, client))
    }
    var table = TextTable("TOPIC", ">PARTITION", ">OFFSET", ">END", ">BEHIND", "COMMITTED")
    for row in rows {
      table.add(
        row.topic, "\(row.commit.topicPartition.partition)", "\(row.commit.offset)",
        row.end.map { "\($0)" } ?? "", row.behind.map { "\($0)" } ?? "",
        TimeText.iso(row.commit.committedAt))
    }
    let member = group.memberID.map { "member \($0) (\(group.clientID))" } ?? "no member"
    try await self.output.show(
      Self.json(group, rows),
      "group \(group.name), epoch \(group.epoch), \(member)\n\n\(table.text)")
  }

  private struct Row {
    let topic: String
    let commit: GroupInfo.Commit
    let end: Offset?
    var behind: Int64? { self.end.map { max(0, $0 - self.commit.offset) } }
  }

  private func rows(_ group: GroupInfo, _ client: MemQClient) async throws -> [Row] {
    let names = try await topicNames(client)
    var ends: [TopicPartition: Offset] = [:]
    for id in Set(group.commits.map(\.topicPartition.topic)).sorted() {
      guard let name = names[id] else { continue }
      for (partition, offset) in try await client.admin.offsets(name, .latest) {
        ends[TopicPartition(id, partition)] = offset
      }
    }
    return group.commits.map {
      Row(
        topic: names[$0.topicPartition.topic] ?? "\($0.topicPartition.topic)", commit: $0,
        end: ends[$0.topicPartition])
    }
  }

  private static func json(_ group: GroupInfo, _ rows: [Row]) -> JSON {
    [
      "name": .string(group.name), "epoch": .number(group.epoch),
      "member": .optional(group.memberID, JSON.string), "client_id": .string(group.clientID),
      "topics": .strings(group.topics),
      "offsets": .array(
        rows.map { row in
          [
            "topic": .string(row.topic),
            "partition": .number(row.commit.topicPartition.partition.rawValue),
            "offset": .number(row.commit.offset.rawValue),
            "high_watermark": .optional(row.end) { .number($0.rawValue) },
            "lag": .optional(row.behind) { .number($0) },
            "committed_at_ms": .number(row.commit.committedAt.milliseconds),
          ]
        }),
    ]
  }
}

struct GroupReset: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "reset",
    abstract: "Set a group's offsets for a topic. Nobody may read for the group meanwhile.")

  @Argument(help: "The group.")
  var name: String
  @Argument(help: "The topic.")
  var topic: String
  @Option(help: ArgumentHelp("Where to.", valueName: "beginning|end|OFFSET|TIMESTAMP"))
  var to: StartChoice
  @Option(help: "Only this partition; may be repeated. Default: all.")
  var partition: [Int32] = []
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let set = try await self.server.withClient { client in
      let topic = try await client.admin.describeTopic(self.topic).topic
      let offsets = try await self.offsets(client, topic)
      try await client.admin.resetGroup(
        self.name, to: offsets.map { (TopicPartition(topic.id, $0.partition), $0.offset) })
      return offsets
    }
    var table = TextTable("TOPIC", ">PARTITION", ">OFFSET")
    for (partition, offset) in set { table.add(self.topic, "\(partition)", "\(offset)") }
    try await self.output.show(
      .array(
        set.map {
          [
            "topic": .string(self.topic), "partition": .number($0.partition.rawValue),
            "offset": .number($0.offset.rawValue),
          ]
        }), table.text)
  }

  private func offsets(
    _ client: MemQClient, _ topic: TopicInfo
  ) async throws -> [(partition: PartitionIndex, offset: Offset)] {
    let partitions = self.partition.map { PartitionIndex($0) }
    let admin = client.admin
    let latest = try await admin.offsets(topic.name, partitions: partitions, .latest)
    let found: [(partition: PartitionIndex, offset: Offset?)]
    switch self.to.start {
    case .end: found = latest
    case .beginning: found = try await admin.offsets(topic.name, partitions: partitions, .earliest)
    case .timestamp(let time):
      found = try await admin.offsets(topic.name, partitions: partitions, .timestamp(time))
    case .offset(let offset): found = latest.map { ($0.partition, offset) }
    }
    return zip(found, latest).map { ($0.partition, $0.offset ?? $1.offset ?? .zero) }
  }
}

struct GroupDelete: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "delete", abstract: "Forget a group and its offsets. Nobody may read for it.")

  @Argument(help: "Its name.")
  var name: String
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    try await self.server.withClient { try await $0.admin.deleteGroup(self.name) }
    try await self.output.show(["deleted": .string(self.name)], "deleted group \(self.name)\n")
  }
}
