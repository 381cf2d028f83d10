// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import Testing

@Suite struct ObjectTests {
  private func cluster(partitions: Int = 2) throws -> (PureCluster, TopicImage, NodeImage) {
    var cluster = try PureCluster()
    try cluster.joinReplicas(1)
    let topic = try cluster.makeTopic("t", partitions: partitions)
    let uploader = try cluster.join(.uploader, uuid: 50)
    return (cluster, topic, uploader)
  }

  private func acquire(
    _ cluster: inout PureCluster, _ node: NodeImage, more: Int = 10, release: [Int32] = [],
    silent: [Int32] = []
  ) throws(MemQError) -> [UploadGroupRecord] {
    let request = LeaseRequest(
      node: node.id, nodeEpoch: node.epoch, moreMax: more, release: release)
    return try cluster.run { (state) throws(MemQError) in
      try state.acquireLeases(request) { silent.contains($0) }
    }
  }

  private func commit(
    _ node: NodeImage, _ topic: TopicImage, object: UInt64 = 1, lease: Int64 = 1,
    _ ranges: [(Int32, Int64, Int64)], historyEpoch: Int64 = 0
  ) -> ObjectCommit {
    ObjectCommit(
      node: node.id, nodeEpoch: node.epoch,
      object: ObjectRecord(
        id: ObjectID(test: object), group: 1, sequence: 0, key: "objects/\(object)",
        byteCount: 1_000, footerBytes: 100, minTimestamp: .none, maxTimestamp: .none,
        leaseEpoch: LeaseEpoch(lease)),
      ranges: ranges.map {
        UploadedRange(
          partition: TopicPartition(topic.id, PartitionIndex($0.0)), base: Offset($0.1),
          end: Offset($0.2), historyEpoch: HistoryEpoch(historyEpoch))
      }, billedRequests: 3)
  }

  private func run(
    _ commit: ObjectCommit, _ cluster: inout PureCluster
  ) throws(MemQError) -> ObjectCommitOutcome {
    let known: Versioned<ObjectIDRecord>? = try cluster.find(.objectID(commit.object.id))
    return try cluster.run { (state) throws(MemQError) in
      try state.commitObject(commit, known: known?.value)
    }
  }

  @Test func `a lease is granted with a new epoch and kept while it is renewed`() throws {
    var (cluster, topic, uploader) = try cluster()
    let first = try acquire(&cluster, uploader)
    #expect(first.map(\.group.id) == [1] && first[0].group.leaseEpoch == LeaseEpoch(1))
    #expect(first[0].positions.keys.map(\.topic) == [topic.id, topic.id])
    let before = cluster.revision
    #expect(try acquire(&cluster, uploader) == first)
    #expect(cluster.revision == before, "renewing writes nothing")
    #expect(cluster.state.image!.uploadGroups[1]?.holder == uploader.id)
  }

  @Test func `a lease passes on when it is given back, runs out, or its holder is gone`() throws {
    var (cluster, _, first) = try cluster()
    let second = try cluster.join(.uploader, uuid: 51)
    _ = try acquire(&cluster, first)
    #expect(try acquire(&cluster, second).isEmpty, "the first one holds it")
    #expect(try acquire(&cluster, second, silent: [1])[0].group.leaseEpoch == LeaseEpoch(2))
    #expect(try acquire(&cluster, first, more: 0).isEmpty, "what is missing is lost")
    #expect(try acquire(&cluster, second, more: 0, release: [1]).isEmpty)
    #expect(try acquire(&cluster, first)[0].group.leaseEpoch == LeaseEpoch(3))
    try cluster.fence(first.id.rawValue)
    #expect(try cluster.run { $0.releaseLeases { $0 == first.id } } == 1)
    #expect(try acquire(&cluster, second)[0].group.leaseEpoch == LeaseEpoch(4))
    let fenced = thrown { () throws(MemQError) in try acquire(&cluster, first) }
    #expect(fenced?.code == .nodeFenced)
  }

  @Test func `uploaders share the groups evenly as they come`() throws {
    var limits = MetadataLimits()
    limits.uploadGroupPartitionsMax = 10
    var cluster = try PureCluster(limits: limits)
    try cluster.joinReplicas(1)
    try cluster.makeTopic("t", partitions: 60)
    let first = try cluster.join(.uploader, uuid: 50)
    #expect(try acquire(&cluster, first).count == 6)
    let second = try cluster.join(.uploader, uuid: 51)
    #expect(try acquire(&cluster, second).isEmpty)
    #expect(try acquire(&cluster, first).count == 3, "the surplus becomes free")
    #expect(try acquire(&cluster, second).count == 3)
  }

  @Test func `a range counts when it begins where its partition stands`() throws {
    var (cluster, topic, uploader) = try cluster()
    _ = try acquire(&cluster, uploader)
    let first = try run(
      commit(uploader, topic, [(0, 0, 10), (1, 5, 9), (0, 10, 12), (0, 12, 12)]), &cluster)
    #expect(first.sequence == 1 && first.refused == [1, 3])
    #expect(first.positions.map(\.1.next) == [Offset(12), .zero])
    #expect(cluster.partition(topic, 0).uploadedOffset == Offset(12))
    let group = cluster.state.image!.uploadGroups[1]!
    #expect(group.objectSequence == 1 && group.objectBytes == 1_000 && group.billedRequests == 3)
    let stale = try run(
      commit(uploader, topic, object: 2, [(0, 12, 20)], historyEpoch: 1), &cluster)
    #expect(stale.sequence == 0 && stale.refused == [0])
    #expect(cluster.state.image!.uploadGroups[1]!.billedRequests == 6)
    #expect(cluster.keys(.objects(1)).count == 1)
  }

  @Test func `the same commit again is answered as before`() throws {
    var (cluster, topic, uploader) = try cluster()
    _ = try acquire(&cluster, uploader)
    let request = commit(uploader, topic, [(0, 0, 10), (1, 5, 9)])
    let first = try run(request, &cluster)
    let before = cluster.revision
    #expect(try run(request, &cluster) == first)
    #expect(cluster.revision == before)
  }

  @Test func `without the lease, or barred, nothing is committed`() throws {
    var (cluster, topic, uploader) = try cluster()
    func code(_ commit: ObjectCommit, _ cluster: inout PureCluster) -> ErrorCode? {
      thrown { () throws(MemQError) in try run(commit, &cluster) }?.code
    }
    let good = commit(uploader, topic, [(0, 0, 10)])
    #expect(code(good, &cluster) == .leaseLost)
    _ = try acquire(&cluster, uploader)
    #expect(code(commit(uploader, topic, lease: 2, [(0, 0, 1)]), &cluster) == .leaseLost)
    var old = good
    old.nodeEpoch = NodeEpoch(0)
    #expect(code(old, &cluster) == .leaseLost)
    #expect(try cluster.run { $0.barObject(good.object.id, group: 1, known: nil) } == false)
    #expect(code(good, &cluster) == .objectBarred)
    // The bar stays while the lease lives under which the object was written.
    let bar: Versioned<ObjectIDRecord>? = try cluster.find(.objectID(good.object.id))
    try cluster.run { (state) throws(MemQError) in
      try state.removeObject(good.object.id, group: 1, sequence: 0, known: bar?.value, object: nil)
    }
    #expect(code(good, &cluster) == .objectBarred)
    let other = try cluster.join(.uploader, uuid: 51)
    _ = try acquire(&cluster, other, silent: [1])
    try cluster.run { (state) throws(MemQError) in
      try state.removeObject(good.object.id, group: 1, sequence: 0, known: bar?.value, object: nil)
    }
    #expect(code(good, &cluster) == .leaseLost)
  }

  @Test func `a committed object can't be barred, and is removed by number and id`() throws {
    var (cluster, topic, uploader) = try cluster()
    _ = try acquire(&cluster, uploader)
    _ = try run(commit(uploader, topic, [(0, 0, 10)]), &cluster)
    let id = ObjectID(test: 1)
    let known: Versioned<ObjectIDRecord>? = try cluster.find(.objectID(id))
    #expect(try cluster.run { $0.barObject(id, group: 1, known: known?.value) } == true)
    let wrong = thrown { () throws(MemQError) in
      try cluster.state.removeObject(id, group: 1, sequence: 2, known: known?.value, object: nil)
    }
    #expect(wrong?.code == .invalidArgument)
    try remove(id, 1, &cluster)
    #expect(cluster.keys(.objects(1)).isEmpty)
    #expect(cluster.partition(topic, 0).uploadedOffset == Offset(10))
  }

  private func remove(
    _ id: ObjectID, _ sequence: Int64, _ cluster: inout PureCluster
  ) throws(MemQError) {
    let known: Versioned<ObjectIDRecord>? = try cluster.find(.objectID(id))
    let object: Versioned<ObjectRecord>? = try cluster.find(.object(1, sequence))
    try cluster.run { (state) throws(MemQError) in
      try state.removeObject(
        id, group: 1, sequence: sequence, known: known?.value, object: object?.value)
    }
  }

  @Test func `counts are those of the objects that are announced and not collected`() throws {
    var (cluster, topic, uploader) = try cluster()
    _ = try acquire(&cluster, uploader)
    _ = try run(commit(uploader, topic, object: 1, [(0, 0, 10)]), &cluster)
    _ = try run(commit(uploader, topic, object: 2, [(0, 10, 20)]), &cluster)
    var group: UploadGroupImage { cluster.state.image!.uploadGroups[1]! }
    #expect(group.objectCount == 2 && group.objectBytes == 2_000)
    try remove(ObjectID(test: 1), 1, &cluster)
    #expect(group.objectCount == 1 && group.objectBytes == 1_000 && group.objectSequence == 2)
    let again = thrown { () throws(MemQError) in try remove(ObjectID(test: 1), 1, &cluster) }
    #expect(again?.code == .objectNotFound && group.objectCount == 1)
  }

  @Test func `a group whose last topic was deleted keeps an owner that collects its objects`()
    throws
  {
    var (cluster, topic, uploader) = try cluster()
    _ = try acquire(&cluster, uploader)
    _ = try run(commit(uploader, topic, [(0, 0, 10)]), &cluster)
    try cluster.run { (state) throws(MemQError) in
      try state.deleteTopic(topic.name, at: Timestamp(milliseconds: 9))
    }
    while try cluster.run({ $0.clearPartitions(of: topic.id) }) {}
    #expect(cluster.state.uploadGroups[1]?.value.positions.isEmpty == true)
    let held = try acquire(&cluster, uploader)
    #expect(held.map(\.group.id) == [1])
    let second = try cluster.join(.uploader, uuid: 51)
    #expect(try acquire(&cluster, second, silent: [1]).map(\.group.id) == [1])
  }

  @Test func `bars go when the lease has passed on, committed ids never`() throws {
    var (cluster, topic, uploader) = try cluster()
    _ = try acquire(&cluster, uploader)
    _ = try run(commit(uploader, topic, [(0, 0, 10)]), &cluster)
    try cluster.run { $0.barObject(ObjectID(test: 7), group: 1, known: nil) }
    var all: [(ObjectID, ObjectIDRecord)] = []
    for id in [ObjectID(test: 1), ObjectID(test: 7)] {
      let record: Versioned<ObjectIDRecord>? = try cluster.find(.objectID(id))
      all.append((id, try #require(record).value))
      #expect(StoreKey.objectID(in: .objectID(id)) == id)
    }
    let known = all
    try cluster.run { $0.removeBars(known) }
    #expect(cluster.keys(.objectIDs).count == 2)
    let other = try cluster.join(.uploader, uuid: 51)
    _ = try acquire(&cluster, other, silent: [1])
    try cluster.run { $0.removeBars(known) }
    #expect(cluster.keys(.objectIDs) == [.objectID(ObjectID(test: 1))])
  }
}
