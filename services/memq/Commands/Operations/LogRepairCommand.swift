// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQLog
import MemQModel
import MemQStorage
import MemQSystem

struct LogVerify: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "verify",
    abstract: "Read all of a stopped server's volumes and check every byte that counts.",
    discussion: """
      Changes nothing. Each damage is named with its segment file, byte position, and the partition and offsets that it costs.
      Exit status: 0 all is whole, 4 something is damaged and no record is lost by it, 5 records are lost or a volume can't be opened.
      """)

  @OptionGroup var options: VolumeOptions

  func run() async throws {
    let names = try TopicNames(self.options.data)
    var reports: [VolumeReport] = []
    for path in try LogDump.volumes(self.options.data) {
      reports.append(try await VolumeReport.verify(path))
    }
    try await self.options.output.show(
      .array(reports.map { $0.json(names) }),
      reports.map { $0.text(names) }.joined(separator: "\n"))
    try VolumeReport.exit(reports)
  }
}

struct LogRepair: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "repair",
    abstract: "Mend what is damaged on a stopped server's volumes.",
    discussion: """
      Without --accept-loss it makes anew what costs no record (volume file, footers, trailers) and says what the rest would cost. With it,
      each damaged partition is cut where it stops being whole: what stands behind that is lost on this volume. Other partitions stay as
      they are. Where another replica or the object tier holds the records, let the server fetch them from there instead.
      Exit status as of verify, of what is left.
      """)

  @OptionGroup var options: VolumeOptions
  @Flag(help: "Cut damaged partitions where they stop being whole.")
  var acceptLoss = false
  @Flag(help: "Change nothing, say what would be done.")
  var dryRun = false

  func validate() throws {
    if self.acceptLoss && self.dryRun {
      throw ValidationError("--accept-loss and --dry-run exclude each other")
    }
  }

  func run() async throws {
    let names = try TopicNames(self.options.data)
    var reports: [VolumeReport] = []
    for path in try LogDump.volumes(self.options.data) {
      reports.append(
        try await VolumeReport.repair(path, acceptsLoss: self.acceptLoss, isDry: self.dryRun))
    }
    try await self.options.output.show(
      .array(reports.map { $0.json(names) }),
      reports.map { $0.text(names) }.joined(separator: "\n"))
    try VolumeReport.exit(reports)
  }
}

struct VolumeOptions: ParsableArguments {
  @Option(help: "The data folder, or a volume's folder.")
  var data: String
  @OptionGroup var output: OutputOptions
}

/// What one volume's check, or repair, found and did.
struct VolumeReport: Sendable {
  let path: String
  let header: VolumeHeader
  var isVolumeFileDamaged: Bool
  /// As it is now.
  var found: VolumeVerification
  /// A repair's work; nil: it was only looked at.
  var done: [String]?

  static let damagedStatus: Int32 = 4
  static let lossStatus: Int32 = 5

  var status: Int32 {
    if self.found.losesRecords { return Self.lossStatus }
    return self.found.isWhole && !self.isVolumeFileDamaged ? 0 : Self.damagedStatus
  }

  static func exit(_ reports: [VolumeReport]) throws {
    let status = reports.map(\.status).max() ?? 0
    if status != 0 { throw ExitCode(status) }
  }

  // MARK: - Doing

  private static func check(_ path: String) throws(MemQError) -> VolumeCheck {
    do throws(MemQError) {
      return try VolumeCheck(path: path)
    } catch {
      guard error.code == .dataFolderInUse else { throw error }
      var error = error
      error.message += "; stop the server first"
      throw error
    }
  }

  private static func look(_ check: VolumeCheck) throws(MemQError) -> VolumeVerification {
    let bar = Bar()
    defer { bar.bar?.finish() }
    return try check.verify { done, total in
      if bar.bar == nil { bar.bar = ProgressBar(check.path, total: total) }
      bar.bar?.show(done)
    }
  }

  /// Made once the size is known; only one thread has it.
  private final class Bar { var bar: ProgressBar? }

  static func verify(_ path: String) async throws -> VolumeReport {
    try await Self.blocking { () throws(MemQError) in
      let check = try Self.check(path)
      defer { check.close() }
      return VolumeReport(
        path: path, header: check.header, isVolumeFileDamaged: check.isVolumeFileDamaged,
        found: try Self.look(check))
    }
  }

  static func repair(
    _ path: String, acceptsLoss: Bool, isDry: Bool
  ) async throws -> VolumeReport {
    let (check, before) = try await Self.blocking { () throws(MemQError) in
      let check = try Self.check(path)
      return (check, try Self.look(check))
    }
    defer { check.close() }
    var report = VolumeReport(
      path: path, header: check.header, isVolumeFileDamaged: check.isVolumeFileDamaged,
      found: before)
    guard !isDry, report.status != 0 else { return report }
    var done = try await Self.blocking { () throws(MemQError) in try check.rebuild(before) }
    if acceptsLoss, before.losesRecords { done += try await check.cut(before) }
    check.close()
    report = try await Self.verify(path)
    report.done = done
    return report
  }

  private static func blocking<R: Sendable>(
    _ body: @escaping @Sendable () throws(MemQError) -> R
  ) async throws(MemQError) -> R {
    let threads = DiskThreads(name: "memq-check", count: 1)
    return try await threads.run(body)
  }

  // MARK: - Saying

  private var state: String {
    if self.found.refusal != nil { return "can't be opened" }
    if self.found.losesRecords { return "records are lost" }
    return self.status == 0 ? "whole" : "damaged, no record is lost"
  }

  private func remedy(_ damage: VolumeVerification.Damage) -> String {
    if !damage.lost.isEmpty { return "memq log repair --accept-loss cuts the partitions there" }
    if damage.kind == .frames, self.found.unnamed.contains(.partitions) {
      return "what stood there is not known: memq log repair --accept-loss goes on without it"
    }
    switch damage.kind {
    case .footer, .trailer:
      let segment = self.found.segments.first { $0.sequence == damage.segment }
      return segment?.canBeRebuilt ?? true
        ? "memq log repair makes it anew" : "nothing needs it: the segment is read through"
    case .segmentHeader, .groupHeader, .padding, .order, .frames, .payload:
      return "nothing the log needs: goes with the segment"
    case .checkpoint: return "repair this replica from another one"
    }
  }

  func json(_ names: TopicNames) -> JSON {
    let identity = self.header.identity
    return [
      "path": .string(self.path), "volume_id": .text(identity.volume),
      "cluster_id": .text(identity.cluster), "state": .string(self.state),
      "volume_file_ok": .bool(!self.isVolumeFileDamaged),
      "refusal": .optional(self.found.refusal) { .text($0) },
      "partitions_may_be_missing": .bool(self.found.unnamed.contains(.partitions)),
      "segment_bytes": .number(identity.segmentBytes), "open_count": .number(identity.openCount),
      "segments": .number(self.found.segments.count), "bytes_read": .number(self.found.bytesRead),
      "batches": .number(self.found.segments.reduce(0) { $0 + $1.batches }),
      "end": Self.json(self.found.end), "durable": Self.json(self.found.durable),
      "damages": .array(
        self.found.damages.map { damage in
          [
            "kind": .string(damage.kind.rawValue), "file": .string(Self.file(damage.slot)),
            "segment": .number(damage.segment.rawValue),
            "position": .number(damage.positions.lowerBound),
            "bytes": .number(damage.positions.count), "what": .string(damage.what),
            "lost": .array(
              damage.lost.map { lost in
                [
                  "partition": .string(names.text(lost.partition)),
                  "base_offset": .number(lost.offsets.lowerBound.rawValue),
                  "end_offset": .number(lost.offsets.upperBound.rawValue),
                ]
              }), "remedy": .string(self.remedy(damage)),
          ]
        }),
      "partitions": .array(
        self.found.partitions.map { partition in
          [
            "partition": .string(names.text(partition.partition)),
            "log_start": .number(partition.logStart.rawValue),
            "local_start": .number(partition.localStart.rawValue),
            "end": .number(partition.end.rawValue),
            "uploaded_offset": .number(partition.uploadedOffset.rawValue),
            "damaged_from": .optional(partition.damagedFrom) { .number($0.rawValue) },
            "problem": .optional(partition.problem) { .text($0) },
          ]
        }),
      "done": .optional(self.done) { .strings($0) },
    ]
  }

  private static func json(_ place: LogPlace) -> JSON {
    ["segment": .number(place.segment.rawValue), "position": .number(place.position)]
  }

  private static func file(_ slot: SegmentSlot) -> String {
    let digits = String(slot.rawValue)
    return "segment-" + String(repeating: "0", count: max(0, 8 - digits.count)) + digits
  }

  /// More would scroll what matters away; JSON has all.
  private static let linesMax = 100

  func text(_ names: TopicNames) -> String {
    var text = "\(self.path): \(self.state)\n"
    text += "  volume \(self.header.identity.volume) of cluster \(self.header.identity.cluster)\n"
    let batches = self.found.segments.reduce(0) { $0 + $1.batches }
    text +=
      "  \(self.found.segments.count) segments, \(byteText(self.found.bytesRead)) read, \(batches) batches of \(self.found.partitions.count) partitions; "
      + "the log ends at \(self.found.end)\n"
    if self.isVolumeFileDamaged {
      text += "  DAMAGED file volume: memq log repair writes it anew from the segments\n"
    }
    if let refusal = self.found.refusal {
      text += "  REFUSED \(refusal)\n"
      text +=
        "    other replicas of its partitions are the repair: move this folder away and start the server; where there are none,\n"
        + "    memq log repair --accept-loss goes on without a missing segment, and says what that cost\n"
    }
    if self.found.unnamed.contains(.partitions) {
      text +=
        "  LOST frames at the log's end: partitions that were opened there may be gone with all their records, and nothing here names them;\n"
        + "    other replicas are the repair, and the server knows which; where there are none, memq log repair --accept-loss has them begin anew\n"
    }
    for damage in self.found.damages.prefix(Self.linesMax) {
      text +=
        "  DAMAGED \(Self.file(damage.slot)) bytes \(damage.positions.lowerBound)..<\(damage.positions.upperBound) (segment \(damage.segment)): \(damage.what)\n"
      for lost in damage.lost.prefix(Self.linesMax) {
        text +=
          "    costs \(names.text(lost.partition)) offsets \(lost.offsets.lowerBound)..<\(lost.offsets.upperBound)\n"
      }
      text += "    \(self.remedy(damage))\n"
    }
    if self.found.damages.count > Self.linesMax {
      text += "  … and \(self.found.damages.count - Self.linesMax) more (-o json lists them)\n"
    }
    let damaged = self.found.partitions.filter { $0.damagedFrom != nil }
    for partition in damaged.prefix(Self.linesMax) {
      text += "  \(self.line(partition, names.text(partition.partition)))\n"
    }
    if damaged.count > Self.linesMax {
      text += "  … and \(damaged.count - Self.linesMax) more partitions\n"
    }
    for line in self.done ?? [] { text += "  done: \(line)\n" }
    return text
  }

  private func line(_ partition: VolumeVerification.Partition, _ name: String) -> String {
    let from = partition.damagedFrom ?? partition.end
    guard from < partition.end else {
      return "\(name): \(partition.problem?.message ?? "damaged at its end \(partition.end)")"
    }
    let behind = partition.end - from
    let uploaded = max(0, min(partition.uploadedOffset, partition.end) - from)
    let kept = uploaded > 0 ? ", of which the object tier has \(uploaded)" : ""
    return
      "\(name): whole below offset \(from); --accept-loss would cut the \(behind) records behind it\(kept)"
  }
}
