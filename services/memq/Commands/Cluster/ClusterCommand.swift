// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQClient
import MemQModel
import MemQSystem

struct ClusterCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "cluster",
    abstract: "Show the cluster: whether it is ready, its nodes, its partitions.",
    subcommands: [ClusterStatus.self, ClusterNodes.self, ClusterPartitions.self])
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
        nodes.map { "\($0.id) \($0.state) \($0.address)" }.joined(separator: ", "))
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
    var table = TextTable(">ID", "SERVICE", "STATE", "ADDRESS", "ADMIN", "RACK", "HOST", ">PID")
    for node in nodes {
      table.add(
        "\(node.id)", node.service, node.state, node.address, node.adminAddress, node.rack,
        node.host,
        "\(node.pid)")
    }
    try await self.output.show(.array(nodes.map(\.json)), table.text)
  }
}

struct ClusterPartitions: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "partitions", abstract: "List partitions with leaders and replicas.")

  @Argument(help: "Only this topic; default: all.")
  var topic: String?
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let cluster = try await self.server.withClient { try await $0.admin.describeCluster() }
    let names = Dictionary(cluster.topics.map { ($0.id, $0.name) }, uniquingKeysWith: { a, _ in a })
    if let topic = self.topic, !names.values.contains(topic) {
      throw MemQError(.topicNotFound, "there is no such topic", subject: topic)
    }
    var rows: [(topic: String, partition: PartitionInfo)] = []
    for partition in cluster.partitions {
      let id = partition.topicPartition.topic
      let name = names[id] ?? "\(id)"
      if self.topic == nil || self.topic == name { rows.append((name, partition)) }
    }
    rows.sort { a, b in
      a.topic != b.topic ? a.topic < b.topic : a.partition.partition < b.partition.partition
    }
    var table = TextTable(
      "TOPIC", ">PARTITION", ">LEADER", ">EPOCH", "REPLICAS", "IN SYNC", ">UPLOADED")
    for (name, row) in rows {
      table.add(
        name, "\(row.partition)", row.leader.map { "\($0)" } ?? "none", "\(row.leaderEpoch)",
        row.replicas.map { "\($0)" }.joined(separator: ","),
        row.isr.map { "\($0)" }.joined(separator: ","), "\(row.uploadedOffset)")
    }
    try await self.output.show(.array(rows.map { $0.partition.json(topic: $0.topic) }), table.text)
  }
}
