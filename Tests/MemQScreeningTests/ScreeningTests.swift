// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQScreening
import Testing

@Suite struct FindingTests {
  @Test func `clean needs every engine, infected needs one, and nobody's word is no word`() {
    let virus = Finding.infected(signature: "X")
    let late = Finding.notScanned(.timedOut)
    #expect(Finding.combined([]) == .notScanned(.engineError))
    #expect(Finding.combined([.clean]) == .clean)
    #expect(Finding.combined([.clean, .clean]) == .clean)
    #expect(Finding.combined([.clean, late]) == late)
    #expect(Finding.combined([late, .clean]) == late)
    #expect(Finding.combined([late, .clean, virus]) == virus)
    #expect(Finding.combined([virus, late]) == virus)
    #expect(Finding.combined([late, .notScanned(.engineError)]) == late)
  }
}

@Suite struct ScanAdmissionTests {
  private func admission(running: Int = 2, waiting: Int = 3, scratch: Int64 = 100) -> ScanAdmission {
    ScanAdmission(.init(runningMax: running, waitingMax: waiting, scratchBytesMax: scratch))
  }

  private func effects(_ admission: inout ScanAdmission, _ event: ScanAdmission.Event)
    -> [ScanAdmission.Effect]
  {
    var effects: [ScanAdmission.Effect] = []
    admission.handle(event, into: &effects)
    return effects
  }

  @Test func `scans start in the order they came, as places become free`() {
    var desk = self.admission()
    #expect(self.effects(&desk, .arrived(1, scratchBytes: 0)) == [.start(1)])
    #expect(self.effects(&desk, .arrived(2, scratchBytes: 0)) == [.start(2)])
    #expect(self.effects(&desk, .arrived(3, scratchBytes: 0)) == [])
    #expect(self.effects(&desk, .arrived(4, scratchBytes: 0)) == [])
    #expect(self.effects(&desk, .finished(2)) == [.start(3)])
    #expect(self.effects(&desk, .abandoned(4)) == [])
    #expect(self.effects(&desk, .finished(1)) == [])
    #expect(desk.runningCount == 1)
    #expect(desk.waitingCount == 0)
  }

  @Test func `a large body at the head is not starved by small ones`() {
    var desk = self.admission(running: 3)
    #expect(self.effects(&desk, .arrived(1, scratchBytes: 60)) == [.start(1)])
    #expect(self.effects(&desk, .arrived(2, scratchBytes: 50)) == [])
    #expect(self.effects(&desk, .arrived(3, scratchBytes: 1)) == [])
    #expect(self.effects(&desk, .finished(1)) == [.start(2), .start(3)])
    #expect(desk.scratchBytes == 51)
  }

  @Test func `what can never fit and what overflows the queue is refused with limit and actual`() {
    var desk = self.admission(running: 1, waiting: 1)
    guard case .refuse(1, let never)? = self.effects(&desk, .arrived(1, scratchBytes: 101)).first
    else { return #expect(Bool(false), "not refused") }
    #expect(never.limit == 100 && never.actual == 101 && !never.isRetriable)
    #expect(self.effects(&desk, .arrived(2, scratchBytes: 0)) == [.start(2)])
    #expect(self.effects(&desk, .arrived(3, scratchBytes: 0)) == [])
    guard case .refuse(4, let full)? = self.effects(&desk, .arrived(4, scratchBytes: 0)).first
    else { return #expect(Bool(false), "not refused") }
    #expect(full.code == .resourceExhausted && full.isRetriable)
  }

  @Test(arguments: 0..<50) func `bounds hold whatever comes`(seed: UInt64) {
    var state = seed &* 0x9E37_79B9_7F4A_7C15 | 1
    func next(_ below: UInt64) -> UInt64 {
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return state % below
    }
    var desk = self.admission(running: 3, waiting: 5)
    var running: Set<UInt64> = []
    var arrived: UInt64 = 0
    for _ in 0..<500 {
      let event: ScanAdmission.Event
      switch next(3) {
      case 0:
        arrived += 1
        event = .arrived(arrived, scratchBytes: Int64(next(120)))
      case 1: event = .abandoned(next(arrived + 1))
      default: event = .finished(running.min() ?? 0)
      }
      for effect in self.effects(&desk, event) {
        if case .start(let id) = effect { #expect(running.insert(id).inserted) }
      }
      if case .finished(let id) = event { running.remove(id) }
      #expect(desk.runningCount == running.count && running.count <= 3)
      #expect(desk.waitingCount <= 5)
      #expect(desk.scratchBytes <= 100)
    }
  }
}
