// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import Testing

/// What topics may keep on the SSD alone, against what the volumes have.
@Suite struct AdmissionTests {
  private static let gib: Int64 = 1 << 30

  /// Nodes with one volume each, of these GiB.
  private func cluster(_ capacities: [Int64]) throws -> PureCluster {
    var cluster = try PureCluster()
    try cluster.joinReplicas(capacities.count)
    for (index, capacity) in capacities.enumerated() {
      try cluster.report(
        [VolumeImage(VolumeID(test: UInt64(1_001 + index)), capacityBytes: capacity * Self.gib)],
        of: NodeID(Int32(index + 1)))
    }
    return cluster
  }

  private func settings(keep gib: Int64) -> SortedMap<String, String> {
    ["object.tier": "false", "retention.bytes": "\(gib * Self.gib)"]
  }

  @Test func `a topic is refused when its partitions may outgrow the volumes, and nothing is made`()
    throws
  {
    var cluster = try self.cluster([10, 10, 10])
    // 9 claims of 3 GiB on 3 volumes of 10.
    try cluster.makeTopic("fits", partitions: 3, replicas: 3, settings: self.settings(keep: 3))
    let revision = cluster.revision
    let refused = thrown { () throws(MemQError) in
      try cluster.makeTopic("more", partitions: 1, replicas: 2, settings: self.settings(keep: 2))
    }
    #expect(refused?.code == .limitReached && refused?.isRetriable == false)
    #expect(refused?.limit == Self.gib && refused?.actual == 2 * Self.gib)
    #expect(cluster.revision == revision)
    // What is left is given out, and what needs none of it is not refused.
    try cluster.makeTopic("last", partitions: 3, replicas: 1, settings: self.settings(keep: 1))
    try cluster.makeTopic("tiered", partitions: 3, replicas: 3, settings: ["retention.bytes": "1"])
    try cluster.makeTopic("unbounded", replicas: 3, settings: ["object.tier": "false"])
    // A topic that goes gives its share back.
    try cluster.run { (state) throws(MemQError) in
      try state.deleteTopic("fits", at: Timestamp(milliseconds: 9))
    }
    try cluster.makeTopic("more", partitions: 3, replicas: 3, settings: self.settings(keep: 3))
  }

  @Test func `replicas go where there is room, and in proportion to the capacities`() throws {
    var cluster = try self.cluster([10, 2, 10])
    let large = try cluster.makeTopic(
      "large", partitions: 4, replicas: 1, settings: self.settings(keep: 5))
    let nodes = (0..<4).map { cluster.partition(large, $0).replicas[0].node }
    #expect(nodes.sorted() == [NodeID(1), NodeID(1), NodeID(3), NodeID(3)])

    var wide = try PureCluster()
    try wide.join(.replication, uuid: 1, volumes: [10, 11])
    try wide.report(
      [
        VolumeImage(VolumeID(test: 10), capacityBytes: 3 * Self.gib),
        VolumeImage(VolumeID(test: 11), capacityBytes: Self.gib),
      ], of: NodeID(1))
    let topic = try wide.makeTopic("t", partitions: 8)
    let volumes = (0..<8).map { wide.partition(topic, $0).replicas[0].volume }
    #expect(volumes.count { $0 == VolumeID(test: 10) } == 6)
  }

  @Test func `a topic's claim rises only as far as the volumes have it`() throws {
    var cluster = try self.cluster([10])
    try cluster.makeTopic("a", partitions: 2, settings: self.settings(keep: 2))
    try cluster.makeTopic("b", settings: ["retention.bytes": "\(7 * Self.gib)"])
    func alter(
      _ name: String, _ set: SortedMap<String, String>, partitions: Int = 0
    ) throws(MemQError) {
      try cluster.run { (state) throws(MemQError) in
        try state.alterTopic(name, set: set, unset: [], partitionCount: partitions)
      }
    }
    // Without its tier it would keep 7 GiB beside 4.
    let untiered = thrown { () throws(MemQError) in try alter("b", ["object.tier": "false"]) }
    #expect(untiered?.code == .limitReached)
    #expect(untiered?.limit == 10 * Self.gib && untiered?.actual == 11 * Self.gib)
    let partitions = thrown { () throws(MemQError) in try alter("a", [:], partitions: 6) }
    #expect(partitions?.code == .limitReached && partitions?.actual == 2 * Self.gib)
    try alter("a", [:], partitions: 5)
    // A capacity that shrank refuses nothing that asks for less.
    try cluster.report(
      [VolumeImage(VolumeID(test: 1_001), capacityBytes: 3 * Self.gib)], of: NodeID(1))
    try alter("a", ["retention.bytes": "\(Self.gib)"])
    let again = thrown { () throws(MemQError) in
      try alter("a", ["retention.bytes": "\(2 * Self.gib)"])
    }
    #expect(again?.code == .limitReached)
  }

  @Test func `what would never leave the SSD is refused`() throws {
    var cluster = try self.cluster([10])
    let refused = thrown { () throws(MemQError) in
      try cluster.makeTopic("t", settings: ["object.tier": "false", "retention.ms": "-1"])
    }
    #expect(refused?.code == .topicCombinationRefused)
    try cluster.makeTopic(
      "t",
      settings: ["object.tier": "false", "retention.ms": "-1", "retention.bytes": "1000000"])
  }
}
