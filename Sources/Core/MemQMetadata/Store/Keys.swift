// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

// All keys. Those under `i/` are held in memory and watched; the others are read when needed.
extension StoreKey {
  fileprivate init(_ family: String, _ rest: (inout ByteWriter) -> Void) {
    var writer = ByteWriter()
    writer.raw(family.utf8)
    rest(&writer)
    self.init(writer.bytes)
  }

  /// Prefix of what every instance holds in memory.
  public static let memory = StoreKey("i/")
  public static let cluster = StoreKey("i/c")

  /// Who decides, among several instances; under its lease.
  public static let controller = StoreKey("i/l")

  public static let nodes = StoreKey("i/n/")
  public static func node(_ id: NodeID) -> StoreKey { StoreKey("i/n/") { $0.node(id) } }

  public static let topics = StoreKey("i/t/")
  public static func topic(_ id: TopicID) -> StoreKey { StoreKey("i/t/") { $0.id(id) } }
  public static let topicNames = StoreKey("i/a/")
  public static func topicName(_ name: String) -> StoreKey { StoreKey("i/a/" + name) }
  /// Deleted topics whose remains are still to be cleared away.
  public static let graves = StoreKey("i/z/")
  public static func grave(_ id: TopicID) -> StoreKey { StoreKey("i/z/") { $0.id(id) } }

  public static let partitions = StoreKey("i/p/")
  public static func partition(_ id: TopicPartition) -> StoreKey {
    StoreKey("i/p/") { $0.partition(id) }
  }

  public static let uploadGroups = StoreKey("i/g/")
  public static func uploadGroup(_ id: Int32) -> StoreKey { StoreKey("i/g/") { $0.integer(id) } }

  public static let groups = StoreKey("i/m/")
  public static func group(_ name: String) -> StoreKey { StoreKey("i/m/" + name) }

  public static let counters = StoreKey("i/x/")
  public static func counter(_ counter: Counter) -> StoreKey {
    StoreKey("i/x/" + counter.rawValue)
  }

  // MARK: Not held in memory

  /// Deleted topics of which nothing is left here: nodes that were away ask for them.
  public static let tombstones = StoreKey("z/")
  public static func tombstone(_ id: TopicID) -> StoreKey { StoreKey("z/") { $0.id(id) } }

  /// Objects of an upload group, in the order of their commits.
  public static func objects(_ group: Int32) -> StoreKey { StoreKey("o/") { $0.integer(group) } }
  public static func object(_ group: Int32, _ sequence: Int64) -> StoreKey {
    StoreKey("o/") {
      $0.integer(group)
      $0.integer(sequence)
    }
  }
  /// Where an object id was committed, or that it is barred.
  public static func objectID(_ id: ObjectID) -> StoreKey { StoreKey("O/") { $0.id(id) } }
  public static let objectIDs = StoreKey("O/")
  /// The id that such a key names.
  public static func objectID(in key: StoreKey) -> ObjectID? {
    ObjectID(bytes: key.bytes.dropFirst(Self.objectIDs.bytes.count))
  }

  /// Committed offsets of a consumer group. Names hold no NUL, so none is another's prefix.
  public static func offsets(_ group: String) -> StoreKey {
    StoreKey("q/" + group + "\0")
  }
  public static func offsets(_ group: String, _ topic: TopicID) -> StoreKey {
    StoreKey("q/" + group + "\0") { $0.id(topic) }
  }
  public static func offsets(_ group: String, _ topic: TopicID, chunk: Int32) -> StoreKey {
    StoreKey("q/" + group + "\0") {
      $0.id(topic)
      $0.integer(chunk)
    }
  }

  public static let producerEpochs = StoreKey("e/")
  public static func producerEpoch(_ id: ProducerID) -> StoreKey {
    StoreKey("e/") { $0.integer(id.rawValue) }
  }

  /// Uploads under way, in quarantine, and done.
  public static let activeUploads = StoreKey("u/a/")
  public static let quarantinedUploads = StoreKey("u/q/")
  public static let doneUploads = StoreKey("u/d/")
  public static func upload(_ id: UploadID, _ shelf: UploadShelf) -> StoreKey {
    StoreKey(shelf.prefix.bytes + id.bytes)
  }
  public static func uploadBody(_ id: UploadID) -> StoreKey { StoreKey("u/b/") { $0.id(id) } }

  /// The latest version of each file of a topic, by name.
  public static func files(_ topic: TopicID, prefix: String = "") -> StoreKey {
    StoreKey("f/l/") {
      $0.id(topic)
      $0.raw(prefix.utf8)
    }
  }
  public static func file(_ topic: TopicID, _ name: String) -> StoreKey {
    Self.files(topic, prefix: name)
  }
  /// Earlier versions. Names hold no NUL, so none is another's prefix.
  public static func fileVersions(_ topic: TopicID) -> StoreKey {
    StoreKey("f/v/") { $0.id(topic) }
  }
  public static func fileVersions(_ topic: TopicID, _ name: String) -> StoreKey {
    StoreKey("f/v/") {
      $0.id(topic)
      $0.raw(name.utf8)
      $0.integer(UInt8(0))
    }
  }
  public static func fileVersion(_ topic: TopicID, _ name: String, _ version: Int64) -> StoreKey {
    StoreKey("f/v/") {
      $0.id(topic)
      $0.raw(name.utf8)
      $0.integer(UInt8(0))
      $0.integer(version)
    }
  }

  /// Bodies whose bytes are to go.
  public static let droppingBodies = StoreKey("d/")
  public static func droppingBody(_ key: String) -> StoreKey { StoreKey("d/" + key) }

  /// Written behind each snapshot's reading: where its changes end.
  public static let snapshotMark = StoreKey("s/m")
  /// While a store is being filled from a snapshot. Whoever finds it has half a store.
  public static let restoring = StoreKey("i/r")

  /// Decisions of people, by time.
  public static func audit(_ at: Timestamp, _ upload: UploadID) -> StoreKey {
    StoreKey("a/") {
      $0.time(at)
      $0.id(upload)
    }
  }
}

/// Numbers that are given out once.
public enum Counter: String, Sendable, CaseIterable {
  case nodes = "node"
  case producers = "producer"
  case fileProducers = "file-producer"
}

/// Where an upload's record stands: by what may still happen to it.
public enum UploadShelf: Sendable, CaseIterable {
  case active, quarantined, done

  public var prefix: StoreKey {
    switch self {
    case .active: .activeUploads
    case .quarantined: .quarantinedUploads
    case .done: .doneUploads
    }
  }
}
