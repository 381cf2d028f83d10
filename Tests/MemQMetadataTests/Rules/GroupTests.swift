// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import Testing

@Suite struct GroupTests {
  private func cluster() throws -> (PureCluster, TopicImage) {
    var cluster = try PureCluster()
    try cluster.joinReplicas(1)
    let topic = try cluster.makeTopic("t", partitions: 200)
    return (cluster, topic)
  }

  private func join(
    _ cluster: inout PureCluster, _ group: String = "g", nonce: UInt64 = 1
  ) throws(MemQError) -> GroupSession {
    let place = try cluster.run { (state) throws(MemQError) in
      try state.joinGroup(
        GroupJoin(
          group: group, topics: ["t"], clientID: "c", sessionTimeout: .zero,
          nonce: UniqueID(high: 0, low: nonce)))
    }
    return GroupSession(group: group, memberID: place.memberID, epoch: place.epoch)
  }

  private func commit(
    _ cluster: inout PureCluster, _ session: GroupSession, _ topic: TopicImage,
    _ offsets: [(Int32, Int64)]
  ) throws(MemQError) {
    let commits = offsets.map {
      OffsetCommit(
        partition: TopicPartition(topic.id, PartitionIndex($0.0)), offset: Offset($0.1),
        metadata: "")
    }
    var known: SortedMap<OffsetChunkID, Versioned<OffsetChunkRecord>> = [:]
    for id in try cluster.state.chunks(of: commits) {
      known[id] = try cluster.find(.offsets(session.group, id.topic, chunk: id.chunk))
    }
    try cluster.run { (state) throws(MemQError) in
      try state.commitOffsets(session, commits, known: known, at: Timestamp(milliseconds: 1))
    }
  }

  private func offsets(_ cluster: PureCluster, _ group: String = "g") throws -> [Int32: Int64] {
    var found: [Int32: Int64] = [:]
    for key in cluster.keys(.offsets(group)) {
      let chunk: Versioned<OffsetChunkRecord>? = try cluster.find(key)
      for (partition, offset) in chunk!.value.offsets {
        found[partition.rawValue] = offset.offset.rawValue
      }
    }
    return found
  }

  @Test func `a new member takes the group over and fences the one before`() throws {
    var (cluster, topic) = try cluster()
    let first = try join(&cluster, nonce: 1)
    try commit(&cluster, first, topic, [(0, 5)])
    let second = try join(&cluster, nonce: 2)
    #expect(second.epoch == first.epoch + 1 && second.memberID != first.memberID)
    let fenced = thrown { () throws(MemQError) in try commit(&cluster, first, topic, [(0, 9)]) }
    #expect(fenced?.code == .groupMemberFenced)
    #expect(
      thrown { () throws(MemQError) in try cluster.state.group(of: first) }?.code
        == .groupMemberFenced)
    #expect(try offsets(cluster) == [0: 5])
    try commit(&cluster, second, topic, [(0, 9), (150, 3)])
    #expect(try offsets(cluster) == [0: 9, 150: 3])
  }

  @Test func `a commit that raced with a join does not get through`() throws {
    var (cluster, topic) = try cluster()
    let first = try join(&cluster, nonce: 1)
    let plan = try cluster.state.commitOffsets(
      first,
      [
        OffsetCommit(
          partition: TopicPartition(topic.id, PartitionIndex(0)), offset: Offset(1), metadata: "")
      ], known: [:], at: .none)
    _ = try join(&cluster, nonce: 2)
    let conflict = thrown { () throws(MemQError) in try cluster.commit(plan.transactions[0]) }
    #expect(conflict?.code == .revisionConflict)
  }

  @Test func `ten thousand offsets fit several transactions`() throws {
    var (cluster, _) = try cluster()
    let wide = try cluster.makeTopic("wide", partitions: 10_000)
    let session = try join(&cluster)
    try commit(&cluster, session, wide, (0..<10_000).map { ($0, Int64($0)) })
    #expect(try offsets(cluster).count == 10_000)
    let many = thrown { () throws(MemQError) in
      try commit(&cluster, session, wide, (0..<10_001).map { ($0 % 10_000, 1) })
    }
    #expect(many?.limit == 10_000 && many?.actual == 10_001)
  }

  @Test func `an administrator resets a group nobody is in`() throws {
    var (cluster, topic) = try cluster()
    let administrator = GroupSession(group: "g", memberID: "", epoch: -1)
    try commit(&cluster, administrator, topic, [(0, 5)])
    #expect(cluster.state.groups["g"]?.value.member == nil)
    let member = try join(&cluster)
    let refused = thrown { () throws(MemQError) in
      try commit(&cluster, administrator, topic, [(0, 0)])
    }
    #expect(refused?.code == .groupNotEmpty)
    try cluster.run { (state) throws(MemQError) in try state.leaveGroup(member) }
    try commit(&cluster, administrator, topic, [(0, 0)])
    #expect(try offsets(cluster) == [0: 0])
  }

  @Test func `a silent member is taken out, unless another has come`() throws {
    var (cluster, _) = try cluster()
    let first = try join(&cluster)
    _ = try join(&cluster, nonce: 2)
    #expect(try cluster.run { $0.expireMember(of: "g", epoch: first.epoch) } == false)
    #expect(try cluster.run { $0.expireMember(of: "g", epoch: first.epoch + 1) } == true)
    #expect(cluster.state.groups["g"]?.value.member == nil)
    #expect(cluster.state.groups["g"]?.value.epoch == 2, "the epoch stays")
  }

  @Test func `a group is deleted with its offsets when nobody is in it`() throws {
    var (cluster, topic) = try cluster()
    let member = try join(&cluster)
    try commit(&cluster, member, topic, (0..<200).map { ($0, 1) })
    func delete(_ cluster: inout PureCluster) throws(MemQError) {
      let keys = cluster.keys(.offsets("g"))
      try cluster.run { (state) throws(MemQError) in try state.deleteGroup("g", offsets: keys) }
    }
    #expect(thrown { () throws(MemQError) in try delete(&cluster) }?.code == .groupNotEmpty)
    try cluster.run { (state) throws(MemQError) in try state.leaveGroup(member) }
    try delete(&cluster)
    #expect(cluster.keys(.offsets("g")).isEmpty && cluster.state.groups.isEmpty)
    #expect(thrown { () throws(MemQError) in try delete(&cluster) }?.code == .groupNotFound)
  }

  @Test(arguments: [
    ("", ErrorCode.groupNameInvalid), (String(repeating: "g", count: 256), .groupNameInvalid),
    ("a\nb", .groupNameInvalid),
  ])
  func `a group's name is printable and short`(name: String, code: ErrorCode) throws {
    var (cluster, _) = try cluster()
    #expect(thrown { () throws(MemQError) in try join(&cluster, name) }?.code == code)
  }

  @Test func `producer ids come in blocks that are never given twice, those of files from 2^62`()
    throws
  {
    var cluster = try PureCluster()
    func block(_ counter: Counter) throws -> Range<Int64> {
      try cluster.run { (state) throws(MemQError) in try state.reserveProducerIDs(counter) }
    }
    #expect(try block(.producers) == 1..<1_001)
    #expect(try block(.producers) == 1_001..<2_001)
    #expect(try block(.fileProducers).lowerBound == 1 << 62)
    #expect(try block(.fileProducers).lowerBound == (1 << 62) + 1_000)
    let id = ProducerID(5)
    let first = try cluster.run { (state) throws(MemQError) in
      try state.nextProducerEpoch(id, known: nil)
    }
    #expect(first == ProducerEpoch(1))
    let known: Versioned<ProducerEpochRecord>? = try cluster.find(.producerEpoch(id))
    let last = try cluster.state.nextProducerEpoch(
      id, known: Versioned(ProducerEpochRecord(epoch: ProducerEpoch(.max)), known!.revision))
    #expect(last.outcome == nil, "its epochs are used up")
    let unknown = thrown { () throws(MemQError) in
      try cluster.state.nextProducerEpoch(ProducerID(2_001), known: nil)
    }
    #expect(unknown?.code == .unknownProducer)
  }
}
