// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import Testing

/// The bytes of docs/formats/metadata-store.md.
@Suite struct CodecTests {
  static let topic = TopicID(test: 7)
  static let partition = TopicPartition(topic, PartitionIndex(3))
  static let verdict = VerdictRecord(
    kind: .infected, signature: "eicar", reason: "", engine: "yara 4", databaseVersion: "ab",
    sha256: [UInt8](repeating: 9, count: 32), duration: .milliseconds(12))
  static let upload = UploadRecord(
    id: UploadID(test: 8), topic: topic, name: "früh/☃", state: .sealed, declaredSize: 10,
    offset: 10, digestState: [1, 2], sha256: [UInt8](repeating: 9, count: 32),
    contentType: "text/plain", attributes: ["a": "b"], bodyKey: "bodies/x", verdict: verdict,
    producerID: ProducerID(1 << 62), partition: PartitionIndex(3), recordOffset: Offset(-1),
    version: 4, updatedAt: Timestamp(milliseconds: 6), createdAt: Timestamp(milliseconds: 5),
    reason: "why", driver: NodeID(2))

  static let group: GroupRecord = {
    func partition(_ index: Int32) -> TopicPartition {
      TopicPartition(topic, PartitionIndex(index))
    }
    var group = GroupRecord(name: "g", epoch: 5)
    group.topics = [GroupTopic(name: "events", id: topic, partitionCount: 6)]
    var moving = GroupRecord.Member(
      id: "m", clientID: "c", topics: ["events"], sessionTimeout: .seconds(45),
      rebalanceTimeout: .seconds(60))
    moving.instanceID = "i"
    moving.host = "::1"
    moving.only = [partition(1), partition(2), partition(3)]
    moving.epoch = 4
    moving.owned = [
      .init(partition(1), since: 3), .init(partition(2), since: 3), .init(partition(3), since: 4),
    ]
    moving.target = [partition(1)]
    var settled = moving
    settled.id = "n"
    settled.owned = [.init(partition(0), since: 5)]
    settled.target = [partition(0)]
    group.members = ["m": moving, "n": settled]
    return group
  }()

  /// One of each kind under a key of its own.
  static var samples: [any Sample] {
    get throws {
      [
        Kept(
          .cluster,
          ClusterRecord(
            id: ClusterID(test: 1), incarnation: Incarnation(1),
            incarnationID: UniqueID(high: 3, low: 2), createdAt: Timestamp(milliseconds: 9))),
        Kept(.counter(.nodes), CounterRecord(next: 12)),
        Kept(
          .node(NodeID(2)),
          NodeImage(
            id: NodeID(2), uuid: NodeUUID(test: 3), service: .replication, address: "h:1",
            adminAddress: "h:2", rack: "r", host: "x", pid: 77, epoch: NodeEpoch(4),
            state: .ready,
            volumes: [
              VolumeImage(VolumeID(test: 5), .failed, capacityBytes: 9, problem: "EIO")
            ], restartedUncleanly: true)),
        Kept(
          .topic(topic),
          try TopicImage(
            id: topic, name: "events", partitionCount: 4, replicationFactor: 1,
            given: ["scan.policy": "gate"], createdAt: Timestamp(milliseconds: 9))),
        Kept(.topicName("events"), TopicNameRecord(id: topic)),
        Kept(
          .grave(topic),
          GraveRecord(id: topic, name: "events", deletedAt: Timestamp(milliseconds: 9))),
        Kept(
          .partition(partition),
          PartitionImage(
            id: partition, leader: NodeID(2), leaderEpoch: LeaderEpoch(5), epoch: PartitionEpoch(6),
            replicas: [ReplicaID(NodeID(2), VolumeID(test: 5))], inSync: [NodeID(2)],
            eligible: [NodeID(9)], historyEpoch: HistoryEpoch(1), uploadGroup: 1,
            reassignment: PartitionReassignment(
              target: [ReplicaID(NodeID(3), VolumeID(test: 6))],
              original: [ReplicaID(NodeID(2), VolumeID(test: 5))]),
            damaged: [DamagedReplica(NodeID(9), from: Offset(3))])),
        Kept(
          .uploadGroup(1),
          UploadGroupRecord(
            group: UploadGroupImage(
              id: 1, holder: NodeID(4), leaseEpoch: LeaseEpoch(2), objectSequence: 3,
              objectCount: 2, objectBytes: 4, billedRequests: 5),
            positions: [partition: UploadPosition(next: Offset(8), historyEpoch: HistoryEpoch(1))])
        ),
        Kept(
          .object(1, 3),
          ObjectRecord(
            id: ObjectID(test: 6), group: 1, sequence: 3, key: "objects/x", byteCount: 100,
            footerBytes: 10, minTimestamp: Timestamp(milliseconds: 1),
            maxTimestamp: Timestamp(milliseconds: 2), leaseEpoch: LeaseEpoch(2),
            announcedAt: Timestamp(milliseconds: 3))),
        Kept(
          .objectID(ObjectID(test: 6)),
          ObjectIDRecord(group: 1, sequence: 3, refused: [1], leaseEpoch: LeaseEpoch(2))),
        Kept(
          .group("g"),
          group),
        Kept(
          .offsets("g", topic, chunk: 0),
          OffsetChunkRecord(
            topic: topic,
            offsets: [
              PartitionIndex(3): CommittedOffset(
                offset: Offset(5), metadata: "x", committedAt: Timestamp(milliseconds: 4))
            ])),
        Kept(.producerEpoch(ProducerID(1)), ProducerEpochRecord(epoch: ProducerEpoch(2))),
        Kept(.upload(upload.id, .active), upload),
        Kept(.uploadBody(upload.id), InlineBodyRecord(bytes: [1, 2, 3])),
        Kept(
          .file(topic, "früh/☃"),
          FileRecord(upload, version: 2, publishedAt: Timestamp(milliseconds: 7))),
        Kept(.droppingBody("bodies/x"), DroppingBodyRecord(since: Timestamp(milliseconds: 7))),
        Kept(
          .audit(Timestamp(milliseconds: 7), upload.id),
          AuditRecord(
            at: Timestamp(milliseconds: 7), actor: "me", reason: "r", isRelease: true,
            upload: upload)),
      ]
    }
  }

  protocol Sample: Sendable {
    var key: StoreKey { get }
    var bytes: [UInt8] { get }
    var kind: UInt8 { get }
    func isEqual(toDecoded bytes: [UInt8]) throws -> Bool
    func decode(_ bytes: [UInt8], for key: StoreKey) throws(MemQError)
  }

  struct Kept<Record: StoredRecord & Hashable>: Sample {
    let key: StoreKey
    let record: Record
    init(_ key: StoreKey, _ record: Record) {
      self.key = key
      self.record = record
    }
    var bytes: [UInt8] { self.record.encoded(for: self.key) }
    var kind: UInt8 { Record.kind }
    func isEqual(toDecoded bytes: [UInt8]) throws -> Bool {
      try Record(bytes, for: self.key) == self.record
    }
    func decode(_ bytes: [UInt8], for key: StoreKey) throws(MemQError) {
      _ = try Record(bytes, for: key)
    }
  }

  @Test func `each kind of record has a number of its own and comes back as it was`() throws {
    let samples = try Self.samples
    #expect(samples.map(\.kind).sorted() == Array(1...18))
    for sample in samples { #expect(try sample.isEqual(toDecoded: sample.bytes), "\(sample)") }
  }

  @Test func `a flipped bit, a lost byte or another's key is noticed`() throws {
    for sample in try Self.samples {
      let bytes = sample.bytes
      for index in bytes.indices {
        var damaged = bytes
        damaged[index] ^= UInt8(1 << (index % 8))
        let error = thrown { () throws(MemQError) in try sample.decode(damaged, for: sample.key) }
        #expect(error?.code == .corruptMessage, "byte \(index) of \(sample)")
      }
      for short in [bytes.dropLast(), bytes.dropFirst(), bytes.prefix(3)] {
        let error = thrown { () throws(MemQError) in
          try sample.decode(Array(short), for: sample.key)
        }
        #expect(error?.code == .corruptMessage)
      }
      let strange = thrown { () throws(MemQError) in
        try sample.decode(bytes, for: StoreKey("i/another"))
      }
      #expect(strange?.code == .corruptMessage && strange?.subject == "i/another")
    }
  }

  @Test func `the bytes are those of the page`() throws {
    let counter = CounterRecord(next: 12).encoded(for: .counter(.nodes))
    #expect(hexText(counter) == "0200" + "000000000000000c" + "f122f732")
    let chunk = try Self.samples[11]
    #expect(
      hexText(chunk.bytes) == "0c00" + "00000000000000000000000000000007" + "00000001" + "00000003"
        + "0000000000000005" + "0000000178" + "0000000000000004" + "bbaffb44")
    let name = TopicNameRecord(id: Self.topic).encoded(for: .topicName("events"))
    #expect(hexText(name) == "0500" + "00000000000000000000000000000007" + "2817695d")
  }

  @Test func `offsets keep the leader epochs that are known, beside those without one`() throws {
    let key = StoreKey.offsets("g", Self.topic, chunk: 1)
    let time = Timestamp(milliseconds: 4)
    let record = OffsetChunkRecord(
      topic: Self.topic,
      offsets: [
        PartitionIndex(64): CommittedOffset(offset: Offset(5), metadata: "x", committedAt: time),
        PartitionIndex(69): CommittedOffset(
          offset: Offset(6), metadata: "", committedAt: time, leaderEpoch: LeaderEpoch(7)),
      ])
    #expect(try OffsetChunkRecord(record.encoded(for: key), for: key) == record)
  }

  @Test func `keys sort as their parts do and none is a prefix of another's range`() {
    let files = ["a", "a/b", "a b", "b", "é"]
    let keys = files.map { StoreKey.file(Self.topic, $0) }.sorted()
    #expect(
      keys
        == files.sorted { $0.utf8.lexicographicallyPrecedes($1.utf8) }
        .map { .file(Self.topic, $0) })
    #expect(StoreKey.object(1, 2) < .object(1, 10) && StoreKey.object(1, 10) < .object(2, 1))
    let versions = KeyRange(prefix: .fileVersions(Self.topic, "a"))
    #expect(versions.contains(.fileVersion(Self.topic, "a", 300)))
    #expect(!versions.contains(.fileVersion(Self.topic, "a/b", 1)))
    #expect(!KeyRange(prefix: .offsets("g")).contains(.offsets("g2", Self.topic, chunk: 0)))
    #expect(KeyRange(prefix: StoreKey([0x61, 0xFF])).upper == StoreKey([0x62]))
    #expect(KeyRange(prefix: StoreKey([0xFF])).upper == nil)
  }
}
