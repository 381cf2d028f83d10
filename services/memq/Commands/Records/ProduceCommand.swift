// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQClient
import MemQModel
import MemQRecords

enum AcksChoice: String, ExpressibleByArgument, CaseIterable {
  case none = "0"
  case leader = "1"
  case all

  var acks: ProduceAcks {
    switch self {
    case .none: .none
    case .leader: .leader
    case .all: .all
    }
  }
}

enum CompressionChoice: String, ExpressibleByArgument, CaseIterable {
  case none, gzip, snappy, lz4, zstd
}

struct ProduceCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "produce", abstract: "Send each line of standard input as a record.",
    discussion: """
      Lines are sent as they arrive. Exit status 0 means: every line is acknowledged. A failed line is named on standard error.
      """)

  @Argument(help: "The topic.")
  var topic: String
  @Option(
    help:
      "When a record counts as acknowledged: when sent, durable on the leader, or durable on all in-sync replicas."
  )
  var acks = AcksChoice.all
  @Option(
    help: ArgumentHelp("Text between key and value; every line must have it.", valueName: "text"))
  var keySeparator: String?
  @Option(
    parsing: .unconditional,
    help: "Send to this partition; default: by the key's hash, without keys in turn.")
  var partition: Int32?
  @Flag(help: "Print each value when its acknowledgement comes.")
  var printAcked = false
  @Flag(help: "Without sequence numbers: a retry may append a record twice.")
  var noIdempotence = false
  @Option(help: "Pack batches; default: as the topic's compression.type says.")
  var compression: CompressionChoice?
  @Option(help: ArgumentHelp("How long a batch waits for company.", valueName: "milliseconds"))
  var linger = 5
  @Option(
    help: ArgumentHelp(
      "Give a record up when it is not acknowledged for so long.", valueName: "seconds"))
  var deliveryTimeout = 120
  @OptionGroup var server: ServerOptions

  func validate() throws {
    guard (0...60_000).contains(self.linger) else {
      throw ValidationError("--linger must be from 0 to 60000 milliseconds")
    }
    guard (1...86_400).contains(self.deliveryTimeout) else {
      throw ValidationError("--delivery-timeout must be from 1 to 86400 seconds")
    }
    guard self.partition ?? 0 >= 0 else {
      throw ValidationError("--partition must not be negative")
    }
    guard self.keySeparator?.isEmpty != true else {
      throw ValidationError("--key-separator must not be empty")
    }
  }

  private var settings: Producer.Configuration {
    var settings = Producer.Configuration()
    settings.acks = self.acks.acks
    settings.isIdempotent = !self.noIdempotence
    settings.compression = self.compression.flatMap { Compression(name: $0.rawValue) }
    settings.linger = .milliseconds(self.linger)
    settings.deliveryTimeout = .seconds(self.deliveryTimeout)
    settings.requestTimeout = min(settings.requestTimeout, settings.deliveryTimeout)
    return settings
  }

  func run() async throws {
    try await self.server.withClient { client in
      let producer = try await client.producer(self.topic, configuration: self.settings)
      try await LineProducer(
        producer, keySeparator: self.keySeparator.map { Array($0.utf8) },
        partition: self.partition.map { PartitionIndex($0) }, printsAcked: self.printAcked
      ).run()
    }
  }
}

/// Standard input into a producer.
struct LineProducer {
  private let producer: Producer
  private let keySeparator: [UInt8]?
  private let partition: PartitionIndex?
  private let printsAcked: Bool
  private let ledger = AckLedger()

  init(
    _ producer: Producer, keySeparator: [UInt8]?, partition: PartitionIndex?, printsAcked: Bool
  ) {
    self.producer = producer
    self.keySeparator = keySeparator
    self.partition = partition
    self.printsAcked = printsAcked
  }

  /// - Throws: `ExitCode` 1 or 3 when a line was not acknowledged.
  func run() async throws {
    let reading = Task { try await self.read() }
    // Interrupted while the input gives nothing: the read itself cannot be ended.
    let first = FirstOf<Result<Int, any Error>?>()
    Task { first.set(await reading.result) }
    Interrupts.onFirst {
      first.set(nil)
      reading.cancel()
    }
    let ledger = self.ledger
    let printing = Task {
      do {
        while let bytes = await ledger.next() {
          try await Output.standard.write(bytes)
          try await Output.standard.flush()
        }
      } catch {
        // Without this, reading would wait for ever for values to be printed.
        ledger.discard()
        throw error
      }
    }
    let input = await first.get()
    let closed = await self.close()
    ledger.finish()
    let printed = await printing.result
    try self.conclude(input, closed, printed)
  }

  private func close() async -> Result<Void, MemQError> {
    do throws(MemQError) {
      try await self.producer.close()
      return .success(())
    } catch {
      return .failure(error)
    }
  }

  /// - Parameter input: nil: interrupted.
  private func conclude(
    _ input: Result<Int, any Error>?, _ closed: Result<Void, MemQError>,
    _ printed: Result<Void, any Error>
  ) throws {
    let wasInterrupted = input == nil
    let outcome = self.ledger.outcome
    if wasInterrupted || outcome.failed > 0 {
      Output.note("memq: \(outcome.acknowledged) lines acknowledged, \(outcome.failed) failed")
    }
    try printed.get()
    if case .failure(let error)? = input { throw error }
    try closed.get()
    if outcome.failed > 0 { throw ExitCode(outcome.isVerdict ? 3 : 1) }
    if wasInterrupted { throw ExitCode(1) }
  }

  /// Sends line by line until the input ends.
  ///
  /// - Returns: the number of lines.
  private func read() async throws -> Int {
    let input = LineInput()
    var line = 0
    while let lines = try await input.next() {
      try Task.checkCancellation()
      while self.ledger.isBehind { try await Task.sleep(for: .milliseconds(5)) }
      var rest = lines[...]
      while !rest.isEmpty {
        let end = rest.firstIndex(of: UInt8(ascii: "\n")) ?? rest.endIndex
        line += 1
        try await self.send(rest[..<end], line)
        rest = rest[min(end + 1, rest.endIndex)...]
      }
    }
    return line
  }

  private func send(_ text: ArraySlice<UInt8>, _ line: Int) async throws {
    let (key, value) = try self.split(text, line)
    let ledger = self.ledger
    let printed = self.printsAcked ? Array(value) : nil
    let handler: AcknowledgementHandler = { result in
      switch result {
      case .success: ledger.acknowledged(printed)
      case .failure(let error): ledger.failed(line: line, error)
      }
    }
    while !(try self.offer(key, value, handler, line)) { try await self.producer.waitForRoom() }
  }

  private func offer(
    _ key: ArraySlice<UInt8>?, _ value: ArraySlice<UInt8>,
    _ handler: @escaping AcknowledgementHandler, _ line: Int
  ) throws(MemQError) -> Bool {
    let result = value.withUnsafeBytes { value in
      Result { () throws(MemQError) -> Bool in
        guard let key else {
          return try self.producer.trySend(
            value: value, partition: self.partition, acknowledged: handler)
        }
        let inner = key.withUnsafeBytes { key in
          Result { () throws(MemQError) -> Bool in
            try self.producer.trySend(
              key: key, value: value, partition: self.partition, acknowledged: handler)
          }
        }
        return try inner.get()
      }
    }
    do throws(MemQError) {
      return try result.get()
    } catch {
      // One line that can never be sent does not stop the others.
      guard error.code == .recordBatchTooLarge else { throw error }
      self.ledger.failed(line: line, error)
      return true
    }
  }

  private func split(
    _ text: ArraySlice<UInt8>, _ line: Int
  ) throws(MemQError) -> (key: ArraySlice<UInt8>?, value: ArraySlice<UInt8>) {
    guard let separator = self.keySeparator else { return (nil, text) }
    var at = text.startIndex
    while at + separator.count <= text.endIndex {
      if text[at..<(at + separator.count)].elementsEqual(separator) {
        return (text[..<at], text[(at + separator.count)...])
      }
      at += 1
    }
    throw MemQError(
      .invalidArgument, "has no key separator; earlier lines are sent", subject: "line \(line)")
  }
}
