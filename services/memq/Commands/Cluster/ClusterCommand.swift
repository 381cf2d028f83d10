// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQClient
import MemQModel
import MemQSystem

struct ClusterCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "cluster",
    abstract:
      "Show the cluster: whether it is ready, its nodes, its partitions; move a partition's replicas.",
    subcommands: [
      ClusterStatus.self, ClusterNodes.self, ClusterPartitions.self, ClusterReassign.self,
    ])
}

struct ClusterStatus: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "Exit status 0 when every service is ready, else 1.")

  @Option(help: ArgumentHelp("Wait so long until it is ready.", valueName: "seconds"))
  var wait: Double = 0
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  private static let services = [
    "metadata", "replication", "ingest", "uploader", "scanner", "rebalancer",
  ]

  func run() async throws {
    var server = self.server
    // The question is whether it serves now.
    server.connectTimeout = 0
    let end = ContinuousClock.now + .milliseconds(Int64(self.wait * 1_000))
    while true {
      do {
        let cluster = try await server.withClient { try await $0.admin.describeCluster() }
        if cluster.isReady || ContinuousClock.now >= end { return try await self.show(cluster) }
      } catch {
        guard ContinuousClock.now < end, error.isRetriableMemQ else { throw error }
      }
      try await Task.sleep(for: .milliseconds(100))
    }
  }

  private func show(_ cluster: ClusterDescription) async throws {
    var rows: [JSON] = []
    var table = TextTable("SERVICE", "READY", "NODES")
    for service in Self.services {
      let nodes = cluster.nodes.filter { $0.service == service }
      let isReady = nodes.contains { $0.state == "ready" }
      rows.append([
        "service": .string(service), "ready": .bool(isReady),
        "nodes": .array(nodes.map { .number($0.id.rawValue) }),
      ])
      table.add(
        service, isReady ? "yes" : "no",
        nodes.isEmpty ? "none" : nodes.map { "\($0.id) \($0.state)" }.joined(separator: ", "))
    }
    rows.append([
      "service": "cluster", "ready": .bool(cluster.isReady), "id": .text(cluster.id),
      "topics": .number(cluster.topics.count), "partitions": .number(cluster.partitions.count),
      "problems": .strings(cluster.problems),
    ])
    try await self.output.show(
      .array(rows),
      table.text + "cluster \(cluster.id): \(cluster.topics.count) topics, "
        + "\(cluster.partitions.count) partitions, \(cluster.isReady ? "ready" : "not ready")\n")
    guard !cluster.isReady else { return }
    for problem in cluster.problems { Output.note("memq: \(problem)") }
    throw ExitCode(1)
  }
}

extension Error {
  /// One of ours that may be gone at the next attempt.
  var isRetriableMemQ: Bool { (self as? MemQError)?.isRetriable ?? false }
}

struct ClusterNodes: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "nodes", abstract: "List the running instances of all services.")

  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let nodes = try await self.server.withClient { try await $0.admin.describeCluster().nodes }
    var table = TextTable(
      ">ID", "SERVICE", "STATE", "ADDRESS", "ADMIN", "RACK", "HOST", ">PID", "VOLUMES")
    for node in nodes {
      table.add(
        "\(node.id)", node.service, node.state, node.address, node.adminAddress, node.rack,
        node.host,
        "\(node.pid)", Self.volumes(node))
      for volume in node.volumes where volume.state == "failed" {
        Output.note("memq: volume \(volume.id) of node \(node.id) failed: \(volume.problem)")
      }
    }
    try await self.output.show(.array(nodes.map(\.json)), table.text)
  }

  private static func volumes(_ node: NodeInfo) -> String {
    guard !node.volumes.isEmpty else { return "" }
    let fit = node.volumes.count { $0.state == "fit" }
    return fit == node.volumes.count ? "\(fit) fit" : "\(fit) of \(node.volumes.count) fit"
  }
}

struct ClusterPartitions: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "partitions", abstract: "List partitions with leaders and replicas.")

  @Argument(help: "Only this topic; default: all.")
  var topic: String?
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  /// Topics whose leaders are asked at a time.
  private static let topicsAtOnce = 8

  private struct Row: Sendable {
    var topic: String
    var partition: PartitionInfo
    /// Nil while no leader tells it.
    var highWatermark: Offset?
  }

  func run() async throws {
    let rows = try await self.server.withClient { client in
      try await Self.rows(client, self.topic)
    }
    var table = TextTable(
      "TOPIC", ">PARTITION", ">LEADER", ">EPOCH", "REPLICAS", "IN SYNC", "DAMAGED", ">UPLOADED",
      ">TO")
    for row in rows {
      let partition = row.partition
      table.add(
        row.topic, "\(partition.partition)", partition.leader.map { "\($0)" } ?? "none",
        "\(partition.leaderEpoch)", partition.replicas.map { "\($0)" }.joined(separator: ","),
        partition.isr.map { "\($0)" }.joined(separator: ","),
        partition.damaged.map { "\($0.node)" }.joined(separator: ","),
        "\(partition.uploadedOffset)",
        row.highWatermark.map { "\($0)" } ?? "")
    }
    try await self.output.show(
      .array(
        rows.map { row in
          guard case .object(var fields) = row.partition.json(topic: row.topic) else {
            return .null
          }
          fields.append(
            ("high_watermark", .optional(row.highWatermark) { .number($0.rawValue) }))
          return .object(fields)
        }), table.text)
  }

  private static func rows(_ client: MemQClient, _ only: String?) async throws -> [Row] {
    let cluster = try await client.admin.describeCluster()
    let topics = cluster.topics.filter { only == nil || only == $0.name }
      .sorted { $0.name < $1.name }
    if let only, topics.isEmpty {
      throw MemQError(.topicNotFound, "there is no such topic", subject: only)
    }
    let partitions = Dictionary(grouping: cluster.partitions) { $0.topicPartition.topic }
    return await withTaskGroup(of: (Int, [Row]).self) { tasks in
      var next = 0
      var found: [Int: [Row]] = [:]
      func ask() {
        guard next < topics.count else { return }
        let (at, topic) = (next, topics[next])
        next += 1
        tasks.addTask { (at, await Self.rows(client, topic, partitions[topic.id] ?? [])) }
      }
      for _ in 0..<Self.topicsAtOnce { ask() }
      for await (at, rows) in tasks {
        found[at] = rows
        ask()
      }
      return topics.indices.flatMap { found[$0] ?? [] }
    }
  }

  private static func rows(
    _ client: MemQClient, _ topic: TopicInfo, _ partitions: [PartitionInfo]
  ) async -> [Row] {
    let led = partitions.filter { $0.leader != nil }.map(\.partition)
    let marks = await client.admin.highWatermarks(topic.name, partitions: led)
    return partitions.sorted { $0.partition < $1.partition }.map {
      Row(topic: topic.name, partition: $0, highWatermark: marks[$0.partition])
    }
  }
}
