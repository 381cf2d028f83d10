// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog
import MemQTestSupport

/// What can be fuzzed. Each run is made from its seed alone.
public enum FuzzTarget: String, CaseIterable, Sendable {
  /// HTTP/2 frames into a server's and a client's connection.
  case frames
  /// gRPC's framing of messages, and gzip.
  case framing
  /// Header values: percent coding, base64, timeouts, content types.
  case headers
  /// The splitter of messages with a payload field.
  case payload
  /// Record batches: validation, decompression, decoding.
  case batch
  /// The SSD log's headers, groups, footers, checkpoints and positions.
  case log
  /// A whole volume with damaged files: recovery, verification, reads.
  case volume

  /// Runs one seed.
  ///
  /// - Throws: ``FuzzFailure`` when an invariant does not hold. A crash is a crash: print the seed before.
  public func run(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    switch self {
    case .frames:
      if random.oneIn(3) {
        try ClientFuzz.run(&random)
      } else {
        try ServerFuzz.run(&random)
      }
    case .framing: try FramingFuzz.run(&random)
    case .headers: try HeaderFuzz.run(&random)
    case .payload: try PayloadFuzz.run(&random)
    case .batch: try BatchFuzz.run(&random)
    case .log: try LogFuzz.run(&random)
    case .volume: try VolumeFuzz.run(&random)
    }
  }

  /// Runs one seed of `.volume` with a fault planted, which some seeds must notice.
  ///
  /// - Throws: ``FuzzFailure`` when they do.
  public static func runVolume(seed: UInt64, with fault: PlantedFault) throws {
    var random = SeededGenerator(seed: seed)
    try VolumeFuzz.run(&random, planted: fault)
  }

  /// The types of the frames that the traffic of a seed begins with, before it is mutated.
  public static func recordedFrameTypes(
    seed: UInt64
  ) throws -> (fromClient: [UInt8], fromServer: [UInt8]) {
    var random = SeededGenerator(seed: seed)
    let traffic = try Traffic.record(&random)
    return (traffic.fromClient.map(\.type), traffic.fromServer.map(\.type))
  }
}

/// Faults of a volume's recovery and reads, planted to show that the fuzzer sees such ones.
public enum PlantedFault: CaseIterable, Sendable {
  /// Damage below what was durable counts as the end of the log.
  case cutsDurableDamage
  /// The open names no damaged partition.
  case forgetsDamage
  /// Reads hand batches out without a look at their bytes.
  case trustsPayloads

  var mutations: LogMutations { self == .cutsDurableDamage ? .ignoresDurableMark : [] }
}

/// An invariant that did not hold.
public struct FuzzFailure: Error, CustomStringConvertible {
  public let description: String

  init(_ description: String) { self.description = description }
}

func require(_ condition: Bool, _ text: @autoclosure () -> String) throws {
  guard condition else { throw FuzzFailure(text()) }
}

/// Changes to bytes that parsers tend to trip over.
enum Mutator {
  /// Applies a few changes in place: flips, overwrites, cuts, repeats, splices from `other`.
  static func mutate(
    _ bytes: inout [UInt8], splicing other: [UInt8], _ random: inout SeededGenerator
  ) {
    for _ in 0..<(1 + random.below(4)) {
      guard !bytes.isEmpty else {
        bytes = random.bytes(1 + random.below(8))
        continue
      }
      let at = random.below(bytes.count)
      switch random.below(8) {
      case 0: bytes[at] ^= 1 << UInt8(random.below(8))
      case 1: bytes[at] = [0, 1, 0x7f, 0x80, 0xff].randomElement(using: &random)!
      case 2: bytes[at] = UInt8(truncatingIfNeeded: random.next())
      case 3: bytes.removeSubrange(at..<min(bytes.count, at + 1 + random.below(16)))
      case 4:
        let piece = Array(bytes[at..<min(bytes.count, at + 1 + random.below(64))])
        bytes.insert(contentsOf: piece, at: random.below(bytes.count))
      case 5: bytes.insert(contentsOf: random.bytes(1 + random.below(8)), at: at)
      case 6:
        guard !other.isEmpty else { continue }
        let from = random.below(other.count)
        bytes.replaceSubrange(
          at..<min(bytes.count, at + random.below(32)),
          with: other[from..<min(other.count, from + 1 + random.below(64))])
      default: bytes.removeSubrange(at...)
      }
    }
  }

  /// Cuts `bytes` in pieces as reads might.
  static func pieces(_ bytes: [UInt8], _ random: inout SeededGenerator) -> [ArraySlice<UInt8>] {
    var rest = bytes[...]
    var pieces: [ArraySlice<UInt8>] = []
    let most = [1, 9, 100, 5_000, 300_000].randomElement(using: &random)!
    while !rest.isEmpty {
      let count = min(rest.count, 1 + random.below(most))
      pieces.append(rest.prefix(count))
      rest = rest.dropFirst(count)
    }
    return pieces
  }
}
