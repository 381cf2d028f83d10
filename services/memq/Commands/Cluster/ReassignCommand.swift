// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQClient
import MemQModel

struct ClusterReassign: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "reassign",
    abstract: "Move a partition's replicas to other nodes or volumes, or cancel such a move.",
    discussion: """
      Added replicas catch up first; those that are not wanted go when all added ones are in sync. Nothing is lost if the command is
      ended meanwhile, and asking again for the same replicas waits for the same change.
      """)

  @Argument(help: "The topic.")
  var topic: String
  @Argument(help: "The partition's number.")
  var partition: Int32
  @Option(
    help: ArgumentHelp(
      "Nodes, preferred leader first; a node's volume may follow a colon: 1,3,4:VOLUME.",
      valueName: "nodes"))
  var replicas: String?
  @Flag(help: "Go back to the replicas from before the change that is under way.")
  var cancel = false
  @Option(
    help: ArgumentHelp("Wait so long until the change is complete.", valueName: "seconds"))
  var wait: Double = 60
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard (self.replicas != nil) != self.cancel else {
      throw ValidationError("Say either --replicas or --cancel.")
    }
    if let replicas = self.replicas { _ = try Self.wishes(replicas) }
  }

  func run() async throws {
    let topic = self.topic
    let index = PartitionIndex(self.partition)
    let wishes = try self.replicas.map(Self.wishes)
    let end = ContinuousClock.now + .milliseconds(Int64(self.wait * 1_000))
    let partition = try await self.server.withClient { client in
      guard let wishes else { return try await client.admin.cancelReassignment(topic, index) }
      var partition = try await client.admin.reassign(topic, index, to: wishes)
      let nodes = wishes.map(\.node)
      while !Self.isComplete(partition, nodes), ContinuousClock.now < end {
        try await Task.sleep(for: .milliseconds(100))
        let found = try await client.admin.describeCluster().partitions
        guard let now = found.first(where: { $0.topicPartition == partition.topicPartition }) else {
          throw MemQError(.partitionNotFound, "the partition is gone", subject: "\(topic)/\(index)")
        }
        partition = now
      }
      return partition
    }
    try await self.output.show(partition.json(topic: topic), self.text(partition, wishes))
    if let wishes, !Self.isComplete(partition, wishes.map(\.node)) {
      throw MemQError(
        .deadlineExceeded, "the change is under way and not complete yet; ask again to wait on",
        subject: "\(topic)/\(index)", limit: Int64(self.wait * 1_000))
    }
  }

  /// All wished nodes hold the partition, alone, and are in sync.
  private static func isComplete(_ partition: PartitionInfo, _ nodes: [NodeID]) -> Bool {
    partition.targetReplicas.isEmpty && partition.replicas == nodes
      && nodes.allSatisfy { partition.isr.contains($0) }
  }

  private func text(
    _ partition: PartitionInfo, _ wishes: [(node: NodeID, volume: VolumeID?)]?
  ) -> String {
    func list(_ nodes: [NodeID]) -> String { nodes.map { "\($0)" }.joined(separator: ",") }
    let name = "\(self.topic)/\(self.partition)"
    let now = "replicas \(list(partition.replicas)), in sync \(list(partition.isr))"
    guard let wishes else { return "\(name): cancelled; \(now)\n" }
    return Self.isComplete(partition, wishes.map(\.node))
      ? "\(name): complete; \(now)\n"
      : "\(name): under way to \(list(wishes.map(\.node))); \(now)\n"
  }

  private static func wishes(_ text: String) throws -> [(node: NodeID, volume: VolumeID?)] {
    try text.split(separator: ",", omittingEmptySubsequences: false).map { part in
      let halves = part.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
      guard let number = Int32(halves[0]), number > 0 else {
        throw ValidationError("'\(part)' does not begin with a node's number.")
      }
      guard halves.count == 2 else { return (NodeID(number), nil) }
      guard let volume = VolumeID(halves[1]) else {
        throw ValidationError("'\(halves[1])' is no volume id.")
      }
      return (NodeID(number), volume)
    }
  }
}
