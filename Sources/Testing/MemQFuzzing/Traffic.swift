// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQRPC
import MemQTestSupport
import NIOCore

/// One HTTP/2 frame, or what a mutation left of it.
struct Frame {
  var type: UInt8
  var flags: UInt8
  var stream: UInt32
  var payload: [UInt8]
  /// Nil: the payload's.
  var statedLength: Int?

  var bytes: [UInt8] {
    let length = self.statedLength ?? self.payload.count
    return [
      UInt8(length >> 16 & 255), UInt8(length >> 8 & 255), UInt8(length & 255), self.type,
      self.flags, UInt8(self.stream >> 24), UInt8(self.stream >> 16 & 255),
      UInt8(self.stream >> 8 & 255), UInt8(self.stream & 255),
    ] + self.payload
  }

  static func parse(_ bytes: ArraySlice<UInt8>) -> [Frame] {
    var frames: [Frame] = []
    var rest = bytes
    while rest.count >= 9 {
      let head = Array(rest.prefix(9))
      let length = Int(head[0]) << 16 | Int(head[1]) << 8 | Int(head[2])
      guard rest.count >= 9 + length else { break }
      let stream = head[5..<9].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
      frames.append(
        Frame(
          type: head[3], flags: head[4], stream: stream,
          payload: Array(rest.dropFirst(9).prefix(length))))
      rest = rest.dropFirst(9 + length)
    }
    return frames
  }

  /// One that no peer of ours would send there.
  static func random(_ random: inout SeededGenerator) -> Frame {
    let stream = UInt32([0, 0, 1, 1, 3, 5, 2, 99].randomElement(using: &random)!)
    func big(_ value: UInt32) -> [UInt8] {
      [UInt8(value >> 24), UInt8(value >> 16 & 255), UInt8(value >> 8 & 255), UInt8(value & 255)]
    }
    let word = UInt32(truncatingIfNeeded: random.next())
    let some: [UInt32] = [0, 1, 0x7fff_ffff, 0xffff_ffff, word]
    let value = some.randomElement(using: &random)!
    switch random.below(11) {
    case 0: return Frame(type: 0, flags: 8, stream: stream, payload: random.bytes(random.below(40)))
    case 1:
      return Frame(
        type: 1, flags: UInt8(truncatingIfNeeded: random.next()), stream: stream,
        payload: random.bytes(random.below(60)))
    case 2: return Frame(type: 2, flags: 0, stream: stream, payload: random.bytes(5))
    case 3: return Frame(type: 3, flags: 0, stream: stream, payload: big(value))
    case 4:
      let id = UInt8(random.below(9))
      var settings: [UInt8] = []
      for _ in 0..<random.below(5) { settings += [0, id] + big(value) }
      return Frame(type: 4, flags: 0, stream: 0, payload: settings)
    case 5: return Frame(type: 5, flags: 4, stream: stream, payload: big(value))
    case 6:
      return Frame(type: 6, flags: UInt8(random.below(2)), stream: 0, payload: random.bytes(8))
    case 7: return Frame(type: 7, flags: 0, stream: 0, payload: big(value) + big(0))
    case 8: return Frame(type: 8, flags: 0, stream: stream, payload: big(value))
    case 9: return Frame(type: 9, flags: 4, stream: stream, payload: random.bytes(random.below(9)))
    default:
      return Frame(
        type: UInt8(truncatingIfNeeded: random.next()), flags: 0, stream: stream,
        payload: random.bytes(random.below(30)))
    }
  }
}

/// What a client and a server of ours say to each other, recorded.
struct Traffic {
  static let preface = Array("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".utf8)

  var fromClient: [Frame] = []
  var fromServer: [Frame] = []

  /// Calls of all kinds, made by `random`.
  static func record(_ random: inout SeededGenerator) throws -> Traffic {
    let ledger = Ledger()
    let server = try FuzzWire { loop in
      RPCParts.server(
        .fuzz(ledger), on: loop, settings: FuzzLimits.settings,
        maxMessageBytes: FuzzLimits.messageBytesMax, maxConcurrentStreams: FuzzLimits.streamsMax,
        logger: FuzzLimits.logger)
    }
    var parts: RPCParts.Client?
    let client = try FuzzWire { loop in
      let made = RPCParts.Client(
        on: loop, group: loop, settings: FuzzLimits.settings, logger: FuzzLimits.logger)
      parts = made
      return made.handler
    }
    var calls = FuzzCalls(parts!, ledger)
    var sent: [UInt8] = []
    var answered: [UInt8] = []
    for _ in 0..<(2 + random.below(6)) {
      if random.oneIn(2) || calls.isEmpty {
        calls.start(&random)
      } else {
        calls.goOn(&random)
      }
      for _ in 0..<4 {
        let out = client.takeOutput()
        sent += out
        server.feed(out)
        let back = server.takeOutput()
        answered += back
        client.feed(back)
        if out.isEmpty && back.isEmpty { break }
      }
    }
    client.close()
    server.close()
    try ledger.check()
    try require(sent.starts(with: self.preface), "the client's preface is \(sent.prefix(24))")
    return Traffic(
      fromClient: Frame.parse(sent.dropFirst(self.preface.count)),
      fromServer: Frame.parse(answered[...]))
  }

  /// A few changes to frames: their fields, their order, what they carry.
  static func mutate(
    _ frames: inout [Frame], splicing other: [Frame], _ random: inout SeededGenerator
  ) {
    for _ in 0..<(1 + random.below(6)) {
      guard !frames.isEmpty else { return frames.append(.random(&random)) }
      let at = random.below(frames.count)
      switch random.below(12) {
      case 0: frames[at].flags ^= 1 << UInt8(random.below(8))
      case 1: frames[at].type = UInt8(random.below(12))
      case 2: frames[at].stream = UInt32([0, 1, 2, 3, 7, 101].randomElement(using: &random)!)
      case 3: frames[at].statedLength = max(0, frames[at].payload.count - 3 + random.below(7))
      case 4: frames[at].statedLength = random.below(1 << 24)
      case 5: frames.remove(at: at)
      case 6: frames.insert(frames[at], at: random.below(frames.count))
      case 7: frames.swapAt(at, random.below(frames.count))
      case 8: frames.insert(.random(&random), at: at)
      case 9:
        let flood = Frame.random(&random)
        frames.insert(contentsOf: Array(repeating: flood, count: 1 + random.below(40)), at: at)
      case 10:
        if let spliced = other.randomElement(using: &random) { frames.insert(spliced, at: at) }
      default:
        let source = other.randomElement(using: &random)?.payload ?? []
        Mutator.mutate(&frames[at].payload, splicing: source, &random)
      }
    }
  }
}

/// Calls of a client, in progress.
struct FuzzCalls {
  private let client: RPCParts.Client
  private let ledger: Ledger
  private var open: [RPCClientCall] = []

  init(_ client: RPCParts.Client, _ ledger: Ledger) {
    self.client = client
    self.ledger = ledger
  }

  var isEmpty: Bool { self.open.isEmpty }

  mutating func start(_ random: inout SeededGenerator) {
    var options = RPCCallOptions(timeout: nil, maxMessageBytes: FuzzLimits.messageBytesMax)
    if random.oneIn(3) { options.compression = .gzip }
    if random.oneIn(2) {
      options.metadata.add("some-name", String(repeating: "v", count: random.below(300)))
      options.metadata.addBinary("raw-bin", random.bytes(random.below(30)))
    }
    let method =
      random.oneIn(12)
      ? RPCMethod(service: "fuzz.Fuzz", name: "None", kind: .unary)
      : RPCMethod.fuzz(RPCMethod.Manner.allCases.randomElement(using: &random)!)
    let request = random.oneIn(2) ? Self.message(&random) : nil
    let consumes = !random.oneIn(4)
    let call = self.client.start(method, options, request: request) {
      CheckedClientHandler($0, consumes: consumes, self.ledger)
    }
    if let call, request == nil { self.open.append(call) }
  }

  mutating func goOn(_ random: inout SeededGenerator) {
    guard !self.open.isEmpty else { return }
    let index = random.below(self.open.count)
    switch random.below(5) {
    case 0: self.open.remove(at: index).halfClose()
    case 1: self.open.remove(at: index).cancel()
    default: self.open[index].send(Self.message(&random))
    }
  }

  private static func message(_ random: inout SeededGenerator) -> RPCMessage {
    let most = [1, 200, 20_000, FuzzLimits.messageBytesMax].randomElement(using: &random)!
    let count = random.below(most)
    return random.oneIn(2)
      ? RPCMessage(bytes: random.bytes(count))
      : RPCMessage(ByteBuffer(repeating: UInt8(count & 255), count: count))
  }
}
