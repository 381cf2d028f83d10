// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Testing

@Suite struct SortedMapTests {
  @Test(arguments: 0..<20) func `it behaves like a dictionary that iterates in order`(seed: UInt64)
  {
    var state = seed &* 0x9E37_79B9_7F4A_7C15 | 1
    func next() -> UInt64 {
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return state
    }
    var map: SortedMap<Int, Int> = [:]
    var model: [Int: Int] = [:]
    for step in 0..<500 {
      let key = Int(next() % 60)
      switch next() % 4 {
      case 0:
        #expect(map.removeValue(forKey: key) == model.removeValue(forKey: key))
      case 1:
        map[key, default: 0] += step
        model[key, default: 0] += step
      default:
        map[key] = step
        model[key] = step
      }
      #expect(map[key] == model[key])
    }
    #expect(map.map { $0.0 } == model.keys.sorted())
    #expect(map.map { $0.1 } == model.keys.sorted().map { model[$0]! })
    #expect(
      map.entries(in: 10..<30).map { $0.0 } == model.keys.filter { (10..<30).contains($0) }.sorted()
    )
  }
}

@Suite struct TopicSettingsTests {
  private func settings(
    _ given: [(String, String)], replicationFactor: Int = 1
  ) throws(MemQError) -> TopicSettings {
    try TopicSettings(given.map { (name: $0.0, value: $0.1) }, replicationFactor: replicationFactor)
  }

  @Test func `what was not given has its default`() throws {
    #expect(try self.settings([]) == TopicSettings())
    #expect(try self.settings([], replicationFactor: 3).minInSyncReplicas == 2)
  }

  @Test func `effective settings read back give the same`() throws {
    let some = try self.settings([
      ("retention.ms", "-1"), ("local.retention.bytes", "0"), ("scan.policy", "gate"),
      ("scan.not.scanned", "pass-marked"), ("max.message.bytes", "2048"),
    ])
    #expect(try TopicSettings(some.effective, replicationFactor: 1) == some)
  }

  @Test(arguments: [
    ("no.such.setting", "1", ErrorCode.topicSettingUnknown),
    ("retention.ms", "-2", .topicSettingInvalid),
    ("retention.ms", "1d", .topicSettingInvalid),
    ("max.message.bytes", "9000000", .topicSettingInvalid),
    ("scan.policy", "sometimes", .topicSettingInvalid),
    ("scan.policy", "audit", .feature),
    ("cleanup.policy", "compact", .feature),
    ("storage.class", "object", .feature),
    ("min.insync.replicas", "2", .topicCombinationRefused),
  ])
  func `a bad setting is refused by name`(name: String, value: String, code: ErrorCode) {
    let error = #expect(throws: MemQError.self) { try self.settings([(name, value)]) }
    #expect(error?.code == code)
    #expect(error?.subject == name)
  }

  @Test func `without the object tier the SSD's copy may not be cut short`() {
    let error = #expect(throws: MemQError.self) {
      try self.settings([("object.tier", "false"), ("local.retention.bytes", "0")])
    }
    #expect(error?.code == .topicCombinationRefused)
  }
}

@Suite struct ErrorTests {
  @Test func `an error says what, where, the limit, the actual value and whether to retry`() {
    let error = MemQError(
      .recordBatchTooLarge, "the batch is too large", subject: "t/0", limit: 10, actual: 20)
    #expect(
      error.description
        == "t/0: the batch is too large (limit 10, actual 20) [RECORD_BATCH_TOO_LARGE]")
    #expect(MemQError(.notLeader, "x").description == "x [NOT_LEADER, may be retried]")
  }

  @Test func `numbers of errors are unique`() {
    #expect(Set(ErrorCode.allCases.map(\.rawValue)).count == ErrorCode.allCases.count)
  }
}
