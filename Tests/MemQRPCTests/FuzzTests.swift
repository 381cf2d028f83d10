// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQFuzzing
import Testing

/// A short lane of the fuzzers; `scripts/fuzz` runs more of them, with sanitizers.
@Suite(.timeLimit(.minutes(10))) struct FuzzTests {
  @Test(arguments: FuzzTarget.allCases)
  func `mutated bytes of these seeds break nothing`(target: FuzzTarget) throws {
    for seed in UInt64(1)...100 {
      do {
        try target.run(seed: seed)
      } catch {
        Issue.record("memq-fuzz replay --target \(target.rawValue) \(seed): \(error)")
      }
    }
  }

  @Test(arguments: PlantedFault.allCases)
  func `a volume's recovery or reads gone wrong are noticed within a hundred seeds`(
    fault: PlantedFault
  ) {
    let noticed = (UInt64(1)...100).first { seed in
      do {
        try FuzzTarget.runVolume(seed: seed, with: fault)
        return false
      } catch {
        return error is FuzzFailure
      }
    }
    #expect(noticed != nil)
  }

  @Test func `recorded traffic holds what is worth mutating`() throws {
    var types: Set<UInt8> = []
    var answers = 0
    for seed in UInt64(1)...20 {
      let sample = try FuzzTarget.recordedFrameTypes(seed: seed)
      types.formUnion(sample.fromClient)
      answers += sample.fromServer.filter { $0 == 0 }.count
    }
    // DATA, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE; and echoes.
    #expect(types.isSuperset(of: [0, 1, 3, 4, 8]))
    #expect(answers > 20)
  }
}
