// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import MemQLog
import MemQMetadata
import MemQModel
import MemQStorage
import MemQStore
import MemQSystem

struct LogCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "log", abstract: "Look into the logs on this machine's SSDs, and mend them.",
    subcommands: [LogDump.self, LogVerify.self, LogRepair.self])
}

struct LogDump: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "dump",
    abstract: "Print the frames of a data folder's volumes, in the log's order.",
    discussion: """
      Reads only. The server must be stopped, or --live given: then the log is read as it stands while it grows. A topic is named by its name, as
      the folder's own metadata knows it, or by its id.
      """)

  @Option(help: "The data folder, or a volume's folder.")
  var data: String
  @Flag(help: "Read along with a running server.")
  var live = false
  @Option(help: ArgumentHelp("Only this partition.", valueName: "topic/number"))
  var partition: String?
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let threads = DiskThreads(name: "memq-dump", count: 1)
    let isOpen = try await threads.run { () throws(MemQError) in try self.dump() }
    if !isOpen { throw OutputClosed() }
  }

  /// - Returns: false when nobody reads the output any more.
  private func dump() throws(MemQError) -> Bool {
    let names = try TopicNames(self.data)
    let wanted = try self.partition.map { text throws(MemQError) in try names.partition(text) }
    var printer = FramePrinter(names, isJSON: self.output.isJSON)
    for volume in try Self.volumes(self.data) {
      let dump: VolumeDump
      do throws(MemQError) {
        dump = try VolumeDump(path: volume, requireStopped: !self.live)
      } catch {
        guard error.code == .dataFolderInUse else { throw error }
        var error = error
        error.message += "; stop the server, or read along with --live"
        throw error
      }
      printer.begin(volume)
      try dump.forEachFrame(partition: wanted) { frame in printer.print(frame) }
      if printer.isClosed { return false }
    }
    return printer.finish()
  }

  /// The volumes of a data folder, or the folder itself when it is one.
  static func volumes(_ data: String) throws(MemQError) -> [String] {
    func isVolume(_ path: String) -> Bool {
      let identity = path + "/volume"
      return Files.exists(identity) && !Files.isFolder(identity)
        || Files.exists(path + "/segment-00000000")
    }
    if isVolume(data) { return [data] }
    guard let folder = opendir(data) else {
      throw FileError(.list, path: data, number: errno).memqError(.invalidArgument)
    }
    defer { closedir(folder) }
    var names: [String] = []
    while let entry = readdir(folder) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if isVolume("\(data)/\(name)") { names.append(name) }
    }
    guard !names.isEmpty else {
      throw MemQError(.invalidArgument, "holds no volume", subject: data)
    }
    return names.sorted().map { "\(data)/\($0)" }
  }
}

/// Names of topics by id, as the data folder's own metadata knows them.
struct TopicNames {
  private var names: [TopicID: String] = [:]

  init(_ data: String) throws(MemQError) {
    for folder in ["\(data)/metadata", "\(data)/../metadata", data] where SQLitePeek.exists(folder)
    {
      let prefix = StoreKey.topicNames
      let upper = StoreKey(prefix.bytes.dropLast() + [prefix.bytes.last! + 1])
      for entry in try SQLitePeek.entries(folder, in: KeyRange(prefix, upTo: upper)) {
        let name = String(decoding: entry.key.bytes.dropFirst(prefix.bytes.count), as: UTF8.self)
        self.names[try TopicNameRecord(entry).id] = name
      }
      return
    }
  }

  /// `events/0`, or with the topic's id.
  func partition(_ text: String) throws(MemQError) -> TopicPartition {
    guard let slash = text.lastIndex(of: "/"),
      let number = Int32(text[text.index(after: slash)...]),
      number >= 0
    else {
      throw MemQError(
        .invalidArgument, "a partition is written as topic/number, such as events/0", subject: text)
    }
    let topic = String(text[..<slash])
    if let id = TopicID(topic) { return TopicPartition(id, PartitionIndex(number)) }
    guard let id = self.names.first(where: { $0.value == topic })?.key else {
      throw MemQError(
        .topicNotFound,
        self.names.isEmpty
          ? "the data folder holds no metadata: name the topic by its id (memq topic describe)"
          : "the data folder's metadata knows no such topic", subject: topic)
    }
    return TopicPartition(id, PartitionIndex(number))
  }

  func text(_ partition: TopicPartition) -> String {
    "\(self.names[partition.topic] ?? partition.topic.description)/\(partition.partition)"
  }
}

/// Frames as lines, or as one JSON array. Writes block.
private struct FramePrinter {
  private let names: TopicNames
  private let isJSON: Bool
  private var list = JSONList()
  private var volume = ""
  private var buffer: [UInt8] = []
  private(set) var isClosed = false

  init(_ names: TopicNames, isJSON: Bool) {
    self.names = names
    self.isJSON = isJSON
  }

  mutating func begin(_ volume: String) {
    self.volume = volume
    if !self.isJSON { self.write("# \(volume)\n") }
  }

  /// - Returns: whether to go on.
  mutating func print(_ frame: FrameDescription) -> Bool {
    let header = frame.header
    let isOfPartition = header.log != .none
    let name = isOfPartition ? self.names.text(header.partition) : ""
    if self.isJSON {
      self.write(
        self.list.next([
          "volume": .string(self.volume), "segment": .number(frame.place.segment.rawValue),
          "position": .number(frame.place.position), "group": .text(frame.group),
          "type": .string("\(header.type)"), "partition": isOfPartition ? .string(name) : .null,
          "base_offset": .number(header.baseOffset.rawValue),
          "end_offset": .number(header.endOffset.rawValue),
          "leader_epoch": .number(header.leaderEpoch.rawValue),
          "append_time_ms": .number(header.appendTime.milliseconds),
          "bytes": .number(frame.byteCount),
        ]))
    } else {
      let range = "offsets \(header.baseOffset)..<\(header.endOffset) epoch \(header.leaderEpoch)"
      self.write(
        "\(frame.place) group \(frame.group) \(header.type) "
          + (isOfPartition ? "\(name) \(range) " : "")
          + "\(frame.byteCount) bytes \(TimeText.iso(header.appendTime))\n")
    }
    return !self.isClosed
  }

  private mutating func write(_ text: String) {
    self.buffer += Array(text.utf8)
    if self.buffer.count >= 64 << 10 { self.flush() }
  }

  private mutating func flush() {
    let number = self.buffer.withUnsafeBytes { Output.writeAll(1, $0) }
    self.buffer.removeAll(keepingCapacity: true)
    if number != 0 { self.isClosed = true }
  }

  /// - Returns: false when nobody reads the output any more.
  mutating func finish() -> Bool {
    if self.isJSON { self.write(self.list.end) }
    self.flush()
    return !self.isClosed
  }
}
