// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import MemQClient
import MemQModel
import MemQSystem
import MemQTelemetry

struct DoctorCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "doctor",
    abstract: "Look for what keeps MemQ from working here. Exit status 0: nothing was found.")

  @Option(help: "Also look at the disk of this folder.")
  var data: String?
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  fileprivate struct Finding {
    let check: String
    let isFine: Bool
    let text: String
  }

  func run() async throws {
    var findings = [
      Finding(
        check: "version", isFine: true,
        text: "memq \(BuildInfo.version) (\(BuildInfo.configuration))")
    ]
    findings += await self.serverFindings()
    findings.append(Self.clock())
    if let data = self.data {
      findings.append(Self.room(data))
      findings.append(await Self.sync(data))
    }
    var table = TextTable("CHECK", "", "")
    for finding in findings {
      table.add(finding.check, finding.isFine ? "ok" : "PROBLEM", finding.text)
    }
    try await self.output.show(
      .array(
        findings.map {
          ["check": .string($0.check), "ok": .bool($0.isFine), "text": .string($0.text)]
        }),
      table.text)
    if findings.contains(where: { !$0.isFine }) { throw ExitCode(1) }
  }

  private func serverFindings() async -> [Finding] {
    let clock = SystemClock()
    let start = clock.monotonic
    do {
      let cluster = try await self.server.withClient { client in
        try await client.connect()
        return try await client.admin.describeCluster()
      }
      let took = (clock.monotonic - start).milliseconds
      return [
        Finding(
          check: "server", isFine: true,
          text:
            "\(self.server.addresses.joined(separator: ",")) answers, cluster \(cluster.id), \(took) ms"
        ),
        Finding(
          check: "cluster", isFine: cluster.isReady,
          text: cluster.isReady ? "ready" : cluster.problems.joined(separator: "; ")),
      ]
    } catch {
      return [Finding(check: "server", isFine: false, text: "\(error)")]
    }
  }

  /// Record times and retention rest on the wall clock.
  private static func clock() -> Finding {
    let now = TimeText.iso(SystemClock().wall)
    let isSynchronized = access("/run/systemd/timesync/synchronized", F_OK) == 0
    // Containers and laptops often lack a time service: a note, not a problem, unless the year is absurd.
    let isSane = SystemClock().wall.milliseconds > 1_700_000_000_000
    return Finding(
      check: "clock", isFine: isSane,
      text: now + (isSynchronized ? ", synchronized" : ", no word of a time service"))
  }

  private static func room(_ path: String) -> Finding {
    var status = statvfs()
    guard statvfs(path, &status) == 0 else {
      return Finding(
        check: "disk", isFine: false, text: "\(path): \(String(cString: strerror(errno)))")
    }
    let free = Int64(status.f_bavail) * Int64(status.f_frsize)
    let total = Int64(status.f_blocks) * Int64(status.f_frsize)
    let percent = total == 0 ? 0 : free * 100 / total
    return Finding(
      check: "disk", isFine: percent >= 10,
      text: "\(path): \(byteText(free)) free of \(byteText(total)) (\(percent) %)")
  }

  /// Times 20 small synced writes: what an acknowledgement waits for.
  private static func sync(_ folder: String) async -> Finding {
    let threads = DiskThreads(name: "memq-doctor", count: 1)
    let path = "\(folder)/.memq-doctor.\(getpid())"
    do {
      let longest = try await threads.run { () throws(MemQError) -> Duration in
        do throws(FileError) {
          return try Self.timeSyncs(path)
        } catch {
          throw error.memqError(.invalidArgument)
        }
      }
      return Finding(
        check: "sync", isFine: longest < .milliseconds(200),
        text: "the longest of 20 synced writes took \(longest.nanoseconds / 1_000) µs")
    } catch {
      return Finding(check: "sync", isFine: false, text: "\(error)")
    }
  }

  private static func timeSyncs(_ path: String) throws(FileError) -> Duration {
    let file = try File(path, .createNew)
    defer { unlink(path) }
    let clock = SystemClock()
    let block = [UInt8](repeating: 0x4D, count: 4_096)
    var longest = Duration.zero
    for index in 0..<20 {
      let start = clock.monotonic
      let result = block.withUnsafeBytes { bytes in
        Result { () throws(FileError) in try file.write(bytes, at: Int64(index * 4_096)) }
      }
      try result.get()
      try file.syncData()
      longest = max(longest, clock.monotonic - start)
    }
    return longest
  }
}
