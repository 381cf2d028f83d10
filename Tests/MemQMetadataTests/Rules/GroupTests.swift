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
    _ cluster: inout PureCluster, _ group: String = "g", nonce: UInt64 = 1,
    topics: [String] = ["t"],
    _ change: (inout GroupJoin) -> Void = { _ in }
  ) throws(MemQError) -> GroupSession {
    var join = GroupJoin(
      group: group, topics: topics, clientID: "c", sessionTimeout: .zero,
      nonce: UniqueID(high: 0, low: nonce))
    change(&join)
    let place = try cluster.run { (state) throws(MemQError) in try state.joinGroup(join) }
    return GroupSession(
      group: group, memberID: place.memberID, epoch: place.epoch, instanceID: join.instanceID)
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
    let refusals = try cluster.run { (state) throws(MemQError) in
      state.commitOffsets(
        [OffsetCommitRequest(session: session, commits: commits)], known: known,
        at: Timestamp(milliseconds: 1))
    }
    if let refusal = refusals[0] { throw refusal }
  }

  /// What the member is told; it then gives back what it should.
  private func beat(
    _ cluster: inout PureCluster, _ session: inout GroupSession, reading: [TopicPartition]? = nil
  ) throws(MemQError) -> GroupPlace {
    let now = session
    let place = try cluster.run { (state) throws(MemQError) in
      try state.heartbeatGroup(now, reading: reading)
    }
    session.epoch = place.epoch
    return place
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

  @Test func `a newcomer gets a partition when the one before has given it back, not earlier`()
    throws
  {
    var (cluster, topic) = try cluster()
    var first = try join(&cluster, nonce: 1)
    try commit(&cluster, first, topic, [(0, 5), (199, 7)])
    var second = try join(&cluster, nonce: 2)
    #expect(try beat(&cluster, &second).assigned.isEmpty)
    let told = try beat(&cluster, &first)
    #expect(told.assigned.count == 100 && !told.isWaiting)
    let gone = (0..<Int32(200)).map { TopicPartition(topic.id, PartitionIndex($0)) }
      .filter { !told.assigned.contains($0) }
    // What it still has it may commit, the other must not.
    try commit(&cluster, first, topic, [(gone[0].partition.rawValue, 9)])
    let early = thrown { () throws(MemQError) in
      try commit(&cluster, second, topic, [(gone[0].partition.rawValue, 10)])
    }
    #expect(early?.code == .partitionNotAssigned)
    _ = try beat(&cluster, &first, reading: told.assigned + [gone[0]])
    #expect(try beat(&cluster, &second).assigned == Array(gone.dropFirst()))
    _ = try beat(&cluster, &first, reading: told.assigned)
    #expect(try beat(&cluster, &second).assigned == gone)
    try commit(&cluster, second, topic, [(gone[0].partition.rawValue, 10)])
    let late = thrown { () throws(MemQError) in
      try commit(&cluster, first, topic, [(gone[0].partition.rawValue, 11)])
    }
    #expect(late?.code == .partitionNotAssigned)
    #expect(cluster.state.groups["g"]?.value.phase == .stable)
  }

  @Test func `a commit from an earlier time with a partition is refused`() throws {
    var (cluster, _) = try cluster()
    let topic = try cluster.makeTopic("one")
    let id = TopicPartition(topic.id, PartitionIndex(0))
    var first = try join(&cluster, nonce: 1, topics: ["one"])
    let before = first
    // The partition goes to a member that names it, and comes back.
    let other = try join(&cluster, nonce: 2, topics: ["one"]) { $0.only = [id] }
    _ = try beat(&cluster, &first)
    _ = try beat(&cluster, &first, reading: [])
    #expect(cluster.state.groups["g"]?.value.members[other.memberID]?.assigned == [id])
    try cluster.run { $0.expireMember(GroupMemberKey(group: "g", memberID: other.memberID)) }
    #expect(try beat(&cluster, &first).assigned == [id])
    let late = thrown { () throws(MemQError) in try commit(&cluster, before, topic, [(0, 1)]) }
    #expect(late?.code == .staleMemberEpoch && late?.isRetriable == true)
    try commit(&cluster, first, topic, [(0, 1)])
  }

  @Test func `who joins under an instance id takes its place at once`() throws {
    var (cluster, topic) = try cluster()
    let first = try join(&cluster, nonce: 1) { $0.instanceID = "i" }
    let second = try join(&cluster, nonce: 2) { $0.instanceID = "i" }
    try commit(&cluster, second, topic, [(0, 5), (199, 5)])
    let fenced = thrown { () throws(MemQError) in try commit(&cluster, first, topic, [(0, 9)]) }
    #expect(fenced?.code == .groupMemberFenced)
    #expect(cluster.state.groups["g"]?.value.members.count == 1)
  }

  @Test func `who takes a place over in the middle of a rebalance keeps nobody waiting`() throws {
    var (cluster, _) = try cluster()
    let other = try cluster.makeTopic("other", partitions: 3)
    _ = try join(&cluster, nonce: 1) { $0.instanceID = "i" }
    var second = try join(&cluster, nonce: 2)
    #expect(try beat(&cluster, &second).assigned.isEmpty)
    // What the one before still had to give back is free.
    _ = try join(&cluster, nonce: 3) { $0.instanceID = "i" }
    #expect(try beat(&cluster, &second).assigned.count == 100)
    #expect(cluster.state.groups["g"]?.value.phase == .stable)
    // So is what it does not read any more.
    let third = try join(&cluster, nonce: 4, topics: ["other"]) { $0.instanceID = "i" }
    #expect(try beat(&cluster, &second).assigned.count == 200)
    let members = cluster.state.groups["g"]?.value.members
    #expect(members?[third.memberID]?.assigned.map(\.topic) == Array(repeating: other.id, count: 3))
    #expect(cluster.state.groups["g"]?.value.phase == .stable)
  }

  @Test func `a late heartbeat frees nothing that was taken and given back since`() throws {
    var (cluster, _) = try cluster()
    let topic = try cluster.makeTopic("one")
    let id = TopicPartition(topic.id, PartitionIndex(0))
    var first = try join(&cluster, nonce: 1, topics: ["one"])
    let other = try join(&cluster, nonce: 2, topics: ["one"]) { $0.only = [id] }
    #expect(try beat(&cluster, &first).assigned.isEmpty)
    // It stops reading, and its word of that is delayed; then it gets the partition back, and reads on.
    let late = first
    try cluster.run { (state) throws(MemQError) in try state.leaveGroup(other) }
    #expect(try beat(&cluster, &first).assigned == [id])
    _ = try join(&cluster, nonce: 3, topics: ["one"]) { $0.only = [id] }
    let group = cluster.state.groups["g"]?.value
    try cluster.run { (state) throws(MemQError) in try state.heartbeatGroup(late, reading: []) }
    #expect(cluster.state.groups["g"]?.value == group, "it is still read")
    try commit(&cluster, first, topic, [(0, 1)])
    #expect(try beat(&cluster, &first).assigned.isEmpty)
    _ = try beat(&cluster, &first, reading: [])
    #expect(cluster.state.groups["g"]?.value.phase == .stable)
  }

  @Test func `a join that comes again changes nothing`() throws {
    var (cluster, _) = try cluster()
    let first = try join(&cluster, nonce: 1) { $0.memberID = "mine" }
    let second = try join(&cluster, nonce: 2) { $0.memberID = "mine" }
    #expect(first == second && first.memberID == "mine")
  }

  @Test func `limits of a group are refused by name`() throws {
    var (cluster, _) = try cluster()
    for name in ["w1", "w2"] { try cluster.makeTopic(name, partitions: 10_000) }
    _ = try join(&cluster, topics: ["w1", "w2"])
    let many = thrown { () throws(MemQError) in
      try join(&cluster, nonce: 2, topics: ["w1", "w2", "t"])
    }
    #expect(many?.code == .limitReached && many?.limit == 20_000 && many?.actual == 20_200)
    let short = thrown { () throws(MemQError) in
      try join(&cluster, nonce: 2) { $0.rebalanceTimeout = .milliseconds(1) }
    }
    #expect(short?.code == .invalidArgument)
    let foreign = thrown { () throws(MemQError) in
      try join(&cluster, nonce: 2) {
        $0.only = [TopicPartition(TopicID(test: 9), PartitionIndex(0))]
      }
    }
    #expect(foreign?.code == .invalidArgument)
  }

  @Test func `a commit that raced with a join does not get through`() throws {
    var (cluster, topic) = try cluster()
    let first = try join(&cluster, nonce: 1)
    let plan = cluster.state.commitOffsets(
      [
        OffsetCommitRequest(
          session: first,
          commits: [
            OffsetCommit(
              partition: TopicPartition(topic.id, PartitionIndex(0)), offset: Offset(1),
              metadata: "")
          ])
      ], known: [:], at: .none)
    _ = try join(&cluster, nonce: 2)
    let conflict = thrown { () throws(MemQError) in try cluster.commit(plan.transactions[0]) }
    #expect(conflict?.code == .revisionConflict)
  }

  @Test func `commits of many groups share a transaction, and one that is refused spoils none`()
    throws
  {
    var (cluster, topic) = try cluster()
    var batch: [OffsetBatch] = []
    for index in 0..<50 {
      let session = try join(&cluster, "g\(index)", nonce: UInt64(index + 1))
      let commit = OffsetCommit(
        partition: TopicPartition(topic.id, PartitionIndex(0)), offset: Offset(Int64(index)),
        metadata: "")
      var foreign = session
      foreign.memberID = "nobody"
      batch.append(
        OffsetBatch(
          [
            OffsetCommitRequest(session: foreign, commits: [commit]),
            OffsetCommitRequest(session: session, commits: [commit]),
          ], known: [:]))
    }
    let plan = cluster.state.commitOffsets(batch, at: .none)
    #expect(plan.transactions.count == 1)
    #expect(plan.outcome.allSatisfy { $0[0]?.code == .groupMemberUnknown && $0[1] == nil })
    try cluster.run { _ in plan }
    #expect(try offsets(cluster, "g49") == [0: 49])
  }

  @Test
  func `commits of many groups to topics of their own leave room for the controller's condition`()
    throws
  {
    var (cluster, _) = try cluster()
    var batch: [OffsetBatch] = []
    for index in 0..<60 {
      let topic = try cluster.makeTopic("own\(index)")
      let commit = OffsetCommit(
        partition: TopicPartition(topic.id, PartitionIndex(0)), offset: Offset(7), metadata: "")
      let session = GroupSession(group: "g\(index)", memberID: "", epoch: -1)
      batch.append(
        OffsetBatch([OffsetCommitRequest(session: session, commits: [commit])], known: [:]))
    }
    let plan = cluster.state.commitOffsets(batch, at: .none)
    #expect(plan.transactions.count == 2)
    for var transaction in plan.transactions {
      transaction.require(.exists(.controller))
      try transaction.checkSize()
    }
    try cluster.run { _ in plan }
    #expect(try offsets(cluster, "g59") == [0: 7])
  }

  @Test func `ten thousand offsets fit several transactions`() throws {
    var (cluster, _) = try cluster()
    let wide = try cluster.makeTopic("wide", partitions: 10_000)
    let session = try join(&cluster, topics: ["wide"])
    try commit(&cluster, session, wide, (0..<10_000).map { ($0, Int64($0)) })
    #expect(try offsets(cluster).count == 10_000)
    let many = thrown { () throws(MemQError) in
      try commit(&cluster, session, wide, (0..<10_001).map { ($0 % 10_000, 1) })
    }
    #expect(many?.limit == 10_000 && many?.actual == 10_001)
  }

  @Test func `an administrator sets offsets of partitions that nobody has`() throws {
    var (cluster, topic) = try cluster()
    let administrator = GroupSession(group: "g", memberID: "", epoch: -1)
    try commit(&cluster, administrator, topic, [(0, 5), (1, 5)])
    #expect(cluster.state.groups["g"]?.value.members.isEmpty == true)
    let member = try join(&cluster) {
      $0.only = [TopicPartition(topic.id, PartitionIndex(0))]
    }
    let refused = thrown { () throws(MemQError) in
      try commit(&cluster, administrator, topic, [(1, 0), (0, 0)])
    }
    #expect(refused?.code == .groupNotEmpty)
    try commit(&cluster, administrator, topic, [(1, 3)])
    try cluster.run { (state) throws(MemQError) in try state.leaveGroup(member) }
    try commit(&cluster, administrator, topic, [(0, 0)])
    #expect(try offsets(cluster) == [0: 0, 1: 3])
  }

  @Test func `what a silent member had is free at once`() throws {
    var (cluster, _) = try cluster()
    let first = try join(&cluster)
    var second = try join(&cluster, nonce: 2)
    let key = GroupMemberKey(group: "g", memberID: first.memberID)
    #expect(try cluster.run { $0.expireMember(key) } == true)
    #expect(try cluster.run { $0.expireMember(key) } == false)
    #expect(try beat(&cluster, &second).assigned.count == 200)
    #expect(
      thrown { () throws(MemQError) in try cluster.state.member(of: first) }?.code
        == .groupMemberUnknown)
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
