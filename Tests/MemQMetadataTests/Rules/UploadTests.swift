// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import Testing

@Suite struct UploadTests {
  private static let digest = [UInt8](repeating: 7, count: 32)
  private static let now = Timestamp(milliseconds: 50)

  private func cluster(
    _ settings: SortedMap<String, String> = [:]
  ) throws -> (PureCluster, TopicImage) {
    var cluster = try PureCluster()
    try cluster.joinReplicas(1)
    let topic = try cluster.makeTopic("media", partitions: 2, settings: settings)
    return (cluster, topic)
  }

  private func upload(
    _ topic: TopicImage, _ state: UploadState = .open, id: UInt64 = 1, name: String = "a/b",
    bodyKey: String = ""
  ) -> UploadRecord {
    var record = UploadRecord(id: UploadID(test: id), topic: topic.id, name: name, state: state)
    record.bodyKey = bodyKey
    Self.fill(&record)
    return record
  }

  /// What a record needs to be in its state.
  private static func fill(_ record: inout UploadRecord) {
    switch record.state {
    case .open, .abandoned: break
    case .sealed: record.sha256 = self.digest
    case .judged, .publishing:
      record.sha256 = self.digest
      if record.verdict == nil { record.verdict = VerdictRecord(kind: .clean) }
    case .quarantined:
      record.sha256 = self.digest
      record.verdict = VerdictRecord(kind: .infected, signature: "eicar")
    case .published: record.recordOffset = Offset(3)
    }
  }

  private func create(
    _ cluster: inout PureCluster, _ record: UploadRecord, body: [UInt8] = []
  ) throws(MemQError) -> UploadRecord {
    try cluster.run { (state) throws(MemQError) in
      try state.createUpload(
        record, inlineBody: body, known: nil, producer: ProducerID(1 << 62), at: Self.now)
    }
  }

  private func advance(
    _ cluster: inout PureCluster, _ record: UploadRecord, to state: UploadState,
    _ change: (inout UploadRecord) -> Void = { _ in }
  ) throws(MemQError) -> UploadRecord {
    var next = record
    next.state = state
    Self.fill(&next)
    change(&next)
    let wanted = next
    let known: Versioned<UploadRecord>? = try cluster.find(.upload(record.id, record.state.shelf))
    let latest: Versioned<FileRecord>? = try cluster.find(.file(record.topic, record.name))
    return try cluster.run { (state) throws(MemQError) in
      try state.advanceUpload(known!, to: wanted, inlineBody: [], latest: latest, at: Self.now)
    }
  }

  @Test func `only legal steps are taken`() throws {
    let legal: [UploadState: [UploadState]] = [
      .open: [.open, .sealed, .abandoned],
      .sealed: [.sealed, .judged, .quarantined, .abandoned],
      .judged: [.judged, .publishing, .abandoned],
      .publishing: [.publishing, .published, .abandoned],
      .quarantined: [], .published: [], .abandoned: [],
    ]
    for from in UploadState.allCases where from.isBeginning {
      for to in UploadState.allCases {
        var (cluster, topic) = try cluster()
        let record = try create(&cluster, upload(topic, from))
        let error = thrown { () throws(MemQError) in try advance(&cluster, record, to: to) }
        #expect(
          (error == nil) == legal[from]!.contains(to),
          "\(from.name) → \(to.name): \(error.map { "\($0)" } ?? "taken")")
        if let error { #expect(error.code == .invalidArgument) }
      }
    }
    #expect(UploadState.published.steps == [] && UploadState.abandoned.steps == [])
  }

  @Test func `a put goes all the way and becomes a file`() throws {
    var (cluster, topic) = try cluster(["scan.policy": "gate"])
    var record = try create(&cluster, upload(topic, bodyKey: "bodies/1"))
    #expect(record.version == 1 && record.producerID == ProducerID(1 << 62))
    record = try advance(&cluster, record, to: .open) { $0.offset = 100 }
    record = try advance(&cluster, record, to: .sealed)
    record = try advance(&cluster, record, to: .judged)
    record = try advance(&cluster, record, to: .publishing) { $0.partition = PartitionIndex(1) }
    record = try advance(&cluster, record, to: .published)
    #expect(record.version == 6)
    #expect(cluster.keys(.activeUploads).isEmpty && cluster.keys(.doneUploads).count == 1)
    let file: Versioned<FileRecord>? = try cluster.find(.file(topic.id, "a/b"))
    #expect(file?.value.version == 1 && file?.value.byteCount == 100)
    #expect(file?.value.offset == Offset(3) && file?.value.partition == PartitionIndex(1))
    #expect(file?.value.bodyKey == "bodies/1" && file?.value.verdict?.kind == .clean)
  }

  @Test func `a name's versions rise, and all go together`() throws {
    var (cluster, topic) = try cluster()
    for number in 1...60 {
      let record = try create(
        &cluster, upload(topic, .publishing, id: UInt64(number), bodyKey: "bodies/\(number)"))
      _ = try advance(&cluster, record, to: .published)
    }
    let latest: Versioned<FileRecord>? = try cluster.find(.file(topic.id, "a/b"))
    #expect(latest?.value.version == 60)
    let versions = cluster.keys(.fileVersions(topic.id, "a/b"))
    #expect(versions.count == 59)
    var earlier: [FileRecord] = []
    for key in versions {
      let file: Versioned<FileRecord>? = try cluster.find(key)
      earlier.append(file!.value)
    }
    #expect(earlier.map(\.version) == Array(1...59))
    try cluster.run { [earlier] (state) throws(MemQError) in
      try state.removeFile(topic.id, "a/b", latest: latest, earlier: earlier, at: Self.now)
    }
    #expect(cluster.keys(.files(topic.id)).isEmpty && cluster.keys(.fileVersions(topic.id)).isEmpty)
    #expect(cluster.keys(.droppingBodies).count == 60)
    try cluster.run { $0.forgetBody("bodies/7") }
    #expect(cluster.keys(.droppingBodies).count == 59)
    let gone = thrown { () throws(MemQError) in
      try cluster.state.removeFile(topic.id, "a/b", latest: nil, earlier: [], at: Self.now)
    }
    #expect(gone?.code == .fileNotFound)
  }

  @Test func `refused records can be deleted from quarantine, and not released`() throws {
    var (cluster, topic) = try cluster()
    var copy = upload(topic, .quarantined)
    copy.contentType = QuarantinedRecords.contentType
    let entry = try create(&cluster, copy)
    let known: Versioned<UploadRecord>? = try cluster.find(.upload(entry.id, .quarantined))
    func resolve(release: Bool) -> ErrorCode? {
      thrown { () throws(MemQError) in
        try cluster.state.resolveQuarantine(
          entry.id, known, release: release, actor: "me", reason: "", at: Self.now)
      }?.code
    }
    #expect(resolve(release: true) == .feature && resolve(release: false) == nil)
  }

  @Test func `a delete leaves what was published after it looked`() throws {
    var (cluster, topic) = try cluster()
    for number in 1...3 {
      let record = try create(
        &cluster, upload(topic, .publishing, id: UInt64(number), bodyKey: "bodies/\(number)"))
      _ = try advance(&cluster, record, to: .published)
    }
    let latest: Versioned<FileRecord>? = try cluster.find(.file(topic.id, "a/b"))
    var earlier: [FileRecord] = []
    for key in cluster.keys(.fileVersions(topic.id, "a/b")) {
      let file: Versioned<FileRecord>? = try cluster.find(key)
      earlier.append(file!.value)
    }
    try cluster.run { [earlier] (state) throws(MemQError) in
      try state.removeFile(
        topic.id, "a/b", upTo: 1, latest: latest, earlier: earlier, at: Self.now)
    }
    let left: Versioned<FileRecord>? = try cluster.find(.file(topic.id, "a/b"))
    #expect(left?.value.version == 3)
    #expect(
      cluster.keys(.fileVersions(topic.id, "a/b")) == [.fileVersion(topic.id, "a/b", 2)])
    #expect(cluster.keys(.droppingBodies) == [.droppingBody("bodies/1")])
  }

  @Test func `two that publish the same name at once get two versions`() throws {
    var (cluster, topic) = try cluster()
    let first = try create(&cluster, upload(topic, .publishing, id: 1))
    let second = try create(&cluster, upload(topic, .publishing, id: 2))
    let known: Versioned<UploadRecord>? = try cluster.find(.upload(second.id, .active))
    var next = second
    next.state = .published
    next.recordOffset = Offset(9)
    let race = try cluster.state.advanceUpload(
      known!, to: next, inlineBody: [], latest: nil, at: Self.now)
    _ = try advance(&cluster, first, to: .published)
    let conflict = thrown { () throws(MemQError) in try cluster.commit(race.transactions[0]) }
    #expect(conflict?.code == .revisionConflict)
    _ = try advance(&cluster, second, to: .published)
    let latest: Versioned<FileRecord>? = try cluster.find(.file(topic.id, "a/b"))
    #expect(latest?.value.version == 2 && latest?.value.upload == second.id)
  }

  @Test func `an inline body stays until the put is over`() throws {
    var (cluster, topic) = try cluster()
    for (id, end) in [(1, UploadState.published), (2, .abandoned)] as [(UInt64, UploadState)] {
      let record = try create(&cluster, upload(topic, .publishing, id: id), body: [1, 2, 3])
      let body: Versioned<InlineBodyRecord>? = try cluster.find(.uploadBody(record.id))
      #expect(body?.value.bytes == [1, 2, 3])
      _ = try advance(&cluster, record, to: end)
      #expect(cluster.keys(.uploadBody(record.id)).isEmpty)
    }
    let large = [UInt8](repeating: 0, count: Limits.inlineFileBytesMax + 1)
    let refused = thrown { () throws(MemQError) in
      try create(&cluster, upload(topic, .sealed, id: 3), body: large)
    }
    #expect(refused?.code == .fileTooLarge && refused?.limit == 262_144)
  }

  @Test func `a step must know the put as it is`() throws {
    var (cluster, topic) = try cluster()
    let record = try create(&cluster, upload(topic))
    _ = try advance(&cluster, record, to: .open) { $0.offset = 10 }
    let stale = thrown { () throws(MemQError) in
      try advance(&cluster, record, to: .open) { $0.offset = 20 }
    }
    #expect(stale?.code == .revisionConflict && stale?.limit == 2 && stale?.actual == 1)
    #expect(stale?.isRetriable == true)
  }

  @Test func `what is settled stays`() throws {
    var (cluster, topic) = try cluster()
    let sealed = try create(&cluster, upload(topic, .sealed, id: 1, bodyKey: "bodies/1"))
    let publishing = try create(&cluster, upload(topic, .publishing, id: 2))
    let open = try create(&cluster, upload(topic, .open, id: 3))
    func code(
      _ record: UploadRecord, _ state: UploadState, _ change: (inout UploadRecord) -> Void
    ) -> ErrorCode? {
      thrown { () throws(MemQError) in try advance(&cluster, record, to: state, change) }?.code
    }
    #expect(code(sealed, .sealed) { $0.name = "other" } == .invalidArgument)
    #expect(code(sealed, .sealed) { $0.offset = 5 } == .invalidArgument)
    #expect(code(sealed, .sealed) { $0.sha256[0] = 0 } == .invalidArgument)
    #expect(code(sealed, .sealed) { $0.bodyKey = "bodies/2" } == .invalidArgument)
    #expect(code(open, .open) { $0.declaredSize = 9 } == .invalidArgument)
    #expect(code(open, .open) { $0.offset = -1 } == .invalidArgument)
    #expect(code(publishing, .publishing) { $0.partition = PartitionIndex(1) } == .invalidArgument)
    #expect(code(publishing, .published) { $0.verdict = nil } == .invalidArgument)
    #expect(code(publishing, .published) { $0.recordOffset = Offset(-1) } == .invalidArgument)
    #expect(
      code(sealed, .judged) { $0.verdict = VerdictRecord(kind: .infected) } == .invalidArgument)
  }

  @Test func `a put that can't be is refused before anything is written`() throws {
    var (cluster, topic) = try cluster(["scan.policy": "gate"])
    let before = cluster.revision
    func code(_ record: UploadRecord) -> ErrorCode? {
      thrown { () throws(MemQError) in try create(&cluster, record) }?.code
    }
    for name in [
      "", "/a", "a/", "a//b", "a/../b", "./a", "a\0b", String(repeating: "n", count: 1_025),
    ] {
      #expect(code(upload(topic, name: name)) == .fileNameInvalid, "\(name)")
    }
    func changed(
      _ state: UploadState = .open, _ change: (inout UploadRecord) -> Void
    ) -> UploadRecord {
      var record = upload(topic, state)
      change(&record)
      return record
    }
    #expect(code(changed { $0.declaredSize = (5 << 40) + 1 }) == .fileTooLarge)
    #expect(code(changed { $0.declaredSize = -2 }) == .invalidArgument)
    #expect(code(changed { $0.partition = PartitionIndex(2) }) == .invalidArgument)
    #expect(code(changed(.sealed) { $0.sha256 = [] }) == .invalidArgument)
    #expect(code(changed(.sealed) { $0.declaredSize = 9 }) == .fileIncomplete)
    #expect(code(changed(.judged) { $0.verdict = nil }) == .invalidArgument)
    #expect(code(changed(.judged) { $0.verdict?.kind = .off }) == .invalidArgument)
    for state in [UploadState.judged, .publishing] {
      #expect(code(changed(state) { $0.verdict?.kind = .infected }) == .invalidArgument)
    }
    #expect(code(upload(topic, .published)) == .invalidArgument)
    #expect(
      code(changed { $0.attributes = ["a": String(repeating: "x", count: 1_025)] })
        == .invalidArgument)
    var stranger = upload(topic)
    stranger = UploadRecord(id: stranger.id, topic: TopicID(test: 9), name: "a", state: .open)
    #expect(code(stranger) == .topicNotFound)
    #expect(cluster.revision == before)
  }

  @Test func `the same id again tells what is known of it`() throws {
    var (cluster, topic) = try cluster()
    let record = try create(&cluster, upload(topic))
    let again = try cluster.state.createUpload(
      upload(topic), inlineBody: [], known: record, producer: ProducerID((1 << 62) + 1),
      at: Self.now)
    #expect(again.transactions.isEmpty && again.outcome == record)
    let other = thrown { () throws(MemQError) in
      try cluster.state.createUpload(
        upload(topic, name: "other"), inlineBody: [], known: record, producer: .none, at: Self.now)
    }
    #expect(other?.code == .invalidArgument)
  }

  @Test func `quarantine ends by a person's decision, with a record of it`() throws {
    var (cluster, topic) = try cluster(["scan.policy": "gate"])
    func resolve(_ id: UInt64, release: Bool) throws(MemQError) -> UploadRecord {
      let key = StoreKey.upload(UploadID(test: id), .quarantined)
      let known: Versioned<UploadRecord>? = try cluster.find(key)
      return try cluster.run { (state) throws(MemQError) in
        try state.resolveQuarantine(
          UploadID(test: id), known, release: release, actor: "me", reason: "a test",
          at: Self.now)
      }
    }
    for id in [1, 2] as [UInt64] {
      let sealed = try create(&cluster, upload(topic, .sealed, id: id, bodyKey: "bodies/\(id)"))
      _ = try advance(&cluster, sealed, to: .quarantined)
    }
    #expect(cluster.keys(.quarantinedUploads).count == 2 && cluster.keys(.activeUploads).isEmpty)
    let released = try resolve(1, release: true)
    #expect(released.state == .judged && released.verdict?.kind == .infected)
    let publishing = try advance(&cluster, released, to: .publishing)
    _ = try advance(&cluster, publishing, to: .published)
    let deleted = try resolve(2, release: false)
    #expect(deleted.state == .abandoned)
    #expect(cluster.keys(.droppingBodies) == [.droppingBody("bodies/2")])
    #expect(cluster.keys(StoreKey("a/")).count == 2)
    let audit: Versioned<AuditRecord>? = try cluster.find(.audit(Self.now, UploadID(test: 1)))
    #expect(audit?.value.actor == "me" && audit?.value.isRelease == true)
    #expect(
      thrown { () throws(MemQError) in try resolve(1, release: true) }?.code
        == .quarantineEntryNotFound)
  }

  @Test func `nothing moves in a topic that is deleted, but what is left is abandoned`() throws {
    var (cluster, topic) = try cluster()
    let record = try create(&cluster, upload(topic, .publishing, bodyKey: "bodies/1"))
    let known: Versioned<UploadRecord>? = try cluster.find(.upload(record.id, .active))
    var next = record
    next.state = .published
    next.recordOffset = Offset(1)
    let late = try cluster.state.advanceUpload(
      known!, to: next, inlineBody: [], latest: nil, at: Self.now)
    try cluster.run { (state) throws(MemQError) in try state.deleteTopic("media", at: Self.now) }
    #expect(
      thrown { () throws(MemQError) in try cluster.commit(late.transactions[0]) }?.code
        == .revisionConflict)
    #expect(
      thrown { () throws(MemQError) in try advance(&cluster, record, to: .published) }?.code
        == .topicDeleted)
    let abandoned = try cluster.run { $0.abandon(known!, reason: "deleted", at: Self.now) }
    #expect(abandoned.state == .abandoned)
    #expect(cluster.keys(.droppingBodies) == [.droppingBody("bodies/1")])
    try cluster.run { $0.forgetUploads([record.id]) }
    #expect(cluster.keys(.doneUploads).isEmpty)
  }
}
