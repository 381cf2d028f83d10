// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CBenchSync
import Glibc
import Logging
import MemQLog
import MemQModel
import MemQRecords
import MemQStorage
import MemQSystem
import NIOCore

/// A volume with open partitions and what fills it.
final class BenchVolume: @unchecked Sendable {
  private struct Window {
    var batches = 0
    var failure: MemQError?
  }

  /// What one run of appends was like.
  struct Run {
    var cost: Cost
    var latencies: Latencies
    /// CPU of the thread that appends, within the volume.
    var acceptSeconds: Double
    var calls: bench_calls
  }

  let volume: Volume
  let path: String
  let batchBytes: Int
  private let batch: ByteBuffer
  let partitions: [TopicPartition]
  private(set) var ends: [Offset]
  private let window = Monitor(Window())
  private var next = 0

  /// Removes what is there, unless it is to be kept.
  init(
    _ path: String, partitions count: Int, batchBytes: Int, groupBytes: Int = 4 << 20,
    keeps: Bool = false, writes: Volume.WritePath = .cached,
    configure: (inout Volume.Configuration) -> Void = { _ in }
  ) async throws {
    self.path = path
    if !keeps { Self.remove(path) }
    var configuration = Volume.Configuration(
      path: path, clusterID: ClusterID(UniqueID(high: 1, low: 1)))
    configuration.groupBytesMax = groupBytes
    configuration.writes = writes
    configure(&configuration)
    self.volume = try await Volume.open(
      configuration, logger: Logger(label: "bench") { _ in SwiftLogNoOpLogHandler() })
    let topic = TopicID(UniqueID(high: 2, low: 2))
    let partitions = (0..<count).map { TopicPartition(topic, PartitionIndex(Int32($0))) }
    self.partitions = partitions
    self.batchBytes = batchBytes
    self.batch = Self.batch(batchBytes)
    self.ends = []
    for partition in partitions { self.ends.append(self.volume.state(of: partition)?.end ?? .zero) }
    let missing = partitions.filter { self.volume.state(of: $0) == nil }
    for partition in missing {
      self.begin()
      self.volume.openPartition(partition, logStart: .zero, epochs: []) { self.finish($0) }
    }
    try self.drain()
  }

  /// Header of a record batch v2 and random records; only length, magic and CRC matter to the log.
  private static func batch(_ byteCount: Int) -> ByteBuffer {
    var bytes = Floor.bytes(byteCount)
    func store<T: FixedWidthInteger>(_ value: T, _ at: Int) {
      withUnsafeBytes(of: value.bigEndian) { bytes.replaceSubrange(at..<(at + $0.count), with: $0) }
    }
    store(Int32(byteCount - 12), 8)
    store(Int8(2), 16)
    store(Int64(-1), 43)
    store(CRC32C.checksum(bytes[21...]), 17)
    return ByteBuffer(bytes: bytes)
  }

  private func begin() { self.window.withLock { $0.batches += 1 } }

  private func finish(_ result: Result<Void, MemQError>) {
    let isLow = self.window.withLock { window in
      window.batches -= 1
      if case .failure(let error) = result { window.failure = error }
      return true
    }
    if isLow { self.window.signal() }
  }

  private func drain() throws {
    let failure: MemQError? = self.window.await { window in
      window.batches == 0 || window.failure != nil ? .done(window.failure) : .wait(until: nil)
    }
    if let failure { throw failure }
  }

  /// Appends `count` batches round robin. Closed loop: at most `inFlight` under way. Open loop: `perSecond` are due each second,
  /// and latencies count from when a batch was due, sent or not.
  ///
  /// - Parameter only: the partitions to append to; nil: all.
  func append(
    _ count: Int, inFlight: Int = .max, perSecond: Double? = nil, only: Range<Int>? = nil
  ) async throws -> Run {
    try await withCheckedThrowingContinuation {
      (done: CheckedContinuation<Run, any Error>) in
      _ = OwnThread(name: "bench-append") {
        done.resume(
          with: Result {
            try self.appendNow(count, inFlight, perSecond, only ?? 0..<self.ends.count)
          }
        )
      }
    }
  }

  private func appendNow(
    _ count: Int, _ inFlight: Int, _ perSecond: Double?, _ only: Range<Int>
  ) throws -> Run {
    // Filled by completions, each at its own place.
    nonisolated(unsafe) let latencies = UnsafeMutableBufferPointer<UInt32>.allocate(capacity: count)
    latencies.initialize(repeating: 0)
    defer { latencies.deallocate() }
    let calls = bench_calls_now()
    var accept: Int64 = 0
    let watch = Stretch()
    let start = Clock.nanoseconds
    for number in 0..<count {
      var due = Clock.nanoseconds
      if let perSecond {
        due = start + Int64(Double(number) / perSecond * 1e9)
        if due > Clock.nanoseconds + 50_000 { Clock.sleep(until: due) }
      } else {
        let failure: MemQError? = self.window.await { window in
          window.batches < inFlight || window.failure != nil
            ? .done(window.failure) : .wait(until: nil)
        }
        if let failure { throw failure }
        due = Clock.nanoseconds
      }
      let index = only.lowerBound + self.next % only.count
      self.next += 1
      self.begin()
      let base = self.ends[index]
      self.ends[index] = base + 10
      let append = Volume.Append(
        partition: self.partitions[index], baseOffset: base, endOffset: base + 10,
        leaderEpoch: .zero, appendTime: .none, maxTimestamp: .none, batch: [self.batch])
      let cpu = bench_thread_cpu_nanoseconds()
      try self.appendOnceTaken(append) { [due] result in
        latencies[number] = UInt32(clamping: (Clock.nanoseconds - due) / 1_000)
        self.finish(result)
      }
      accept += bench_thread_cpu_nanoseconds() - cpu
    }
    try self.drain()
    let cost = watch.end(bytes: count * self.batchBytes)
    let after = bench_calls_now()
    return Run(
      cost: cost, latencies: Latencies(Array(latencies)), acceptSeconds: Double(accept) / 1e9,
      calls: after - calls)
  }

  /// Asks again while the volume says "not now"; for at most 30 s.
  private func appendOnceTaken(
    _ append: Volume.Append, completion: @escaping Volume.Completion
  ) throws {
    let deadline = Clock.nanoseconds + 30_000_000_000
    while true {
      do throws(MemQError) {
        return try self.volume.append([append], completion: completion)
      } catch {
        guard error.code == .resourceExhausted, Clock.nanoseconds < deadline else { throw error }
        Clock.sleep(until: Clock.nanoseconds + 100_000)
      }
    }
  }

  /// What this keeps itself: name and end.
  static let bytesPerPartition =
    MemoryLayout<TopicPartition>.stride + MemoryLayout<Offset>.stride

  func end() async {
    await self.volume.close()
    Self.remove(self.path)
  }

  static func remove(_ path: String) {
    for name in (try? Files.list(path)) ?? [] { unlink(path + "/" + name) }
    rmdir(path)
  }
}
