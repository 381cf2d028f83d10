// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import Testing

@Suite struct LivenessTests {
  private func at(_ milliseconds: Int64) -> MonotonicInstant {
    MonotonicInstant(nanoseconds: milliseconds * 1_000_000)
  }

  @Test func `silence beyond the timeout is noticed, and forgotten when heard again`() {
    var liveness = Liveness<Int>(at: at(0), tickGapMax: .seconds(1))
    liveness.heard(1, at: at(0), timeout: .milliseconds(1_500))
    liveness.heard(2, at: at(0), timeout: .milliseconds(1_500))
    #expect(liveness.tick(at(800)) == [])
    liveness.heard(2, at: at(800), timeout: .milliseconds(1_500))
    #expect(liveness.tick(at(1_500)) == [])
    #expect(liveness.tick(at(1_600)) == [1])
    liveness.forget(1)
    #expect(liveness.tick(at(2_400)) == [2])
    liveness.heard(2, at: at(2_400), timeout: .milliseconds(1_500))
    #expect(liveness.tick(at(2_500)) == [])
  }

  @Test func `time the controller slept counts for nobody`() {
    var liveness = Liveness<Int>(at: at(0), tickGapMax: .milliseconds(500))
    liveness.heard(1, at: at(0), timeout: .milliseconds(1_500))
    #expect(liveness.tick(at(400)) == [])
    #expect(liveness.tick(at(60_000)) == [], "a minute of sleep")
    #expect(liveness.tick(at(60_400)) == [])
    #expect(liveness.tick(at(60_800)) == [])
    #expect(liveness.tick(at(61_200)) == [1], "400 ms before, 1,200 ms after")
  }

  @Test func `an expected one gets its full time, one that was heard keeps its own`() {
    var liveness = Liveness<Int>(at: at(0), tickGapMax: .seconds(100))
    liveness.heard(1, at: at(0), timeout: .seconds(1))
    liveness.expect(1, at: at(0), timeout: .seconds(9))
    liveness.expect(2, at: at(0), timeout: .seconds(9))
    #expect(liveness.tick(at(1_100)) == [1])
    #expect(liveness.tick(at(9_100)) == [1, 2])
    #expect(liveness.isSilent(3, at: at(0)), "nobody knows it")
  }

  @Test func `a lease that was granted a moment ago has not run out`() {
    let start = MonotonicInstant(nanoseconds: 0)
    var leases = Liveness<Int32>(at: start, tickGapMax: .seconds(5))
    #expect(!leases.hasRunOut(1, at: start + .seconds(60)))
    leases.heard(1, at: start, timeout: .seconds(10))
    #expect(!leases.hasRunOut(1, at: start + .seconds(10)))
    #expect(leases.hasRunOut(1, at: start + .seconds(11)))
  }
}
