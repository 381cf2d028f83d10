// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQRecords

/// When a record counts as acknowledged.
public enum ProduceAcks: String, Sendable, CaseIterable {
  /// As soon as it was sent. Nothing is known of it afterwards.
  case none = "0"
  /// When it is durable on the partition's leader.
  case leader = "1"
  /// When it is durable on every in-sync replica, and visible.
  case all
}

extension Producer {
  public struct Configuration: Sendable {
    public var acks: ProduceAcks = .all
    /// A retry is never appended twice, and order holds with several batches in flight. Has no effect with `acks` none. Without it
    /// one batch per partition is in flight, and a retry may append twice.
    public var isIdempotent = true
    /// Nil: the topic's `compression.type`.
    public var compression: Compression?
    /// A batch waits so long for company.
    public var linger: Duration = .milliseconds(5)
    /// A batch of this size waits no longer.
    public var batchBytes = 64 << 10
    /// While a partition has its fill of batches in flight, the next one grows up to here; never above the topic's `max.message.bytes`.
    public var batchBytesMax = 1 << 20
    public var batchRecordsMax = 500_000
    /// Records that are not acknowledged yet, in bytes. At it `send` waits.
    public var bufferBytesMax = 32 << 20
    /// From `send` to the acknowledgement; a record fails past it.
    public var deliveryTimeout: Duration = .seconds(120)
    /// Deadline the server gets for one batch; past it the batch is sent again.
    public var requestTimeout: Duration = .seconds(30)

    public init() {}

    func validate() throws(MemQError) {
      func check(_ holds: Bool, _ name: String, _ want: String) throws(MemQError) {
        guard holds else {
          throw MemQError(.configurationInvalid, "must be \(want)", subject: name)
        }
      }
      try check(self.batchBytes > 0, "batchBytes", "positive")
      try check(self.batchBytesMax >= self.batchBytes, "batchBytesMax", "at least batchBytes")
      try check(
        self.batchBytesMax <= Limits.recordBatchBytesMax, "batchBytesMax",
        "at most \(Limits.recordBatchBytesMax)")
      try check(
        (1...Limits.recordsPerBatchMax).contains(self.batchRecordsMax), "batchRecordsMax",
        "from 1 to \(Limits.recordsPerBatchMax)")
      try check(
        self.bufferBytesMax >= self.batchBytesMax, "bufferBytesMax", "at least batchBytesMax")
      try check(self.linger >= .zero, "linger", "not negative")
      try check(
        self.requestTimeout > .zero && self.deliveryTimeout >= self.requestTimeout,
        "deliveryTimeout", "at least requestTimeout")
    }

    /// Batches of one partition that wait for their acknowledgement at once. Servers remember five per producer.
    var inFlightMax: Int {
      switch self.acks {
      case .none: .max
      case .leader, .all: self.isIdempotent ? Limits.batchesPerProducerKept : 1
      }
    }

    var usesSequences: Bool { self.isIdempotent && self.acks != .none }
  }
}

/// One record to be sent.
public struct ProducerRecord: Hashable, Sendable {
  /// Records with equal keys go to one partition.
  public var key: [UInt8]?
  public var value: [UInt8]?
  public var headers: [RecordHeader]
  /// Nil: by the key's hash; without a key any.
  public var partition: PartitionIndex?
  /// Nil: now.
  public var timestamp: Timestamp?

  public init(
    key: [UInt8]? = nil, value: [UInt8]?, headers: [RecordHeader] = [],
    partition: PartitionIndex? = nil, timestamp: Timestamp? = nil
  ) {
    self.key = key
    self.value = value
    self.headers = headers
    self.partition = partition
    self.timestamp = timestamp
  }

  public init(_ value: String) { self.init(value: Array(value.utf8)) }
}

/// Where a record went.
public struct RecordPosition: Hashable, Sendable {
  public var partition: PartitionIndex
  /// Nil when it is not known: with `acks` none, or for an old duplicate.
  public var offset: Offset?
}

/// Called once per record, on an event loop: it must not block.
public typealias AcknowledgementHandler = @Sendable (Result<RecordPosition, MemQError>) -> Void
