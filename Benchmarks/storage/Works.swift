// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CBenchSync
import Glibc
import MemQLog
import MemQModel
import MemQStorage
import MemQSystem

enum Works {
  typealias Options = BenchStorage.Options

  private static func medians(_ costs: [Cost]) -> String {
    "\(text(median(costs.map(\.rate)))) MB/s, \(text(median(costs.map(\.cpuPerGiB)))) CPU-s/GiB (user \(text(median(costs.map(\.userPerGiB)))))"
  }

  // MARK: - append

  static func append(_ options: Options) async throws {
    let bytes = options.mebibytes << 20
    let batchBytes = 64 << 10
    var volumes: [BenchVolume.Run] = []
    var floors: [Cost] = []
    var fios: [Double] = []
    // The three take turns at being first; the floor and fio write groups of the size that the volume made last.
    var groupBytes = 3 << 20
    for round in 0...options.rounds {
      var (volume, floor, fio): (BenchVolume.Run?, Cost?, Double?)
      for side in 0..<3 {
        // What removed files left to do (their blocks may be discarded) is nobody's cost.
        Floor.settle()
        switch (side + round) % 3 {
        case 0:
          let bench = try await BenchVolume(
            options.folder + "-volume", partitions: 16, batchBytes: batchBytes,
            writes: options.writes)
          let groups = bench.volume.stats.groups
          volume = try await bench.append(bytes / batchBytes, inFlight: 192)
          groupBytes = bytes / Int(max(1, bench.volume.stats.groups - groups)) / 4096 * 4096
          await bench.end()
        case 1: floor = try Floor.run(options.folder + "-raw", bytes: bytes, groupBytes: groupBytes)
        default: fio = try Floor.fio(options.folder + "-fio", bytes: bytes, groupBytes: groupBytes)
        }
      }
      guard let volume, let floor else { continue }
      show(
        "round \(round): volume \(text(volume.cost.rate)) MB/s, \(text(volume.cost.cpuPerGiB)) CPU-s/GiB, groups of \(groupBytes >> 10) KiB; floor \(text(floor.rate)) MB/s, \(text(floor.cpuPerGiB)); fio \(fio.map(text) ?? "not installed")"
      )
      // Round 0 warms the file system and clocks.
      guard round > 0 else { continue }
      volumes.append(volume)
      floors.append(floor)
      if let fio { fios.append(fio) }
    }
    show("\nmedians of \(options.rounds) rounds")
    show("floor:  \(self.medians(floors))")
    show("volume: \(self.medians(volumes.map(\.cost)))")
    show(
      "volume / floor: \(text(median(zip(volumes, floors).map { $0.cost.rate / $1.rate })))  (goal 0.9)"
    )
    if !fios.isEmpty {
      show(
        "fio: \(text(median(fios))) MB/s; volume / fio: \(text(median(zip(volumes, fios).map { $0.cost.rate / $1 })))  (goal 0.9)"
      )
    }
    func stage(_ name: String, _ seconds: (BenchVolume.Run) -> Double) {
      show("  \(name): \(text(median(volumes.map { seconds($0) / $0.cost.gibibytes })))")
    }
    let write: (BenchVolume.Run) -> Double = { Double($0.calls.write_cpu_nanoseconds) / 1e9 }
    let sync: (BenchVolume.Run) -> Double = { Double($0.calls.sync_cpu_nanoseconds) / 1e9 }
    show(
      "volume without the floor: \(text(median(zip(volumes, floors).map { max(0, $0.cost.cpuPerGiB - $1.cpuPerGiB) }))) CPU-s/GiB; least of the rounds: volume \(text(volumes.map(\.cost.cpuPerGiB).min() ?? 0)), floor \(text(floors.map(\.cpuPerGiB).min() ?? 0))"
    )
    show("CPU-s/GiB by stage (goal 0.35 together)")
    stage("accept (check, stamp, queue; layout where the disk is idle)") { $0.acceptSeconds }
    stage("gathered write (the kernel's copy)", write)
    stage("sync", sync)
    stage("layout, completion, wake-ups, and the producer's waits") {
      $0.cost.cpuSeconds - $0.acceptSeconds - write($0) - sync($0)
    }
  }

  // MARK: - partitions

  static func partitions(_ options: Options) async throws {
    let batchBytes = 16 << 10
    let perSecond = Double(options.rate) * 1e6 / Double(batchBytes)
    let count = Int(perSecond) * options.seconds
    var ratios: [(rate: Double, p50: Double, p99: Double)] = []
    var all: [[BenchVolume.Run]] = [[], []]
    bench_sync_takes(Int64(options.syncMicroseconds) * 1_000)
    defer { bench_sync_takes(0) }
    for round in 1...options.rounds {
      var runs: [BenchVolume.Run] = []
      for partitions in [10, options.partitions] {
        let bench = try await BenchVolume(
          options.folder + "-volume", partitions: partitions, batchBytes: batchBytes,
          writes: options.writes)
        _ = try await bench.append(count / 10, perSecond: perSecond)
        runs.append(try await bench.append(count, perSecond: perSecond))
        await bench.end()
      }
      for (index, run) in runs.enumerated() { all[index].append(run) }
      ratios.append(
        (
          runs[1].cost.rate / runs[0].cost.rate, runs[1].latencies.p50 / runs[0].latencies.p50,
          runs[1].latencies.p99 / runs[0].latencies.p99
        ))
      show(
        "round \(round): "
          + zip(["10", "\(options.partitions)"], runs).map {
            "\($0) partitions \(text($1.cost.rate)) MB/s p50 \(text($1.latencies.p50)) p99 \(text($1.latencies.p99)) us"
          }.joined(separator: "; "))
    }
    for (name, runs) in zip(["10", "\(options.partitions)"], all) {
      show(
        "\(name) partitions: \(self.medians(runs.map(\.cost))), p50 \(text(median(runs.map(\.latencies.p50)))) us, p99 \(text(median(runs.map(\.latencies.p99)))) us"
      )
    }
    show("throughput ratio \(text(median(ratios.map(\.rate))))  (goal 0.9)")
    show(
      "p50 ratio \(text(median(ratios.map(\.p50)))), p99 ratio \(text(median(ratios.map(\.p99))))  (goal 1.5)"
    )
  }

  // MARK: - latency

  static func latency(_ options: Options) async throws {
    let batchBytes = 4 << 10
    for slow in [true, false] {
      let takes = slow ? options.syncMicroseconds : 0
      var p50s: [Double] = []
      var p99s: [Double] = []
      for round in 1...options.rounds {
        bench_sync_takes(Int64(takes) * 1_000)
        let bench = try await BenchVolume(
          options.folder + "-volume", partitions: 16, batchBytes: batchBytes, writes: options.writes
        )
        let full = try await bench.append(200_000, inFlight: 2_048)
        let saturation = Double(full.cost.bytes) / full.cost.seconds / Double(batchBytes)
        let perSecond = saturation / 4
        let run = try await bench.append(
          Int(perSecond) * options.seconds, perSecond: perSecond)
        await bench.end()
        show(
          "round \(round), fdatasync \(slow ? "\(takes) us" : "as it is"): saturation \(text(saturation)) appends/s; at a quarter p50 \(text(run.latencies.p50)) us, p99 \(text(run.latencies.p99)) us; \(text(Double(run.calls.syncs) / run.cost.seconds)) syncs/s: \(run.calls.cycle)"
        )
        p50s.append(run.latencies.p50)
        p99s.append(run.latencies.p99)
      }
      guard slow else {
        show("as it is: p50 \(text(median(p50s))) us, p99 \(text(median(p99s))) us")
        continue
      }
      show(
        "to \(takes) us: p50 \(text(median(p50s) / Double(takes)))  (goal 1.6), p99 \(text(median(p99s) / Double(takes)))  (goal 2.3)"
      )
    }
    bench_sync_takes(0)
  }

  // MARK: - restart

  private static func restartVolume(_ options: Options) async throws -> BenchVolume {
    try await BenchVolume(
      options.folder + "-restart", partitions: options.partitions, batchBytes: 16 << 10,
      keeps: true, writes: options.writes)
  }

  /// Fills the volume up to the end of a segment and dies.
  static func restartBuild(_ options: Options) async throws {
    BenchVolume.remove(options.folder + "-restart")
    let bench = try await self.restartVolume(options)
    let segments = max(1, (options.gibibytes << 30) / (256 << 20))
    while bench.volume.stats.log.segmentsUsed < segments {
      _ = try await bench.append(500, inFlight: 400)
    }
    // The tail: as much as fits with its footer.
    let start = bench.volume.stats.bytesWritten
    while bench.volume.stats.bytesWritten - start < 240 << 20 {
      _ = try await bench.append(100, inFlight: 400)
    }
    show("\(bench.volume.stats.log.segmentsUsed)")
    bench_die()
  }

  static func restartOpen(_ options: Options) async throws {
    let watch = Stretch()
    let bench = try await self.restartVolume(options)
    let cost = watch.end(bytes: 1 << 30)
    guard !bench.volume.wasClean, bench.volume.recoveredPartitions().count == options.partitions
    else { throw BenchError("the volume was not what it should be") }
    show("\(cost.seconds) \(cost.cpuSeconds) \(Memory.peakMiB)")
    bench_die()
  }

  static func restart(_ options: Options) async throws {
    func child(_ work: String, _ gibibytes: Int) throws -> [Double] {
      let output = options.folder + "-out"
      defer { unlink(output) }
      let command =
        "\(CommandLine.arguments[0]) \(work) --folder \(options.folder) --gib \(gibibytes) --partitions \(options.partitions) >\(output)"
      guard Floor.shell(command) == 0, let line = Floor.contents(output) else {
        throw BenchError("\(work) failed")
      }
      return line.split(whereSeparator: { $0 == " " || $0 == "\n" }).compactMap { Double($0) }
    }
    var sizes: [(bytes: Double, seconds: Double)] = []
    for gibibytes in [max(1, options.gibibytes / 4), options.gibibytes] {
      defer { BenchVolume.remove(options.folder + "-restart") }
      let segments = try child("restart-build", gibibytes)
      var seconds: [Double] = []
      for _ in 0..<options.rounds {
        // The open itself drops the files from the page cache; the rest of the kernel's caches, where we may.
        _ = Floor.shell("sync; echo 3 >/proc/sys/vm/drop_caches")
        let opened = try child("restart-open", gibibytes)
        guard opened.count == 3 else { throw BenchError("restart-open said nothing") }
        show(
          "\(gibibytes) GiB: \(text(opened[0])) s, \(text(opened[1])) CPU-s, peak \(Int(opened[2])) MiB"
        )
        seconds.append(opened[0])
      }
      // Each open seals the tail and leaves a short segment: the first one is the crash's.
      sizes.append((segments[0] * Double(256 << 20), seconds[0]))
      show(
        "\(gibibytes) GiB, \(Int(segments[0])) segments, \(options.partitions) partitions: \(text(seconds[0])) s after the crash, then \(text(median(seconds))) s in the median  (goal 3)"
      )
    }
    let slope = (sizes[1].seconds - sizes[0].seconds) / (sizes[1].bytes - sizes[0].bytes)
    show(
      "extrapolated to 1 TB: \(text(max(sizes[1].seconds, sizes[1].seconds + slope * (1e12 - sizes[1].bytes)))) s"
    )
  }

  // MARK: - memory

  static func memory(_ options: Options) async throws {
    var each: [Double] = []
    // Round 0 is for what a process keeps once it has had it.
    for round in 0...options.rounds {
      var bytes: [Double] = []
      for count in [options.partitions / 2, options.partitions] {
        let before = Memory.heapBytes
        let bench = try await BenchVolume(
          options.folder + "-volume", partitions: count, batchBytes: 4_096, writes: options.writes)
        bytes.append(Double(Memory.heapBytes - before))
        await bench.end()
      }
      if round > 0 { each.append((bytes[1] - bytes[0]) / Double(options.partitions / 2)) }
    }
    show(
      "an idle partition: \(text(median(each))) bytes of heap, \(BenchVolume.bytesPerPartition) of them the benchmark's own  (goal 1024)"
    )
    for partitions in [16, 1_000, options.partitions] {
      try self.index(partitions)
    }
  }

  /// The core alone, without files: what 100 GiB of 4 KiB runs leave in memory.
  private static func index(_ partitions: Int) throws {
    let before = Memory.heapBytes
    var core = CoreRun(partitions: partitions)
    let opened = Memory.heapBytes
    let watch = Stretch()
    core.append(bytes: 100 << 30, batchBytes: 4_096)
    let cost = watch.end(bytes: 100 << 30)
    let after = Memory.heapBytes
    show(
      "100 GiB of 4 KiB runs over \(partitions) partitions: \(text(Double(after - opened) / Double(1 << 20))) MiB of index in \(core.segmentsUsed) segments, \(text(Double(opened - before) / Double(partitions))) bytes a partition before; core \(text(cost.cpuSeconds * 1e9 / Double((100 << 30) / 4_096))) ns an append  (goal 64 MiB)"
    )
    withExtendedLifetime(core) {}
  }

  // MARK: - catch-up

  static func catchUp(_ options: Options) async throws {
    let batchBytes = 64 << 10
    // Partition 0 is the one that is read; then the page cache forgets it.
    let bench = try await BenchVolume(
      options.folder + "-volume", partitions: 17, batchBytes: batchBytes, writes: options.writes)
    _ = try await bench.append((options.gibibytes << 30) / batchBytes, inFlight: 128, only: 0..<1)
    bench_sync_takes(Int64(options.syncMicroseconds) * 1_000)
    var ratios: [(rate: Double, p50: Double, p99: Double)] = []
    var readRates: [Double] = []
    for round in 1...options.rounds {
      var runs: [BenchVolume.Run] = []
      var readRate = 0.0
      for reads in round % 2 == 0 ? [true, false] : [false, true] {
        _ = Floor.shell("echo 3 >/proc/sys/vm/drop_caches")
        let isOver = Monitor(false)
        let reader: Task<(bytes: Int, seconds: Double), any Error>? =
          !reads
          ? nil
          : Task {
            let start = Clock.nanoseconds
            var bytes = 0
            var from = Offset.zero
            let end = bench.ends[0]
            while !isOver.withLock({ $0 }) {
              let found = try await bench.volume.read(
                bench.partitions[0], from: from, below: end, maxBytes: 1 << 20)
              bytes += found.byteCount
              from = found.nextOffset < end ? found.nextOffset : .zero
            }
            return (bytes, Double(Clock.nanoseconds - start) / 1e9)
          }
        // What one producer of 16 batches in flight gets; the number is found in the first run.
        let count = 16 * options.seconds * 1_000_000 / options.syncMicroseconds
        let run = try await bench.append(count / 2, inFlight: 16, only: 1..<17)
        isOver.withLock { $0 = true }
        if let read = try await reader?.value { readRate = Double(read.bytes) / read.seconds / 1e6 }
        if reads { runs.append(run) } else { runs.insert(run, at: 0) }
      }
      readRates.append(readRate)
      ratios.append(
        (
          runs[1].cost.rate / runs[0].cost.rate, runs[1].latencies.p50 / runs[0].latencies.p50,
          runs[1].latencies.p99 / runs[0].latencies.p99
        ))
      show(
        "round \(round): without \(text(runs[0].cost.rate)) MB/s p50 \(text(runs[0].latencies.p50)) p99 \(text(runs[0].latencies.p99)) us; with \(text(runs[1].cost.rate)) MB/s p50 \(text(runs[1].latencies.p50)) p99 \(text(runs[1].latencies.p99)) us beside \(text(readRate)) MB/s read"
      )
    }
    bench_sync_takes(0)
    await bench.end()
    show("throughput ratio \(text(median(ratios.map(\.rate))))  (goal 0.95)")
    show(
      "p50 ratio \(text(median(ratios.map(\.p50)))), p99 ratio \(text(median(ratios.map(\.p99))))  (goal 1.5); read beside it \(text(median(readRates))) MB/s"
    )
  }

  // MARK: - log-order

  static func logOrder(_ options: Options) async throws {
    let batchBytes = 16 << 10
    let bytes = options.gibibytes << 30
    let bench = try await BenchVolume(
      options.folder + "-volume", partitions: 64, batchBytes: batchBytes, writes: options.writes)
    _ = try await bench.append(bytes / batchBytes, inFlight: 512)
    let ends = bench.ends
    var plain: [Cost] = []
    var ordered: [Cost] = []
    var readBytes: [Double] = [0, 0]
    for round in 1...options.rounds {
      _ = Floor.shell("echo 3 >/proc/sys/vm/drop_caches")
      var before = bench.volume.stats.bytesRead
      var watch = Stretch()
      try await withThrowingTaskGroup(of: Void.self) { group in
        for (partition, end) in zip(bench.partitions, ends) {
          group.addTask {
            var from = Offset.zero
            while from < end {
              from = try await bench.volume.read(
                partition, from: from, below: end, maxBytes: 1 << 20
              ).nextOffset
            }
          }
        }
        try await group.waitForAll()
      }
      plain.append(watch.end(bytes: bytes))
      readBytes[0] = Double(bench.volume.stats.bytesRead - before) / Double(bytes)
      _ = Floor.shell("echo 3 >/proc/sys/vm/drop_caches")
      before = bench.volume.stats.bytesRead
      watch = Stretch()
      var wants = zip(bench.partitions, ends).map {
        Volume.LogOrderWant(partition: $0, from: .zero, below: $1, maxBytes: 4 << 20)
      }
      var isMore = true
      while isMore {
        isMore = false
        let results = try await bench.volume.readInLogOrder(wants, maxBytes: 16 << 20)
        for (index, result) in results.enumerated() {
          let found = try result.get()
          isMore = isMore || !found.batches.isEmpty
          wants[index].from = found.nextOffset
        }
      }
      ordered.append(watch.end(bytes: bytes))
      readBytes[1] = Double(bench.volume.stats.bytesRead - before) / Double(bytes)
      show(
        "round \(round): each by itself, all at once \(text(plain[round - 1].rate)) MB/s, \(text(plain[round - 1].cpuPerGiB)) CPU-s/GiB, \(text(readBytes[0])) bytes read for each; in log order \(text(ordered[round - 1].rate)) MB/s, \(text(ordered[round - 1].cpuPerGiB)) CPU-s/GiB, \(text(readBytes[1])) bytes"
      )
    }
    await bench.end()
    show("each by itself: \(self.medians(plain))")
    show("in log order:   \(self.medians(ordered))")
  }
}

/// A volume core whose disk takes everything at once.
struct CoreRun {
  private var core: VolumeCore
  private var effects: [VolumeCore.Effect] = []
  private var request: UInt64 = 0
  private var ends: [Offset]
  private let partitions: [TopicPartition]
  private let now = MonotonicInstant(nanoseconds: 0)
  /// Goes on as if 100 MB came in each second; records were made up to 64 ms before.
  private var wall = Timestamp(milliseconds: 1_700_000_000_000)

  init(partitions count: Int) {
    let identity = VolumeIdentity(
      cluster: ClusterID(UniqueID(high: 1, low: 1)), volume: VolumeID(UniqueID(high: 1, low: 2)),
      segmentBytes: 256 << 20)
    self.core = VolumeCore(identity, LogConfiguration(), recovered: RecoveredVolume())
    let topic = TopicID(UniqueID(high: 2, low: 2))
    self.partitions = (0..<count).map { TopicPartition(topic, PartitionIndex(Int32($0))) }
    self.ends = self.partitions.map { _ in .zero }
    self.core.start(at: self.now, wall: self.wall, into: &self.effects)
    self.settle()
    for partition in self.partitions {
      self.request += 1
      self.core.handle(
        .openPartition(RequestID(self.request), partition, logStart: .zero, epochs: []),
        at: self.now, wall: self.wall, into: &self.effects)
      self.settle()
    }
  }

  var segmentsUsed: Int { self.core.stats.segmentsUsed }

  mutating func append(bytes: Int, batchBytes: Int) {
    var left = bytes / batchBytes
    var index = 0
    while left > 0 {
      // A group of 1 MiB; one run for each batch, as the partitions take turns.
      var batches: [VolumeCore.BatchAppend] = []
      self.wall = Timestamp(milliseconds: self.wall.milliseconds + 10)
      for _ in 0..<min(left, 256) {
        let base = self.ends[index]
        self.ends[index] = base + 10
        let summary = BatchSummary(
          baseOffset: base, endOffset: base + 10, leaderEpoch: .zero, producerID: .none,
          producerEpoch: .none, baseSequence: -1,
          maxTimestamp: Timestamp(
            milliseconds: self.wall.milliseconds - Int64((index &* 7 + left) % 64)),
          appendTime: self.wall)
        batches.append(
          VolumeCore.BatchAppend(
            partition: self.partitions[index], summary: summary, byteCount: batchBytes, checksum: 1)
        )
        index = (index + 1) % self.partitions.count
      }
      left -= batches.count
      self.request += 1
      do throws(MemQError) {
        try self.core.append(
          batches, request: RequestID(self.request), at: self.now, wall: self.wall,
          into: &self.effects)
      } catch {
        fatalError("the core refused: \(error)")
      }
      self.settle()
    }
  }

  private mutating func settle() {
    while !self.effects.isEmpty {
      var taken: [VolumeCore.Effect] = []
      swap(&taken, &self.effects)
      for effect in taken {
        let event: VolumeCore.Event
        switch effect {
        case .write(let group): event = .written(group.number)
        case .sync(_, let group): event = .synced(group)
        case .allocate(let slot): event = .slotAllocated(slot, availableBytes: 1 << 50)
        case .retire(let slot, _): event = .retired(slot)
        default: continue
        }
        self.core.handle(event, at: self.now, wall: self.wall, into: &self.effects)
      }
    }
  }
}
