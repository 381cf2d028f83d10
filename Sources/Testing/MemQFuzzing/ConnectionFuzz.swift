// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQRPC
import MemQTestSupport
import NIOCore

/// Recorded and then mutated frames of clients into a server's connection.
enum ServerFuzz {
  static func run(_ random: inout SeededGenerator) throws {
    var frames = try Traffic.record(&random).fromClient
    let other = random.oneIn(4) ? try Traffic.record(&random).fromClient : frames
    if !random.oneIn(10) { Traffic.mutate(&frames, splicing: other, &random) }
    var bytes = Traffic.preface + frames.flatMap(\.bytes)
    if random.oneIn(10) { Mutator.mutate(&bytes, splicing: Traffic.preface, &random) }

    let ledger = Ledger()
    let wire = try FuzzWire { loop in
      RPCParts.server(
        .fuzz(ledger), on: loop, settings: FuzzLimits.settings,
        maxMessageBytes: FuzzLimits.messageBytesMax, maxConcurrentStreams: FuzzLimits.streamsMax,
        logger: FuzzLimits.logger)
    }
    for piece in Mutator.pieces(bytes, &random) {
      wire.feed(piece)
      try ledger.check()
      try require(
        ledger.open <= FuzzLimits.streamsMax, "\(ledger.open) handlers at once on one connection")
      if random.oneIn(200) { wire.advance(by: .seconds(1)) }
      // A peer that reads now and then.
      if random.oneIn(3) { _ = wire.takeOutput() }
    }
    try ConnectionEnd.check(wire, ledger, &random)
  }
}

/// Recorded and then mutated frames of servers into a client's connection with calls of its own.
enum ClientFuzz {
  static func run(_ random: inout SeededGenerator) throws {
    // The same calls, as the numbers are the same, so that the answers fit.
    var again = random
    var frames = try Traffic.record(&random).fromServer
    if !random.oneIn(10) { Traffic.mutate(&frames, splicing: frames, &random) }

    let ledger = Ledger()
    var parts: RPCParts.Client?
    let wire = try FuzzWire { loop in
      let made = RPCParts.Client(
        on: loop, group: loop, settings: FuzzLimits.settings, logger: FuzzLimits.logger)
      parts = made
      return made.handler
    }
    var calls = FuzzCalls(parts!, ledger)
    for _ in 0..<(2 + again.below(6)) {
      if again.oneIn(2) || calls.isEmpty { calls.start(&again) } else { calls.goOn(&again) }
    }
    _ = wire.takeOutput()
    for piece in Mutator.pieces(frames.flatMap(\.bytes), &random) {
      wire.feed(piece)
      try ledger.check()
      if random.oneIn(20) { calls.goOn(&random) }
      if random.oneIn(3) { _ = wire.takeOutput() }
    }
    try ConnectionEnd.check(wire, ledger, &random)
  }
}

/// What must hold once the bytes are through.
enum ConnectionEnd {
  static func check(
    _ wire: FuzzWire, _ ledger: Ledger, _ random: inout SeededGenerator
  ) throws {
    if random.oneIn(2) {
      // Whatever frame the peer is inside of ends somewhere in these zeros; what follows is DATA on stream 0, which no connection may
      // outlive. The stated length of a frame is limited, so that many zeros are enough.
      let zeros = [UInt8](repeating: 0, count: 4 * FuzzLimits.settings.frameBytes)
      for _ in 0..<4 {
        wire.feed(zeros)
        _ = wire.takeOutput()
      }
      wire.advance(by: .seconds(20))
      try require(!wire.isOpen, "the connection outlives DATA on stream 0")
    }
    _ = wire.takeOutput()
    // Statuses repeat what peers named: small answers, but not smaller than the question.
    let most = (1 << 20) + 1_000 * wire.receivedBytes + 2 * ledger.deliveredBytes
    try require(
      wire.sentBytes <= most, "\(wire.sentBytes) bytes of answers to \(wire.receivedBytes)")
    wire.close()
    try ledger.check()
    try require(
      ledger.open == 0, "\(ledger.open) of \(ledger.made) handlers never heard of the end")
  }
}
