// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQClient
import MemQModel
import MemQRecords
import MemQSystem

/// Produces to a running server as fast as it acknowledges, and prints what that took as one line of JSON.
///
/// Values are random, so that nothing compresses; records go over all partitions. `Benchmarks/server/produce.py` starts the server,
/// runs this in rounds and measures the floor.
@main
struct BenchProduce {
  @concurrent static func main() async throws {
    var arguments = CommandLine.arguments.dropFirst()
    guard let server = arguments.popFirst(), let topic = arguments.popFirst(),
      let mebibytes = arguments.popFirst().flatMap({ Int($0) }), mebibytes > 0,
      let recordBytes = arguments.popFirst().flatMap({ Int($0) }), recordBytes > 0,
      let acks = ProduceAcks(rawValue: arguments.popFirst() ?? "all"), arguments.isEmpty
    else {
      print("bench-produce SERVER TOPIC MIB RECORD-BYTES [0|1|all]")
      exit(2)
    }
    let client = MemQClient(
      servers: [server], logger: Logger(label: "bench") { _ in SwiftLogNoOpLogHandler() })
    var configuration = Producer.Configuration()
    configuration.acks = acks
    configuration.batchBytes = 1 << 20
    configuration.compression = Compression.none
    configuration.bufferBytesMax = 64 << 20
    let producer = try await client.producer(topic, configuration: configuration)
    let value = Self.random(recordBytes)
    let count = (mebibytes << 20) / recordBytes
    let clock = ContinuousClock()
    let begun = clock.now
    for index in 0..<count {
      let partition = PartitionIndex(Int32(index % producer.partitionCount))
      while !(try value.withUnsafeBytes({ try producer.trySend(value: $0, partition: partition) }))
      {
        try await producer.waitForRoom()
      }
    }
    try await producer.close()
    let seconds = (clock.now - begun) / .seconds(1)
    await client.close()
    print(
      "{\"bytes\": \(count * recordBytes), \"records\": \(count), \"seconds\": \(seconds), \"cpu_seconds\": \(Self.cpuSeconds)}"
    )
  }

  private static func random(_ count: Int) -> [UInt8] {
    var generator = SystemRandomNumberGenerator()
    return (0..<count).map { _ in UInt8.random(in: 0...255, using: &generator) }
  }

  private static var cpuSeconds: Double {
    var usage = rusage()
    getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
    func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1e6 }
    return seconds(usage.ru_utime) + seconds(usage.ru_stime)
  }
}
