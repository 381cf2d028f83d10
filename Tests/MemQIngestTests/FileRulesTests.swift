// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQObjectStore
import MemQScreening
import NIOCore
import Testing

@testable import MemQIngestService

@Suite struct PartScheduleTests {
  @Test func `parts grow in steps and 5 TiB fit`() {
    let mebibyte: Int64 = 1 << 20
    #expect(PartSchedule.end(ofPartAt: 0) == 16 * mebibyte)
    #expect(PartSchedule.end(ofPartAt: 16 * mebibyte - 1) == 16 * mebibyte)
    #expect(PartSchedule.end(ofPartAt: 16 * mebibyte) == 32 * mebibyte)
    #expect(PartSchedule.end(ofPartAt: 16_000 * mebibyte) == 16_064 * mebibyte)
    #expect(PartSchedule.end(ofPartAt: 144_000 * mebibyte) == 145_024 * mebibyte)
    #expect(PartSchedule.count(size: 0) == 1)
    #expect(PartSchedule.count(size: 16 * mebibyte) == 1)
    #expect(PartSchedule.count(size: 16 * mebibyte + 1) == 2)
    #expect(PartSchedule.count(size: Limits.fileBytesMax) <= 10_000)
  }

  @Test func `ends follow one another and count agrees`() {
    var offset: Int64 = 0
    var parts: Int64 = 0
    while offset < 200 << 30 {
      let end = PartSchedule.end(ofPartAt: offset)
      #expect(end > offset)
      #expect(PartSchedule.end(ofPartAt: end - 1) == end)
      parts += 1
      #expect(PartSchedule.count(size: end) == parts)
      offset = end
    }
  }
}

@Suite struct PutProgressTests {
  private func code(_ body: () throws -> Void) -> ErrorCode? {
    #expect(throws: MemQError.self, performing: body)?.code
  }

  @Test func `chunks follow without a gap up to the declared size`() throws {
    var put = PutProgress(declaredSize: 10, begin: 4)
    try put.chunk(at: 4, byteCount: 5)
    #expect(self.code { try put.finish() } == .fileIncomplete)
    #expect(self.code { try put.chunk(at: 4, byteCount: 1) } == .uploadOffsetMismatch)
    #expect(self.code { try put.chunk(at: 9, byteCount: 2) } == .fileTooLarge)
    #expect(self.code { try put.chunk(at: 9, byteCount: 0) } == .invalidArgument)
    try put.chunk(at: 9, byteCount: 1)
    try put.finish()
  }

  @Test func `without a declared size the general limits hold`() throws {
    var put = PutProgress(declaredSize: -1, begin: Limits.fileBytesMax - 3)
    #expect(
      self.code { try put.chunk(at: put.offset, byteCount: (1 << 20) + 1) } == .messageTooLarge)
    #expect(self.code { try put.chunk(at: put.offset, byteCount: 4) } == .fileTooLarge)
    try put.chunk(at: put.offset, byteCount: 3)
    try put.finish()
  }
}

@Suite struct FileNameTests {
  @Test(arguments: [
    "a", "include/linux/ab.h", "ü/日本 語.txt", "...", "a.", String(repeating: "x", count: 1024),
  ])
  func `good names pass`(name: String) throws { try FileRules.check(name: name) }

  @Test(arguments: [
    "", "/a", "a/", "a//b", ".", "a/../b", "./a", "a\0b", String(repeating: "x", count: 1025),
  ])
  func `bad names are refused`(name: String) {
    let error = #expect(throws: MemQError.self) { try FileRules.check(name: name) }
    #expect(error?.code == .fileNameInvalid)
  }
}

@Suite struct UploadPlanTests {
  private func settings(_ change: (inout TopicSettings) -> Void = { _ in }) -> TopicSettings {
    var settings = TopicSettings()
    settings.scanPolicy = .gate
    settings.scanBytesMax = 100
    change(&settings)
    return settings
  }

  @Test func `without a gate nobody scans`() {
    #expect(UploadPlan.next(.sealed, size: 5, settings: TopicSettings()) == .judge(.off))
  }

  @Test func `a gate scans what it can, and treats the rest as the topic says`() throws {
    #expect(UploadPlan.next(.sealed, size: 100, settings: self.settings()) == .scan)
    let refuse = UploadPlan.next(.sealed, size: 101, settings: self.settings())
    guard case .refuse(let error) = refuse else { return #expect(Bool(false)) }
    #expect(error.code == .fileTooLarge && error.limit == 100 && error.actual == 101)
    #expect(throws: MemQError.self) {
      try UploadPlan.checkDeclared(size: 101, settings: self.settings())
    }
    let pass = self.settings { $0.scanOversize = .passMarked }
    #expect(UploadPlan.next(.sealed, size: 101, settings: pass) == .judge(.tooLarge))
    try UploadPlan.checkDeclared(size: 101, settings: pass)
    let hold = self.settings { $0.scanOversize = .hold }
    guard case .hold = UploadPlan.next(.sealed, size: 101, settings: hold) else {
      return #expect(Bool(false))
    }
  }

  @Test func `verdicts lead where the policy says, and not scanned is never clean`() {
    #expect(UploadPlan.after(.clean, settings: self.settings()) == .judge(.scanned))
    #expect(
      UploadPlan.after(
        .infected(signature: "x"), settings: self.settings { $0.scanNotScanned = .passMarked })
        == .quarantine(.scanned))
    let unread = ScanOutcome.notScanned("timed out")
    guard case .hold = UploadPlan.after(unread, settings: self.settings()) else {
      return #expect(Bool(false))
    }
    #expect(
      UploadPlan.after(unread, settings: self.settings { $0.scanNotScanned = .quarantine })
        == .quarantine(.scanned))
    #expect(
      UploadPlan.after(unread, settings: self.settings { $0.scanNotScanned = .passMarked })
        == .judge(.scanned))
  }

  @Test func `every row of the table of screening decides for files`() {
    let words = NotScannedReason.allCases.map(\.rawValue) + ["engine error: away", "no verdict"]
    for text in words {
      let outcome = ScanOutcome.notScanned(text)
      for oversize in [TopicSettings.OversizePolicy.refuse, .hold, .passMarked] {
        let settings = self.settings { $0.scanOversize = oversize }
        let step = UploadPlan.after(outcome, settings: settings)
        switch (ScreeningPolicy(settings).decide(outcome.said), step) {
        case (.publish, .judge(.scanned)), (.passMarked, .judge(.scanned)), (.hold, .hold),
          (.refuse, .refuse), (.quarantine, .quarantine(.scanned)):
          break
        case (let decision, _): Issue.record("\(text): \(decision) became \(step)")
        }
      }
    }
    let large = UploadPlan.after(.notScanned("too large"), settings: self.settings())
    guard case .refuse(let error) = large else { return #expect(Bool(false)) }
    #expect(error.code == .fileTooLarge)
  }

  @Test func `a put has one driver, and a dead or silent one is replaced`() {
    func may(
      _ driver: Int32?, here: Bool = false, idle: Duration = .zero, live: Bool = true
    ) -> Bool {
      UploadOwnership.mayTake(
        driver: driver.map { NodeID($0) }, me: NodeID(1), isDrivenHere: here, idle: idle,
        isLive: { _ in live })
    }
    #expect(may(nil))
    #expect(may(1))
    #expect(!may(1, here: true))
    #expect(!may(2))
    #expect(may(2, live: false))
    #expect(may(2, idle: .seconds(121)))
  }
}

@Suite struct ScanPartsTests {
  private func add(_ bytes: [UInt8], to parts: inout ScanParts) {
    bytes.withUnsafeBytes { parts.add($0) }
  }

  @Test func `parts keep their borders, fill few calls, and small ones are not sent twice`() {
    var parts = ScanParts()
    for index in 0..<5 {
      self.add([1, 2, 3], to: &parts)
      self.add([UInt8](repeating: UInt8(index), count: 3 << 20), to: &parts)
    }
    let large = [UInt8](repeating: 9, count: ScanParts.bytesMax + 1)
    self.add(large, to: &parts)
    self.add([4], to: &parts)
    let calls = parts.finish()
    let mega: Int64 = 3 << 20
    let wanted: [[Int64]] = [
      [3, mega, mega], [mega, mega], [mega], [Int64(ScanParts.bytesMax) + 1], [1],
    ]
    #expect(calls.map(\.sizes) == wanted)
    for call in calls {
      let sum = call.sizes.reduce(0, +)
      #expect(sum == Int64(call.content.readableBytes))
    }
    var none = ScanParts()
    #expect(none.finish().isEmpty)
  }
}

@Suite struct IngestConfigurationTests {
  @Test func `a value out of range is named by its key`() {
    var configuration = IngestNode.Configuration(objects: .init(folder: "/nowhere"))
    configuration.scansMax = 0
    let error = #expect(throws: MemQError.self) { try configuration.validate() }
    #expect(error?.code == .configurationInvalid && error?.subject == "scan.requests.max")
  }
}
