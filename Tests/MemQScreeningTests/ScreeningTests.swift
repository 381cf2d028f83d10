// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQScreening
import Testing

@Suite struct ScreeningPolicyTests {
  typealias Decision = ScreeningPolicy.Decision
  typealias Outcome = ScreeningVerdict.Outcome

  static let outcomes: [Outcome] =
    [.clean, .infected(signature: "X")] + NotScannedReason.allCases.map { .notScanned($0) }

  @Test func `off publishes whatever anybody says`() {
    for outcome in Self.outcomes {
      for notScanned in TopicSettings.NotScannedPolicy.allCases {
        for oversize in TopicSettings.OversizePolicy.allCases {
          let policy = ScreeningPolicy(scan: .off, notScanned: notScanned, oversize: oversize)
          #expect(policy.decide(outcome) == .publish)
          #expect(policy.decide(declaredByteCount: .max) == .publish)
        }
      }
    }
  }

  @Test func `gate publishes what is clean and keeps what is infected, whatever else is set`() {
    for notScanned in TopicSettings.NotScannedPolicy.allCases {
      for oversize in TopicSettings.OversizePolicy.allCases {
        let policy = ScreeningPolicy(scan: .gate, notScanned: notScanned, oversize: oversize)
        #expect(policy.decide(.clean) == .publish)
        #expect(policy.decide(.infected(signature: "X")) == .quarantine)
      }
    }
  }

  @Test(arguments: [
    (TopicSettings.OversizePolicy.refuse, Decision.refuse), (.hold, .hold),
    (.passMarked, .passMarked),
  ])
  func `what is too large goes by scan.oversize alone`(
    oversize: TopicSettings.OversizePolicy, decision: Decision
  ) {
    for notScanned in TopicSettings.NotScannedPolicy.allCases {
      let policy = ScreeningPolicy(
        scan: .gate, notScanned: notScanned, oversize: oversize, bytesMax: 100)
      #expect(policy.decide(.notScanned(.tooLarge)) == decision)
      #expect(policy.decide(declaredByteCount: 101) == decision)
      #expect(policy.decide(declaredByteCount: 100) == nil)
    }
  }

  @Test(arguments: [
    (TopicSettings.NotScannedPolicy.hold, Decision.hold), (.passMarked, .passMarked),
    (.quarantine, .quarantine),
  ])
  func `what could not be judged goes by scan.not.scanned alone`(
    notScanned: TopicSettings.NotScannedPolicy, decision: Decision
  ) {
    for reason in NotScannedReason.allCases where reason != .tooLarge {
      for oversize in TopicSettings.OversizePolicy.allCases {
        let policy = ScreeningPolicy(scan: .gate, notScanned: notScanned, oversize: oversize)
        #expect(policy.decide(.notScanned(reason)) == decision)
      }
    }
  }

  @Test func `the defaults of a topic are the table's`() throws {
    let settings = try TopicSettings([("scan.policy", "gate")], replicationFactor: 1)
    let policy = ScreeningPolicy(settings)
    #expect(policy.decide(.notScanned(.engineError)) == .hold)
    #expect(policy.decide(.notScanned(.tooLarge)) == .refuse)
    #expect(policy.bytesMax == Int64(Int32.max))
  }
}

@Suite struct ScanAdmissionTests {
  private func admission(
    running: Int = 2, waiting: Int = 3, scratch: Int64 = 100
  ) -> ScanAdmission {
    ScanAdmission(
      configuration: .init(runningMax: running, waitingMax: waiting, scratchBytesMax: scratch))
  }

  private func code(_ answer: ScanAdmission.Answer) -> ErrorCode? {
    guard case .refuse(let error) = answer else { return nil }
    #expect(error.isRetriable && error.limit != nil && error.actual != nil)
    return error.code
  }

  @Test func `scans start in the order they came, as places become free`() {
    var desk = self.admission()
    #expect(desk.request(1, scratchBytes: 0) == .start)
    #expect(desk.request(2, scratchBytes: 0) == .start)
    #expect(desk.request(3, scratchBytes: 0) == .wait)
    #expect(desk.request(4, scratchBytes: 0) == .wait)
    #expect(desk.isWaiting(3) && !desk.isWaiting(1))
    #expect(desk.end(2) == [3])
    #expect(desk.end(4) == [])
    #expect(desk.end(1) == [])
    #expect(desk.runningCount == 1 && desk.waitingCount == 0)
  }

  @Test func `a full scratch disk refuses now and takes later; what never fits is too large`() {
    var desk = self.admission(running: 3)
    #expect(desk.request(1, scratchBytes: 101) == .tooLarge)
    #expect(desk.request(2, scratchBytes: 60) == .start)
    #expect(self.code(desk.request(3, scratchBytes: 41)) == .resourceExhausted)
    #expect(desk.request(4, scratchBytes: 40) == .start)
    #expect(desk.end(2) == [])
    #expect(desk.request(5, scratchBytes: 60) == .start)
    #expect(desk.scratchBytes == 100)
  }

  @Test func `memory of scans that run or wait is bounded, and given back`() {
    var desk = ScanAdmission(
      configuration: .init(runningMax: 1, waitingMax: 100, memoryBytesMax: 50))
    #expect(desk.request(1, memoryBytes: 51) == .tooLarge)
    #expect(desk.request(2, memoryBytes: 20) == .start)
    #expect(desk.request(3, memoryBytes: 20) == .wait)
    #expect(self.code(desk.request(4, memoryBytes: 11)) == .resourceExhausted)
    #expect(desk.request(5, memoryBytes: 10) == .wait)
    #expect(desk.end(3) == [])
    #expect(desk.end(2) == [5])
    #expect(desk.memoryBytes == 10)
    #expect(desk.end(5) == [])
    #expect(desk.memoryBytes == 0)
  }

  @Test func `a full queue refuses, to be tried again`() {
    var desk = self.admission(running: 1, waiting: 1)
    #expect(desk.request(1, scratchBytes: 0) == .start)
    #expect(desk.request(2, scratchBytes: 0) == .wait)
    #expect(self.code(desk.request(3, scratchBytes: 0)) == .resourceExhausted)
  }

  @Test(arguments: 0..<50) func `bounds hold whatever comes, and nobody starts twice`(seed: UInt64)
  {
    var state = seed &* 0x9E37_79B9_7F4A_7C15 | 1
    func next(_ below: UInt64) -> UInt64 {
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return state % below
    }
    var desk = self.admission(running: 3, waiting: 5)
    var running: Set<UInt64> = []
    var lastID: UInt64 = 0
    for _ in 0..<500 {
      if next(2) == 0 {
        lastID += 1
        if desk.request(lastID, scratchBytes: Int64(next(120))) == .start { running.insert(lastID) }
      } else {
        let id = next(2) == 0 ? running.min() ?? 0 : next(lastID + 1)
        running.remove(id)
        for started in desk.end(id) { #expect(running.insert(started).inserted) }
      }
      #expect(desk.runningCount == running.count && running.count <= 3)
      #expect(desk.waitingCount <= 5 && (0...100).contains(desk.scratchBytes))
      #expect(running.count == 3 || desk.waitingCount == 0)
    }
  }
}
