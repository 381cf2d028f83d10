// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
public import MemQModel
import MemQRPC
public import MemQRecords
import MemQSystem
import NIOCore

/// Sends records to one topic, in batches, over one stream.
///
/// Records of one partition keep the order in which one task sent them, over retries, reconnects and restarts of the server. Idempotent by
/// default: a retry is never appended twice. Memory is bounded by ``Configuration/bufferBytesMax``: `send` waits for room.
public final class Producer: Sendable {
  public let topic: String
  /// Partitions of the topic when the producer was made.
  public let partitionCount: Int
  public let configuration: Configuration

  private let engine: ProduceEngine
  private let accumulator: RecordAccumulator
  private let clock = SystemClock()

  fileprivate init(
    _ description: TopicDescription, configuration: Configuration, producerID: ProducerID,
    epoch: ProducerEpoch, client: MemQClient
  ) {
    self.topic = description.topic.name
    self.partitionCount = max(1, description.topic.partitionCount)
    self.configuration = configuration
    let named = description.settings.first { $0.name == "compression.type" }
    let compression =
      configuration.compression ?? named.flatMap { Compression(name: $0.value) } ?? .none
    let batchBytesMax = min(configuration.batchBytesMax, description.messageBytesMax)
    self.accumulator = RecordAccumulator(
      partitions: self.partitionCount,
      limits: RecordAccumulator.Limits(
        batchBytes: min(configuration.batchBytes, batchBytesMax), batchBytesMax: batchBytesMax,
        batchRecordsMax: configuration.batchRecordsMax,
        bufferBytesMax: configuration.bufferBytesMax, linger: TimeAmount(configuration.linger)),
      compression: compression)
    self.engine = ProduceEngine(
      servers: client.servers,
      identity: ProduceEngine.Identity(
        topic: self.topic, partitions: self.partitionCount, producerID: producerID, epoch: epoch,
        compression: compression),
      configuration: configuration, accumulator: self.accumulator, logger: client.logger)
  }

  /// Queues a record. Returns when it is in the buffer, which is not yet an acknowledgement.
  ///
  /// - Parameter acknowledged: called once, on an event loop, when the record's fate is known. Without it a failure is thrown by the next
  ///   `flush` or `close`.
  /// - Throws: `.partitionNotFound`, `.recordBatchTooLarge`, `.cancelled` (the task, or the producer was closed), `.producerFenced`.
  public func send(
    _ record: ProducerRecord, acknowledged: AcknowledgementHandler? = nil
  ) async throws(MemQError) {
    while !(try self.trySend(record, acknowledged: acknowledged)) { try await self.waitForRoom() }
  }

  /// Queues a record unless the buffer is full.
  ///
  /// - Returns: false when it is full; see `waitForRoom`.
  public func trySend(
    _ record: ProducerRecord, acknowledged: AcknowledgementHandler? = nil
  ) throws(MemQError) -> Bool {
    try withOptionalBytes(record.key) { key throws(MemQError) in
      try withOptionalBytes(record.value) { value throws(MemQError) in
        try self.trySend(
          key: key, value: value, headers: record.headers, partition: record.partition,
          timestamp: record.timestamp, acknowledged: acknowledged)
      }
    }
  }

  /// The same for bytes that stand anywhere: they are copied before this returns.
  public func trySend(
    key: UnsafeRawBufferPointer? = nil, value: UnsafeRawBufferPointer?,
    headers: [RecordHeader] = [],
    partition: PartitionIndex? = nil, timestamp: Timestamp? = nil,
    acknowledged: AcknowledgementHandler? = nil
  ) throws(MemQError) -> Bool {
    let outcome = try self.accumulator.append(
      key: key, value: value, headers: headers, partition: partition,
      timestamp: timestamp ?? self.clock.wall, now: .now(), handler: acknowledged)
    switch outcome {
    case .full: return false
    case .taken(let wake):
      if wake { self.engine.wake() }
      return true
    }
  }

  /// Returns when the buffer may have room.
  ///
  /// - Throws: `.cancelled` when the task was cancelled.
  public func waitForRoom() async throws(MemQError) {
    await self.accumulator.waitForRoom()
    if Task.isCancelled { throw MemQError(.cancelled, "the send was cancelled") }
  }

  /// Sends a record and waits for its acknowledgement.
  public func produce(_ record: ProducerRecord) async throws(MemQError) -> RecordPosition {
    let result = await withUnsafeContinuation { continuation in
      Task {
        do throws(MemQError) {
          try await self.send(record) { continuation.resume(returning: $0) }
        } catch {
          continuation.resume(returning: .failure(error))
        }
      }
    }
    return try result.get()
  }

  /// Returns when everything sent before is acknowledged, or has failed.
  ///
  /// - Throws: the first failure of a record without a handler since the last `flush`.
  public func flush() async throws(MemQError) {
    try await self.engine.flush()
  }

  /// Flushes and ends the stream. The producer takes no more records.
  ///
  /// - Throws: as `flush`; with `acks` none also when the stream broke, as records may be lost then.
  public func close() async throws(MemQError) {
    var failure: MemQError?
    do throws(MemQError) {
      try await self.engine.flush()
    } catch {
      failure = error
    }
    let status = await self.engine.close(timeout: .seconds(10))
    if let failure { throw failure }
    if self.configuration.acks == .none, let status, !status.isOK { throw MemQError(status) }
  }
}

private func withOptionalBytes<R>(
  _ bytes: [UInt8]?, _ body: (UnsafeRawBufferPointer?) throws(MemQError) -> R
) throws(MemQError) -> R {
  guard let bytes else { return try body(nil) }
  let result = bytes.withUnsafeBytes { raw in
    Result { () throws(MemQError) in try body(raw) }
  }
  return try result.get()
}

extension MemQClient {
  /// Makes a producer for one topic.
  ///
  /// - Throws: `.topicNotFound`, `.configurationInvalid`, `.unavailable`.
  public func producer(
    _ topic: String, configuration: Producer.Configuration = Producer.Configuration()
  ) async throws(MemQError) -> Producer {
    try configuration.validate()
    let description = try await self.admin.describeTopic(topic)
    var (id, epoch) = (ProducerID.none, ProducerEpoch.none)
    if configuration.usesSequences {
      let response = try await self.servers.call(
        IngestMethods.initProducer, Memq_V1_InitProducerRequest(), timeout: .seconds(10),
        retryFor: self.configuration.requestTimeout)
      id = ProducerID(response.producerID)
      epoch = ProducerEpoch(Int16(clamping: response.producerEpoch))
    }
    return Producer(
      description, configuration: configuration, producerID: id, epoch: epoch, client: self)
  }
}
