// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQTestSupport
import Testing

/// Clients of one group as the protocol tells them to be, and a network that delays, repeats and drops.
private struct GroupWorld {
  struct Client {
    var memberID: String
    var epoch: Int64
    var topics: [String]
    /// What it reads, and must stop reading when it is told so.
    var reading: Set<TopicPartition> = [] {
      didSet { if self.reading != oldValue { self.version += 1 } }
    }
    var leaving: Set<TopicPartition> = []
    /// Rises with each epoch and with what it reads: then it must say what it reads.
    var version = 1
    /// What an answer has shown to have arrived.
    var reported = 0

    /// Finds out what an answer changes.
    mutating func hear(_ place: GroupPlace, to version: Int? = nil) {
      guard place.memberID == self.memberID, place.epoch >= self.epoch else { return }
      self.reported = max(self.reported, version ?? 0)
      if place.epoch > self.epoch { self.version += 1 }
      self.epoch = place.epoch
      self.leaving = self.reading.subtracting(place.assigned)
      self.reading.formUnion(place.assigned)
    }
  }

  struct Beat {
    var client: Int
    var session: GroupSession
    var reading: [TopicPartition]?
    var version: Int?
  }

  var cluster: PureCluster
  var random: SeededGenerator
  var clients: [Client?] = []
  var beats: [Beat] = []
  var answers: [(client: Int, place: GroupPlace, version: Int?)] = []
  var joins: UInt64 = 0
  var counts: [String: Int] = ["a": 7, "b": 4]

  init(seed: UInt64) throws {
    self.cluster = try PureCluster()
    try self.cluster.joinReplicas(1)
    self.random = SeededGenerator(seed: seed)
    for name in ["a", "b"] { try self.cluster.makeTopic(name, partitions: self.counts[name]!) }
  }

  var group: GroupRecord? { self.cluster.state.groups["g"]?.value }

  func session(_ client: Client) -> GroupSession {
    GroupSession(group: "g", memberID: client.memberID, epoch: client.epoch)
  }

  /// Somebody who had the instance id before may still believe to be in the group.
  mutating func join(_ topics: [String], instance: String = "") throws {
    self.joins += 1
    let nonce = UniqueID(high: 0, low: self.joins)
    var join = GroupJoin(
      group: "g", topics: topics, clientID: "c", sessionTimeout: .zero, nonce: nonce)
    join.instanceID = instance
    let request = join
    let place = try self.cluster.run { (state) throws(MemQError) in try state.joinGroup(request) }
    var client = Client(memberID: place.memberID, epoch: place.epoch, topics: topics)
    client.hear(place)
    self.clients.append(client)
  }

  /// The client's next heartbeat; it says what it reads when it must, and when it likes.
  mutating func send(_ index: Int, asItLikes: Bool) {
    guard let client = self.clients[index] else { return }
    let says = client.version != client.reported || (asItLikes && self.random.oneIn(2))
    self.beats.append(
      Beat(
        client: index, session: self.session(client),
        reading: says ? Array(client.reading) : nil, version: says ? client.version : nil))
  }

  mutating func deliver(_ beat: Beat) throws {
    do throws(MemQError) {
      let place = try self.cluster.run { (state) throws(MemQError) in
        try state.heartbeatGroup(beat.session, reading: beat.reading)
      }
      self.answers.append((beat.client, place, beat.version))
    } catch {
      #expect(error.code == .groupMemberUnknown)
    }
  }

  mutating func refresh() throws {
    for name in self.cluster.state.outdatedGroups {
      try self.cluster.run { $0.refreshGroup(name) }
    }
  }

  mutating func step() throws {
    let alive = self.clients.indices.filter { self.clients[$0] != nil }
    switch self.random.below(20) {
    case 0 where alive.count < 7:
      try self.join(
        [["a"], ["b"], ["a", "b"], ["a", "b"]][self.random.below(4)],
        instance: ["", "", "i", "j"][self.random.below(4)])
    case 1:
      guard let index = alive.randomElement(using: &self.random) else { return }
      let session = self.session(self.clients[index]!)
      // Also one whose place somebody took away.
      _ = try? self.cluster.run { (state) throws(MemQError) in try state.leaveGroup(session) }
      self.clients[index] = nil
    case 2:
      guard let member = self.group?.members.keys.randomElement(using: &self.random) else { return }
      try self.cluster.run { $0.expireMember(GroupMemberKey(group: "g", memberID: member)) }
    case 3 where self.random.oneIn(4):
      let name = ["a", "b"][self.random.below(2)]
      self.counts[name]! += 1 + self.random.below(3)
      let count = self.counts[name]!
      try self.cluster.run { (state) throws(MemQError) in
        try state.alterTopic(name, set: [:], unset: [], partitionCount: count)
      }
      try self.refresh()
    case 4...8:
      guard let index = alive.randomElement(using: &self.random) else { return }
      self.send(index, asItLikes: true)
    case 9...13:
      guard let at = self.beats.indices.randomElement(using: &self.random) else { return }
      // Sometimes it comes a second time, much later.
      let beat = self.random.oneIn(4) ? self.beats[at] : self.beats.remove(at: at)
      if !self.random.oneIn(8) { try self.deliver(beat) }
    case 14...17:
      guard let at = self.answers.indices.randomElement(using: &self.random) else { return }
      let answer = self.random.oneIn(4) ? self.answers[at] : self.answers.remove(at: at)
      if !self.random.oneIn(8) {
        self.clients[answer.client]?.hear(answer.place, to: answer.version)
      }
    default:
      guard let index = alive.randomElement(using: &self.random) else { return }
      self.clients[index]!.reading.subtract(self.clients[index]!.leaving)
      self.clients[index]!.leaving = []
    }
  }

  /// Nobody reads what another reads, and each may commit what it reads. Members that were taken out may believe what they want.
  func check(_ note: Comment) {
    var readers: [TopicPartition: String] = [:]
    for client in self.clients.compactMap({ $0 }) {
      let isMember = self.group?.members[client.memberID] != nil
      for partition in client.reading where self.cluster.state.topics[partition.topic] != nil {
        let request = OffsetCommitRequest(
          session: self.session(client),
          commits: [OffsetCommit(partition: partition, offset: .zero, metadata: "")])
        let refusal = self.cluster.state.commitOffsets([request], known: [:], at: .none).outcome[0]
        if isMember {
          #expect(readers.updateValue(client.memberID, forKey: partition) == nil, note)
          #expect(refusal == nil, note)
        } else {
          #expect(refusal?.code == .groupMemberUnknown, note)
        }
      }
    }
  }

  /// A network without faults: all heartbeats arrive and are followed, clients that were taken out come back.
  ///
  /// - Returns: rounds until nothing changed any more.
  mutating func settle() throws -> Int {
    self.beats = []
    self.answers = []
    for index in self.clients.indices {
      guard let client = self.clients[index], self.group?.members[client.memberID] == nil else {
        continue
      }
      self.clients[index] = nil
      try self.join(client.topics)
    }
    for round in 1...20 {
      let before = self.group
      for index in self.clients.indices where self.clients[index] != nil {
        self.clients[index]!.reading.subtract(self.clients[index]!.leaving)
        self.clients[index]!.leaving = []
        self.send(index, asItLikes: false)
        try self.deliver(self.beats.removeLast())
        while let answer = self.answers.popLast() {
          self.clients[answer.client]?.hear(answer.place, to: answer.version)
        }
      }
      let isOver = self.clients.allSatisfy { $0?.leaving.isEmpty ?? true }
      if before == self.group, isOver { return round }
    }
    return .max
  }
}

@Suite struct GroupSharingTests {
  @Test(arguments: 1...20 as ClosedRange<UInt64>)
  func `no two members read one partition, and in the end all are shared`(seed: UInt64) throws {
    var world = try GroupWorld(seed: seed)
    for step in 0..<400 {
      try world.step()
      world.check("seed \(seed), step \(step)")
    }
    let rounds = try world.settle()
    #expect(rounds <= 6, "seed \(seed)")
    world.check("seed \(seed), at rest")
    guard let group = world.group, !group.members.isEmpty else { return }
    #expect(group.phase == .stable)
    var owned: [TopicPartition] = []
    for client in world.clients.compactMap({ $0 }) {
      let member = group.members[client.memberID]!
      #expect(Set(member.assigned) == client.reading && member.target == member.assigned)
      owned += member.assigned
    }
    #expect(Set(owned).count == owned.count)
    let wanted = group.topics.reduce(0) { $0 + $1.partitionCount }
    #expect(owned.count == wanted, "everything that somebody wants is read")
    guard Set(group.members.values.map(\.topics)).count == 1 else { return }
    let counts = group.members.values.map { $0.assigned.count }
    #expect(counts.max()! - counts.min()! <= 1, "seed \(seed)")
  }

  @Test(arguments: 1...200 as ClosedRange<UInt64>)
  func `the fewest partitions move, and shares differ by at most one`(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    let topics = (0...random.below(3)).map {
      GroupTopic(
        name: "t\($0)", id: TopicID(test: UInt64($0 + 1)), partitionCount: random.below(30))
    }
    let names = topics.map(\.name)
    let members = 1 + random.below(9)
    // Some have what they had, some of it belongs to nobody.
    var holders: [TopicPartition: Int] = [:]
    let partitions = topics.flatMap { topic in
      (0..<Int32(topic.partitionCount)).map { TopicPartition(topic.id, PartitionIndex($0)) }
    }
    for partition in partitions where !random.oneIn(5) {
      holders[partition] = random.below(random.oneIn(3) ? 1 : members)
    }
    let subscribers = [GroupAssignor.Subscriber](repeating: .init(topics: names), count: members)
    let shares = GroupAssignor.assign(subscribers, topics) { holders[$0] }
    #expect(shares == GroupAssignor.assign(subscribers, topics) { holders[$0] })
    #expect(shares.flatMap { $0 }.sorted() == partitions.sorted())
    let counts = shares.map(\.count)
    #expect(counts.max()! - counts.min()! <= 1)
    let (share, more) = partitions.count.quotientAndRemainder(dividingBy: members)
    let had = (0..<members).map { member in holders.values.count { $0 == member } }
      .sorted(by: >)
    let keepMost = had.enumerated().reduce(0) { sum, entry in
      sum + min(entry.element, share + (entry.offset < more ? 1 : 0))
    }
    let kept = shares.enumerated().reduce(0) { sum, entry in
      sum + entry.element.count { holders[$0] == entry.offset }
    }
    #expect(kept == keepMost, "seed \(seed)")
  }

  @Test func `a partition that is named goes to who names it, and others share the rest`() {
    let topic = GroupTopic(name: "t", id: TopicID(test: 1), partitionCount: 6)
    func partition(_ index: Int32) -> TopicPartition {
      TopicPartition(topic.id, PartitionIndex(index))
    }
    let shares = GroupAssignor.assign(
      [
        .init(topics: ["t"]), .init(topics: ["t"], only: [partition(5)]), .init(topics: ["t"]),
        .init(topics: ["other"]),
      ], [topic]
    ) { _ in 0 }
    #expect(shares[1] == [partition(5)] && shares[3].isEmpty)
    #expect(shares[0].count + shares[2].count == 5 && abs(shares[0].count - shares[2].count) == 1)
  }
}
