// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQModel
import MemQRecords
import MemQStorage
import MemQSystem
import NIOCore

/// The volume's side: batches over many partitions, as many under way as two groups hold.
enum VolumeRun {
  static func run(_ options: BenchStorage.Options) async throws -> Measure {
    let bench = try await BenchVolume(options)
    let total = options.bytes / options.batchBytes
    let watch = Stopwatch()
    try await withCheckedThrowingContinuation { (done: CheckedContinuation<Void, any Error>) in
      _ = OwnThread(name: "bench-append") {
        done.resume(
          with: Result {
            try bench.append(total, window: options.windowGroups * options.groupBytes)
          })
      }
    }
    let measure = watch.measure(total * options.batchBytes, groups: Int(bench.volume.stats.groups))
    await bench.end()
    return measure
  }
}

/// One append after the other: what a lone producer waits for.
enum Lone {
  static func run(_ options: BenchStorage.Options) async throws -> (raw: Int, volume: Int) {
    let bench = try await BenchVolume(options)
    let path = options.folder + "-lone"
    let descriptor = try RawFiles.open(path)
    defer {
      close(descriptor)
      unlink(path)
    }
    let bytes = RawFiles.bytes(options.batchBytes)
    var raws: [Int] = []
    var volumes: [Int] = []
    for index in 0..<options.lone {
      var watch = Stopwatch()
      try RawFiles.write(bytes, to: descriptor, at: index * options.batchBytes % RawFiles.fileBytes)
      raws.append(watch.microseconds)
      watch = Stopwatch()
      try bench.append(1, window: 0)
      volumes.append(watch.microseconds)
    }
    await bench.end()
    return (raws.sorted()[raws.count / 2], volumes.sorted()[volumes.count / 2])
  }
}

/// A fresh volume with open partitions, and a producer that waits for its window.
final class BenchVolume: Sendable {
  private struct Window {
    var bytes = 0
    var failure: MemQError?
    var ends: [Offset]
    var next = 0
  }

  let volume: Volume
  private let path: String
  private let batch: ByteBuffer
  private let partitions: [TopicPartition]
  private let window: Monitor<Window>

  init(_ options: BenchStorage.Options) async throws {
    self.path = options.folder + "-volume"
    Self.remove(self.path)
    let configuration = Volume.Configuration(
      path: self.path, clusterID: SystemEntropy().identifier())
    var sized = configuration
    sized.groupBytesMax = options.groupBytes
    self.volume = try await Volume.open(
      sized, logger: Logger(label: "bench") { _ in SwiftLogNoOpLogHandler() })
    let topic: TopicID = SystemEntropy().identifier()
    self.partitions = (0..<options.partitions).map {
      TopicPartition(topic, PartitionIndex(Int32($0)))
    }
    self.batch = Self.batch(options.batchBytes)
    self.window = Monitor(Window(ends: self.partitions.map { _ in .zero }))
    for partition in self.partitions {
      let result: Result<Void, MemQError> = await withCheckedContinuation { opened in
        self.volume.openPartition(partition, logStart: .zero, epochs: []) {
          opened.resume(returning: $0)
        }
      }
      try result.get()
    }
  }

  /// Header of a record batch v2 and random records; only length, magic and CRC matter to the log.
  private static func batch(_ byteCount: Int) -> ByteBuffer {
    var bytes = RawFiles.bytes(byteCount)
    func store<T: FixedWidthInteger>(_ value: T, _ at: Int) {
      withUnsafeBytes(of: value.bigEndian) { bytes.replaceSubrange(at..<(at + $0.count), with: $0) }
    }
    store(Int32(byteCount - 12), 8)
    store(Int8(2), 16)
    store(CRC32C.checksum(bytes[21...]), 17)
    return ByteBuffer(bytes: bytes)
  }

  /// Appends `count` batches, round robin, and waits until all are durable.
  func append(_ count: Int, window limit: Int) throws {
    for _ in 0..<count {
      let (partition, base): (TopicPartition, Offset) = self.window.await { window in
        guard window.failure != nil || window.bytes <= limit else { return .wait(until: nil) }
        let index = window.next % self.partitions.count
        window.next += 1
        window.bytes += self.batch.readableBytes
        defer { window.ends[index] = window.ends[index] + 100 }
        return .done((self.partitions[index], window.ends[index]))
      }
      let append = Volume.Append(
        partition: partition, baseOffset: base, endOffset: base + 100, leaderEpoch: .zero,
        appendTime: .none, maxTimestamp: .none, batch: [self.batch])
      try self.volume.append([append]) { result in self.finish(result) }
    }
    let failure: MemQError? = self.window.await { window in
      window.bytes == 0 || window.failure != nil ? .done(window.failure) : .wait(until: nil)
    }
    if let failure { throw failure }
  }

  private func finish(_ result: Result<Void, MemQError>) {
    self.window.withLock { window in
      window.bytes -= self.batch.readableBytes
      if case .failure(let error) = result { window.failure = error }
    }
    self.window.signal()
  }

  func end() async {
    await self.volume.close()
    Self.remove(self.path)
  }

  private static func remove(_ path: String) {
    for name in (try? Files.list(path)) ?? [] { unlink(path + "/" + name) }
    rmdir(path)
  }
}
