// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Limits that hold everywhere. Each is refused beyond with its name, the limit and the actual value.
public enum Limits {
  /// 249 bytes, as Kafka's: the name must fit a file name with a suffix.
  public static let topicNameBytesMax = 249
  /// One topic's partitions. A partition costs about 1 KiB of memory on each of its nodes.
  public static let partitionsPerTopicMax = 10_000
  /// Default of `max.message.bytes`: one encoded record batch. 1 MiB as Kafka's, and one sync of it stays under 1 ms at 1 GB/s.
  public static let recordBatchBytesDefault = 1 << 20
  /// Ceiling of `max.message.bytes`: larger things are files.
  public static let recordBatchBytesMax = 8 << 20
  /// Records in one batch: the count field of record batch v2 is 32 bits; this bounds decode work.
  public static let recordsPerBatchMax = 1_000_000
  /// Encoded bytes of one gRPC message on a data stream: a largest batch and its header.
  public static let dataMessageBytesMax = recordBatchBytesMax + (64 << 10)
  /// Encoded bytes of one control message.
  public static let controlMessageBytesMax = 16 << 20
  /// 1,024 bytes, as S3's keys.
  public static let fileNameBytesMax = 1_024
  /// Files up to here ride inside their record (256 KiB).
  public static let inlineFileBytesMax = 256 << 10
  /// 5 TiB, S3's largest object.
  public static let fileBytesMax: Int64 = 5 << 40
  /// One chunk of a file put: small enough to interleave, large enough to cost nothing.
  public static let fileChunkBytesMax = 1 << 20
  /// Consumer group names, bytes.
  public static let groupNameBytesMax = 255
  /// Partitions of one upload group: bounds the group's key in metadata and one object's plan.
  public static let partitionsPerUploadGroupMax = 512
  /// Operations, and conditions, of one metadata transaction: etcd's default `--max-txn-ops` is 128, and the store adds one of its own.
  public static let transactionOperationsMax = 126
  /// Producers remembered per partition; the least recently used goes first.
  public static let producersPerPartitionMax = 65_536
  /// Batches remembered per producer for duplicate answers: Kafka's five in flight.
  public static let batchesPerProducerKept = 5
  /// A producer not heard of for this long is forgotten: 7 days.
  public static let producerExpiry: Duration = .seconds(7 * 24 * 3600)
}
