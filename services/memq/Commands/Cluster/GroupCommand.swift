// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQClient
import MemQModel
import MemQRuntime
import MemQSystem

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
    var table = TextTable("NAME", "STATE", ">MEMBERS", ">OFFSETS", "TOPICS")
    for group in groups {
      table.add(
        group.name, group.state.rawValue, String(group.members.count), String(group.commits.count),
        group.topics.joined(separator: ","))
    }
    let rows: [JSON] = groups.map { group in
      [
        "name": .string(group.name), "state": .string(group.state.rawValue),
        "members": .number(group.members.count), "topics": .strings(group.topics),
        "committed_partitions": .number(group.commits.count),
      ]
    }
    try await self.output.show(.array(rows), table.text)
  }
}

extension GroupInfo {
  /// Topics its members read.
  fileprivate var topics: [String] { Set(self.members.flatMap(\.topics)).sorted() }

  /// Who reads a partition, or is about to give it back.
  fileprivate func reader(of partition: TopicPartition) -> Member? {
    self.members.first {
      $0.assigned.contains(partition) || $0.revoking.contains(partition)
    }
  }
}

struct GroupDescribe: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "describe",
    abstract: "Show a group's members, their partitions, its offsets and how far behind they are.")

  @Argument(help: "Its name.")
  var name: String
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let (group, names) = try await self.server.withClient { client in
      (try await client.admin.describeGroup(self.name), try await topicNames(client))
    }
    func name(_ topic: TopicID) -> String { names[topic] ?? "\(topic)" }
    var members = TextTable("MEMBER", "CLIENT", "HOST", ">EPOCH", ">PARTITIONS", "MOVING")
    for member in group.members {
      members.add(
        member.id, member.clientID, member.host, "\(member.epoch)", "\(member.assigned.count)",
        Self.moving(member))
    }
    var offsets = TextTable(
      "TOPIC", ">PARTITION", ">OFFSET", ">END", ">BEHIND", "COMMITTED", "MEMBER")
    for commit in group.commits {
      offsets.add(
        name(commit.topicPartition.topic), "\(commit.topicPartition.partition)",
        commit.offset.map { "\($0)" } ?? "-", commit.highWatermark.map { "\($0)" } ?? "",
        commit.lag.map { "\($0)" } ?? "", TimeText.iso(commit.committedAt),
        group.reader(of: commit.topicPartition)?.id ?? "")
    }
    var text = "group \(group.name), \(group.state.rawValue), epoch \(group.epoch)\n"
    if !group.members.isEmpty { text += "\n" + members.text }
    if !group.commits.isEmpty { text += "\n" + offsets.text }
    try await self.output.show(Self.json(group, name), text)
  }

  private static func moving(_ member: GroupInfo.Member) -> String {
    var parts: [String] = []
    if !member.revoking.isEmpty { parts.append("gives \(member.revoking.count)") }
    if !member.waiting.isEmpty { parts.append("gets \(member.waiting.count)") }
    return parts.joined(separator: ", ")
  }

  private static func json(_ group: GroupInfo, _ name: (TopicID) -> String) -> JSON {
    func partitions(_ partitions: [TopicPartition]) -> JSON {
      .array(
        partitions.map {
          ["topic": .string(name($0.topic)), "partition": .number($0.partition.rawValue)]
        })
    }
    return [
      "name": .string(group.name), "epoch": .number(group.epoch),
      "state": .string(group.state.rawValue), "topics": .strings(group.topics),
      "members": .array(
        group.members.map { member in
          [
            "id": .string(member.id), "instance_id": .optional(member.instanceID, JSON.string),
            "client_id": .string(member.clientID), "host": .string(member.host),
            "epoch": .number(member.epoch), "topics": .strings(member.topics),
            "session_timeout_ms": .number(member.sessionTimeout.milliseconds),
            "assigned": partitions(member.assigned), "revoking": partitions(member.revoking),
            "waiting": partitions(member.waiting),
          ]
        }),
      "lag": .optional(Self.lag(group), { .number($0) }),
      "offsets": .array(
        group.commits.map { commit in
          [
            "topic": .string(name(commit.topicPartition.topic)),
            "partition": .number(commit.topicPartition.partition.rawValue),
            "offset": .optional(commit.offset) { .number($0.rawValue) },
            "high_watermark": .optional(commit.highWatermark) { .number($0.rawValue) },
            "lag": .optional(commit.lag) { .number($0) },
            "leader_epoch": .optional(commit.leaderEpoch) { .number($0.rawValue) },
            "committed_at_ms": .number(commit.committedAt.milliseconds),
            "member": .optional(group.reader(of: commit.topicPartition)?.id, JSON.string),
          ]
        }),
    ]
  }

  /// Of all committed partitions together; nil when one of them is not known.
  private static func lag(_ group: GroupInfo) -> Int64? {
    let lags = group.commits.filter { $0.offset != nil }.map(\.lag)
    return lags.contains(nil) ? nil : lags.reduce(0) { $0 + ($1 ?? 0) }
  }
}

/// A length of time: `90s`, `15m`, `2h`, `7d`.
struct TimeSpanChoice: ExpressibleByArgument {
  let duration: Duration

  init?(argument: String) {
    guard let span = TimeSpan(argument) else { return nil }
    self.duration = span.duration
  }
}

struct GroupReset: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "reset",
    abstract: "Set a group's offsets of a topic, for partitions that no member reads.")

  @Argument(help: "The group.")
  var name: String
  @Argument(help: "The topic.")
  var topic: String
  @Option(help: ArgumentHelp("Where to.", valueName: "beginning|end|OFFSET|TIMESTAMP"))
  var to: StartChoice?
  @Option(help: ArgumentHelp("To the records of so long ago: 90s, 15m, 2h, 7d.", valueName: "AGE"))
  var ago: TimeSpanChoice?
  @Option(help: "Only this partition; may be repeated. Default: all.")
  var partition: [Int32] = []
  @Flag(help: "Show what would be set; set nothing.")
  var dryRun = false
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard (self.to == nil) != (self.ago == nil) else {
      throw ValidationError("one of --to and --ago is needed")
    }
  }

  private struct Row {
    let partition: PartitionIndex
    let before: Offset?
    let offset: Offset
  }

  func run() async throws {
    let rows = try await self.server.withClient { client in
      let topic = try await client.admin.describeTopic(self.topic).topic
      let before = try await self.committed(client)
      let offsets = try await self.offsets(client, topic)
      if !self.dryRun {
        try await client.admin.resetGroup(
          self.name, to: offsets.map { (TopicPartition(topic.id, $0.partition), $0.offset) })
      }
      return offsets.map { partition, offset in
        Row(
          partition: partition, before: before[TopicPartition(topic.id, partition)], offset: offset)
      }
    }
    var table = TextTable("TOPIC", ">PARTITION", ">BEFORE", ">OFFSET")
    for row in rows {
      table.add(
        self.topic, "\(row.partition)", row.before.map { "\($0)" } ?? "-", "\(row.offset)")
    }
    try await self.output.show(
      .array(
        rows.map {
          [
            "topic": .string(self.topic), "partition": .number($0.partition.rawValue),
            "before": .optional($0.before) { .number($0.rawValue) },
            "offset": .number($0.offset.rawValue), "dry_run": .bool(self.dryRun),
          ]
        }), table.text)
  }

  /// A group that there is not yet has none.
  private func committed(_ client: MemQClient) async throws -> [TopicPartition: Offset] {
    do throws(MemQError) {
      let commits = try await client.admin.describeGroup(self.name).commits
      return Dictionary(
        commits.compactMap { commit in commit.offset.map { (commit.topicPartition, $0) } },
        uniquingKeysWith: { a, _ in a })
    } catch {
      guard error.code == .groupNotFound else { throw error }
      return [:]
    }
  }

  private func offsets(
    _ client: MemQClient, _ topic: TopicInfo
  ) async throws -> [(partition: PartitionIndex, offset: Offset)] {
    let partitions = self.partition.map { PartitionIndex($0) }
    let admin = client.admin
    let latest = try await admin.offsets(topic.name, partitions: partitions, .latest)
    let start =
      self.to?.start
      ?? .timestamp(
        Timestamp(
          milliseconds: SystemClock().wall.milliseconds - (self.ago?.duration.milliseconds ?? 0)))
    let found: [(partition: PartitionIndex, offset: Offset?)]
    switch start {
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
    commandName: "delete", abstract: "Forget a group and its offsets. It must have no member.")

  @Argument(help: "Its name.")
  var name: String
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    try await self.server.withClient { try await $0.admin.deleteGroup(self.name) }
    try await self.output.show(["deleted": .string(self.name)], "deleted group \(self.name)\n")
  }
}
