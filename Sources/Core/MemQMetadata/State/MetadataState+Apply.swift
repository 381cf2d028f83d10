// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// What one revision changed for those who watch the image. Each thing stands in it once, as it is afterwards.
public struct ImageDelta: Hashable, Sendable {
  public var revision: Revision
  public var nodes: [NodeImage] = []
  public var deletedNodes: [NodeID] = []
  public var topics: [TopicImage] = []
  public var deletedTopics: [TopicID] = []
  public var partitions: [PartitionImage] = []
  public var uploadGroups: [UploadGroupImage] = []
  /// Another instance decides, or none.
  public var isControllerChanged = false

  public var isEmpty: Bool {
    !self.isControllerChanged && self.nodes.isEmpty && self.deletedNodes.isEmpty
      && self.topics.isEmpty
      && self.deletedTopics.isEmpty && self.partitions.isEmpty && self.uploadGroups.isEmpty
  }
}

/// Ids touched while changes are applied; turned into a delta at the end.
struct TouchedIDs {
  var controller = false
  private var nodes: SortedMap<NodeID, Bool> = [:]
  private var topics: SortedMap<TopicID, Bool> = [:]
  private var partitions: SortedMap<TopicPartition, Bool> = [:]
  private var uploadGroups: SortedMap<Int32, Bool> = [:]

  mutating func node(_ id: NodeID) { self.nodes[id] = true }
  mutating func topic(_ id: TopicID) { self.topics[id] = true }
  mutating func partition(_ id: TopicPartition) { self.partitions[id] = true }
  mutating func uploadGroup(_ id: Int32) { self.uploadGroups[id] = true }

  func delta(_ image: ClusterImage) -> ImageDelta {
    var delta = ImageDelta(revision: image.revision)
    delta.isControllerChanged = self.controller
    for id in self.nodes.keys {
      if let node = image.nodes[id] {
        delta.nodes.append(node)
      } else {
        delta.deletedNodes.append(id)
      }
    }
    for id in self.topics.keys {
      if let topic = image.topics[id] {
        delta.topics.append(topic)
      } else {
        delta.deletedTopics.append(id)
      }
    }
    delta.partitions = self.partitions.keys.compactMap { image.partitions[$0] }
    delta.uploadGroups = self.uploadGroups.keys.compactMap { image.uploadGroups[$0] }
    return delta
  }
}

extension MetadataState {
  /// Takes in changes, oldest first. Those that the state has already, or newer ones of, change nothing, so that a reload
  /// may overlap with a watch.
  ///
  /// - Returns: what became different in the image; nil before the cluster's own record is known.
  /// - Throws: `.corruptMessage`: the store's bytes are damaged. The state is then of no use any more.
  public mutating func apply(_ changes: [StoreChange]) throws(MemQError) -> ImageDelta? {
    var touched = TouchedIDs()
    for change in changes {
      try self.apply(change, &touched)
      self.revision = max(self.revision, change.revision)
    }
    guard self.image != nil else { return nil }
    self.image!.revision = self.revision
    return touched.delta(self.image!)
  }

  /// The state anew from all entries of a reading, because the changes that lead there are not known.
  ///
  /// - Parameters:
  ///   - reading: the store's revision that was read.
  ///   - known: what was known before. Its revision is kept where that of every entry is lower: what it came from was deleted since,
  ///     and nobody takes an image of a lower revision.
  /// - Throws: `.corruptMessage`.
  public static func loaded(
    _ entries: [StoredEntry], at reading: Revision, instead known: MetadataState
  ) throws(MemQError) -> MetadataState {
    var state = MetadataState(limits: known.limits)
    state.revision = known.revision
    _ = try state.apply(
      entries.map { StoreChange(key: $0.key, value: $0.value, revision: $0.revision) })
    // What was deleted has no entry that tells of it.
    state.unsettled.changed(at: reading)
    return state
  }

  private mutating func apply(
    _ change: StoreChange, _ touched: inout TouchedIDs
  ) throws(MemQError) {
    let key = change.key
    if key == .cluster {
      try self.applyCluster(change)
    } else if key == .controller {
      try self.applyController(change, &touched)
    } else if key.hasPrefix(.nodes) {
      try self.applyNode(change, &touched)
    } else if key.hasPrefix(.topics) {
      try self.applyTopic(change, &touched)
    } else if key.hasPrefix(.topicNames) {
      let name = String(
        decoding: key.bytes.dropFirst(StoreKey.topicNames.bytes.count), as: UTF8.self)
      try update(&self.names, name, change)
    } else if key.hasPrefix(.graves) {
      try update(&self.graves, TopicID(bytes: key.bytes.suffix(16)), change)
    } else if key.hasPrefix(.partitions) {
      try self.applyPartition(change, &touched)
    } else if key.hasPrefix(.uploadGroups) {
      try self.applyUploadGroup(change, &touched)
    } else if key.hasPrefix(.groups) {
      let name = String(decoding: key.bytes.dropFirst(StoreKey.groups.bytes.count), as: UTF8.self)
      try update(&self.groups, name, change)
    } else if key.hasPrefix(.counters) {
      let name = String(decoding: key.bytes.dropFirst(StoreKey.counters.bytes.count), as: UTF8.self)
      try update(&self.counters, name, change)
    } else if key == .restoring {
      throw MemQError(
        .corruptMessage, "a restore of this store was not finished: empty it and restore again")
    } else {
      throw MemQError(.corruptMessage, "an unknown key of metadata", subject: key.description)
    }
  }

  private mutating func applyCluster(_ change: StoreChange) throws(MemQError) {
    guard let value = change.value else {
      throw MemQError(.corruptMessage, "the cluster's own record was deleted")
    }
    let record = try ClusterRecord(value, for: change.key)
    self.cluster = Versioned(record, change.revision)
    if self.image == nil {
      self.image = ClusterImage(
        clusterID: record.id, incarnation: record.incarnation,
        incarnationID: record.incarnationID, revision: change.revision)
      try self.fillImage()
    } else {
      self.image!.incarnation = record.incarnation
      self.image!.incarnationID = record.incarnationID
    }
  }

  private mutating func applyController(
    _ change: StoreChange, _ touched: inout TouchedIDs
  ) throws(MemQError) {
    if let known = self.controller, known.revision >= change.revision { return }
    self.controller = try change.value.map { value throws(MemQError) in
      Versioned(try ControllerRecord(value, for: change.key), change.revision)
    }
    self.image?.controllerAddress = self.controller?.value.address ?? ""
    touched.controller = true
  }

  /// What came before the cluster's record.
  private mutating func fillImage() throws(MemQError) {
    self.image!.controllerAddress = self.controller?.value.address ?? ""
    for node in self.nodes.values { self.image!.nodes[node.value.id] = node.value }
    for group in self.uploadGroups.values {
      self.image!.uploadGroups[group.value.group.id] = group.value.group
    }
    for topic in self.topics.values {
      self.image!.put(topic.value)
      for partition in self.partitions(of: topic.value.id) { self.show(partition.value) }
    }
  }

  private mutating func applyNode(
    _ change: StoreChange, _ touched: inout TouchedIDs
  ) throws(MemQError) {
    let id = NodeID(try number(change.key))
    let before = self.nodes[id]?.value
    guard try update(&self.nodes, id, change) else { return }
    // A record that is only claimed is written again as it was.
    guard self.nodes[id]?.value != before else { return }
    self.unsettled.changed(at: change.revision)
    self.image?.nodes[id] = self.nodes[id]?.value
    touched.node(id)
  }

  private mutating func applyTopic(
    _ change: StoreChange, _ touched: inout TouchedIDs
  ) throws(MemQError) {
    guard let id = TopicID(bytes: change.key.bytes.suffix(16)) else { throw strange(change.key) }
    let before = self.topics[id]?.value.partitionCount ?? 0
    guard try update(&self.topics, id, change) else { return }
    self.topicsRevision = max(self.topicsRevision, change.revision)
    if self.topics[id] != nil { self.unsettled.changed(id, at: change.revision) }
    touched.topic(id)
    guard let topic = self.topics[id]?.value else {
      self.image?.remove(id)
      return
    }
    self.image?.put(topic)
    guard topic.partitionCount > before else { return }
    for partition in self.partitions(of: id) where self.show(partition.value) {
      touched.partition(partition.value.id)
    }
  }

  private mutating func applyPartition(
    _ change: StoreChange, _ touched: inout TouchedIDs
  ) throws(MemQError) {
    let bytes = change.key.bytes
    guard bytes.count == StoreKey.partitions.bytes.count + 20,
      let topic = TopicID(bytes: bytes.dropLast(4).suffix(16))
    else { throw strange(change.key) }
    let id = TopicPartition(topic, PartitionIndex(try number(change.key)))
    let known = self.partitions[id]
    guard isNews(change, to: known) else { return }
    let before = known?.value
    self.partitions[id] = try record(change)
    self.recount(before?.replicas ?? [], self.partitions[id]?.value.replicas ?? [])
    if let partition = self.partitions[id]?.value {
      var isMoved = true
      if let before { isMoved = !partition.isPlacedAndLed(as: before) }
      if isMoved { self.unsettled.changed(id, at: change.revision) }
      if self.show(partition) { touched.partition(id) }
    } else {
      self.image?.partitions[id] = nil
    }
  }

  private mutating func recount(_ before: [ReplicaID], _ after: [ReplicaID]) {
    guard before != after else { return }
    for replica in after { self.replicaCounts[replica.volume, default: 0] += 1 }
    for replica in before {
      let count = (self.replicaCounts[replica.volume] ?? 0) - 1
      self.replicaCounts[replica.volume] = count > 0 ? count : nil
    }
  }

  /// Puts a partition into the image when its topic counts it; with the uploaded offset of its group.
  @discardableResult
  private mutating func show(_ partition: PartitionImage) -> Bool {
    guard self.image != nil, let topic = self.topics[partition.id.topic]?.value,
      Int(partition.id.partition.rawValue) < topic.partitionCount
    else { return false }
    self.image!.partitions[partition.id] = self.shown(partition)
    return true
  }

  private mutating func applyUploadGroup(
    _ change: StoreChange, _ touched: inout TouchedIDs
  ) throws(MemQError) {
    let id: Int32 = try number(change.key)
    let before = self.uploadGroups[id]?.value
    guard try update(&self.uploadGroups, id, change), self.image != nil else { return }
    let after = self.uploadGroups[id]?.value
    if after?.group != before?.group {
      self.image!.uploadGroups[id] = after?.group
      touched.uploadGroup(id)
    }
    for (partition, position) in after?.positions ?? [:] {
      guard before?.positions[partition]?.next != position.next,
        self.image!.partitions[partition] != nil
      else { continue }
      self.image!.partitions[partition]!.setUploaded(position)
      touched.partition(partition)
    }
  }
}

extension PartitionImage {
  /// Where its upload stands.
  mutating func setUploaded(_ position: UploadPosition?) {
    self.uploadedOffset = position?.next ?? .zero
    self.uploadedEpoch = position?.lastEpoch ?? .none
  }

  /// Whether only log positions differ.
  fileprivate func isPlacedAndLed(as other: PartitionImage) -> Bool {
    self.leader == other.leader && self.inSync == other.inSync && self.replicas == other.replicas
      && self.eligible == other.eligible && self.damaged == other.damaged
      && self.reassignment == other.reassignment
  }
}

/// Puts or takes out one record. False: what is there is as new, or newer.
@discardableResult
private func update<Key: Comparable, Record: StoredRecord>(
  _ map: inout SortedMap<Key, Versioned<Record>>, _ key: Key?, _ change: StoreChange
) throws(MemQError) -> Bool {
  guard let key else { throw strange(change.key) }
  guard isNews(change, to: map[key]) else { return false }
  map[key] = try record(change)
  return true
}

private func isNews<Record>(_ change: StoreChange, to known: Versioned<Record>?) -> Bool {
  known.map { $0.revision < change.revision } ?? (change.value != nil)
}

private func record<Record: StoredRecord>(
  _ change: StoreChange
) throws(MemQError) -> Versioned<Record>? {
  try change.value.map { value throws(MemQError) in
    Versioned(try Record(value, for: change.key), change.revision)
  }
}

/// The number that a key ends with.
private func number(_ key: StoreKey) throws(MemQError) -> Int32 {
  guard key.bytes.count >= 4 else { throw strange(key) }
  var reader = ByteReader(Array(key.bytes.suffix(4)))
  return try reader.integer()
}

private func strange(_ key: StoreKey) -> MemQError {
  MemQError(.corruptMessage, "a malformed key of metadata", subject: key.description)
}
