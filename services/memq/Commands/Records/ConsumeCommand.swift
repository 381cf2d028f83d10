// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQClient
import MemQModel
import MemQRecords
import Synchronization

/// `beginning`, `end`, an offset, or a time in RFC 3339.
struct StartChoice: ExpressibleByArgument {
  let start: Consumer.Start

  init?(argument: String) {
    switch argument {
    case "beginning": self.start = .beginning
    case "end": self.start = .end
    default:
      if let offset = Int64(argument) {
        guard offset >= 0 else { return nil }
        self.start = .offset(Offset(offset))
      } else if let time = TimeText.parse(argument) {
        self.start = .timestamp(time)
      } else {
        return nil
      }
    }
  }
}

struct ConsumeCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "consume", abstract: "Print a topic's records, one per line.",
    discussion: """
      Goes on until Ctrl-C unless --max or --until-end ends it. With --group it begins where the group stands and commits what it has
      printed; --from counts only for partitions without a committed offset. The members of a group share the partitions.

      --format: %p partition, %o offset, %k key, %v value, %t timestamp in milliseconds, %T timestamp in words, %h headers, %n newline, %%;
      \\n, \\t, \\r, \\0, \\\\. A newline follows each record.
      """)

  @Argument(help: "The topic.")
  var topic: String
  @Option(
    help: ArgumentHelp(
      "Where to begin.", valueName: "beginning|end|OFFSET|TIMESTAMP"))
  var from: StartChoice?
  @Option(
    parsing: .unconditionalSingleValue, help: "Only this partition; may be repeated. Default: all.")
  var partition: [Int32] = []
  @Option(
    help: "Consumer group: share the partitions, begin at its offsets, commit what was printed.")
  var group: String?
  @Option(
    help: ArgumentHelp(
      "With --group: a lasting name; who starts again under it takes over at once.",
      valueName: "NAME"))
  var instance: String?
  @Option(
    help: ArgumentHelp(
      "With --group: silence after which others take over, 1s to 10m. Default: 45s.",
      valueName: "TIME"))
  var sessionTimeout: TimeSpanChoice?
  @Option(
    name: .customLong("max"), parsing: .unconditional, help: "End after so many records.")
  var recordsMax: Int?
  @Flag(help: "End at the high watermarks that stand at the start.")
  var untilEnd = false
  @Option(help: "How to print a record.")
  var format: RecordFormat?
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    if let recordsMax = self.recordsMax, recordsMax < 0 {
      throw ValidationError("--max must not be negative")
    }
    guard self.partition.allSatisfy({ $0 >= 0 }) else {
      throw ValidationError("--partition must not be negative")
    }
    guard self.group != nil || (self.instance == nil && self.sessionTimeout == nil) else {
      throw ValidationError("--instance and --session-timeout need --group")
    }
    guard self.format == nil || !self.output.isJSON else {
      throw ValidationError("--format and -o json exclude each other")
    }
  }

  private var settings: Consumer.Configuration {
    var settings = Consumer.Configuration()
    settings.partitions =
      self.partition.isEmpty ? nil : self.partition.map { PartitionIndex($0) }
    settings.group = self.group
    settings.instanceID = self.instance
    if let timeout = self.sessionTimeout { settings.sessionTimeout = timeout.duration }
    // Kafka's console reader begins at the end; who asks for the end of the log, or a number, wants what is there.
    settings.start = self.from?.start ?? (self.untilEnd ? .beginning : .end)
    settings.stopsAtEnd = self.untilEnd
    settings.marksAutomatically = false
    if case .offset = settings.start, self.partition.count == 1 { settings.reset = .fail }
    return settings
  }

  func run() async throws {
    try await self.server.withClient { client in
      let consumer = try await client.consumer(self.topic, configuration: self.settings)
      let printer = RecordPrinter(
        consumer, format: self.output.isJSON ? nil : self.format ?? .value,
        recordsMax: self.recordsMax)
      let reading = Task { try await printer.run() }
      Interrupts.onFirst { reading.cancel() }
      let result = await reading.result
      do {
        try await consumer.close()
      } catch {
        // The first failure says more.
        if case .failure(let first) = result, !(first is OutputClosed) { throw first }
        throw error
      }
      try result.get()
    }
  }
}

/// Prints records and marks as consumed what was really written.
actor RecordPrinter {
  private let consumer: Consumer
  /// Nil: JSON.
  private let format: RecordFormat?
  private let recordsMax: Int?
  private var buffer: [UInt8] = []
  private var count = 0
  private var marks: SortedMap<PartitionIndex, Offset> = [:]

  init(_ consumer: Consumer, format: RecordFormat?, recordsMax: Int?) {
    self.consumer = consumer
    self.format = format
    self.recordsMax = recordsMax
  }

  /// Ends at the end, after the maximum, or when the task is cancelled; throws otherwise.
  func run() async throws {
    if self.format == nil { self.buffer += Array("[".utf8) }
    do {
      try await self.printAll()
    } catch let error as MemQError where error.code == .cancelled && Task.isCancelled {
      // Ctrl-C: what was printed counts.
    }
    if self.format == nil { self.buffer += Array("\n]\n".utf8) }
    try await self.flush()
  }

  private func printAll() async throws {
    while self.recordsMax.map({ self.count < $0 }) ?? true {
      if !(await self.consumer.hasReady) { try await self.flush() }
      guard let piece = try await self.consumer.next() else { return }
      self.take(piece)
      if self.buffer.count >= Output.fullBytes { try await self.flush() }
    }
  }

  private func take(_ piece: ConsumedRecords) {
    var next = piece.nextOffset
    for record in piece.records {
      if let recordsMax = self.recordsMax, self.count == recordsMax {
        next = record.offset
        break
      }
      self.print(record, piece.partition)
      self.count += 1
    }
    self.marks[piece.partition] = next
  }

  private func print(_ record: Record, _ partition: PartitionIndex) {
    guard let format = self.format else {
      self.buffer += Array((self.count == 0 ? "\n  " : ",\n  ").utf8)
      self.buffer += Array(RecordFormat.json(record, partition).line.utf8)
      return
    }
    format.write(record, partition, onto: &self.buffer)
    self.buffer.append(UInt8(ascii: "\n"))
  }

  private func flush() async throws {
    let marks = self.marks
    self.marks = [:]
    if !self.buffer.isEmpty {
      let bytes = self.buffer
      self.buffer.removeAll(keepingCapacity: true)
      try await Output.standard.write(bytes)
      try await Output.standard.flush()
    }
    for (partition, offset) in marks { await self.consumer.markConsumed(partition, below: offset) }
  }
}
