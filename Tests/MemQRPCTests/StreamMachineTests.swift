// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore
import Testing

@testable import MemQRPC

@Suite struct StreamMachineTests {
  private func server(max: Int = 1000) -> StreamMachine {
    StreamMachine(side: .server, windowBytes: 65536, sendMaxBytes: max, receiveMaxBytes: max)
  }

  private func client(max: Int = 1000) -> StreamMachine {
    StreamMachine(side: .client, windowBytes: 65536, sendMaxBytes: max, receiveMaxBytes: max)
  }

  private func frame(_ message: RPCMessage) -> ByteBuffer {
    var bytes = ByteBuffer()
    bytes.writeInteger(UInt8(0))
    bytes.writeInteger(UInt32(message.byteCount))
    bytes.writeImmutableBuffer(message.contiguous())
    return bytes
  }

  @Test func `a status without messages is the whole response`() {
    var machine = self.server()
    machine.finish(RPCStatus(.notFound, "nothing"))
    guard case .trailersOnly(let status) = machine.output() else { return #expect(Bool(false)) }
    #expect(status.code == .notFound)
    #expect(machine.localEnded)
    #expect(machine.nextFrame(upTo: 100) == .invalid)
    guard case .nothing = machine.output() else { return #expect(Bool(false)) }
  }

  @Test func `the status follows the messages`() {
    var machine = self.server()
    guard case .queued(true) = machine.send(RPCMessage("hello")) else {
      return #expect(Bool(false))
    }
    guard case .response = machine.output() else { return #expect(Bool(false)) }
    machine.finish(.ok)
    guard case .ignored = machine.send(RPCMessage("late")) else { return #expect(Bool(false)) }
    #expect(machine.nextFrame(upTo: 7) == .data(count: 7, isLast: false))
    #expect(self.take(7, from: &machine) == 7)
    #expect(!machine.localEnded)
    #expect(machine.nextFrame(upTo: 7) == .data(count: 3, isLast: true))
    #expect(self.take(3, from: &machine) == 3)
    #expect(machine.localEnded)
  }

  private func take(_ count: Int, from machine: inout StreamMachine) -> Int {
    var taken = 0
    while taken < count, let piece = machine.takePiece(upTo: count - taken) {
      switch piece {
      case .prefix(_, let count): taken += count
      case .payload(let slice): taken += slice.readableBytes
      }
    }
    return taken
  }

  @Test func `an idle stream is deferred, and resumed by what comes next`() {
    var machine = self.client()
    machine.attached()
    #expect(machine.nextFrame(upTo: 100) == .deferred)
    _ = machine.send(RPCMessage("x"))
    guard case .resume = machine.output() else { return #expect(Bool(false)) }
    guard case .nothing = machine.output() else { return #expect(Bool(false)) }
    #expect(machine.nextFrame(upTo: 100) == .data(count: 6, isLast: false))
    #expect(self.take(6, from: &machine) == 6)
    #expect(machine.nextFrame(upTo: 100) == .deferred)
    machine.halfClose()
    guard case .resume = machine.output() else { return #expect(Bool(false)) }
    #expect(machine.nextFrame(upTo: 100) == .data(count: 0, isLast: true))
  }

  @Test func `an abort overtakes what is queued`() {
    var machine = self.server()
    _ = machine.send(RPCMessage("one"))
    guard case .response = machine.output() else { return #expect(Bool(false)) }
    machine.abort(.deadlineExceeded)
    #expect(machine.end() == true)
    #expect(machine.end() == false)
    #expect(machine.nextFrame(upTo: 100) == .data(count: 0, isLast: true))
    #expect(machine.finalStatus.code == .deadlineExceeded)
  }

  @Test func `only the first status counts`() {
    var machine = self.server()
    machine.finish(.ok)
    machine.finish(RPCStatus(.internal))
    #expect(machine.finalStatus.isOK)
  }

  @Test func `a full queue says so, and says when there is room`() {
    var machine = self.server(max: 1 << 20)
    _ = machine.send(.pattern(1 << 20))
    #expect(machine.takeRoom() == false)
    guard case .queued(false) = machine.send(.pattern(1 << 20)) else {
      return #expect(Bool(false))
    }
    #expect(machine.takeRoom() == false)
    _ = machine.output()
    _ = machine.nextFrame(upTo: 8 << 20)
    _ = self.take(2 << 20, from: &machine)
    #expect(machine.takeRoom() == true)
    #expect(machine.takeRoom() == false)
  }

  @Test func `a queue has an end`() {
    var machine = self.server(max: 1 << 20)
    var count = 0
    while count < 100, case .queued = machine.send(.pattern(1 << 20)) { count += 1 }
    #expect(count == 32)
  }

  @Test func `an end inside a message is an error`() throws {
    var machine = self.server()
    var bytes = self.frame(RPCMessage("hello"))
    var part = bytes.readSlice(length: 7)!
    #expect(try machine.receive(&part) == nil)
    guard case .truncated(let status) = machine.remoteEnded() else {
      return #expect(Bool(false))
    }
    #expect(status.code == .internal)
    guard case .ignored = machine.remoteEnded() else { return #expect(Bool(false)) }
  }

  @Test func `the end gives all held bytes back`() throws {
    var machine = self.server(max: 100_000)
    var bytes = self.frame(.pattern(20_000))
    let message = try #require(try machine.receive(&bytes))
    #expect(machine.unconsumedBytes + machine.partialBytes == message.byteCount)
    #expect(machine.takeCredit() == 0)
    #expect(machine.end() == true)
    #expect(machine.unconsumedBytes == 0 && machine.partialBytes == 0)
    #expect(machine.takeCredit() == 20_005)
  }

  @Test func `a call can be sent again only while nothing of it is gone`() {
    var streaming = self.client()
    _ = streaming.send(RPCMessage("one"))
    streaming.attached()
    #expect(streaming.rewind(to: nil) == true)
    streaming.attached()
    _ = streaming.nextFrame(upTo: 100)
    _ = self.take(8, from: &streaming)
    #expect(streaming.rewind(to: nil) == false)

    var unary = self.client()
    _ = unary.send(RPCMessage("one"))
    unary.halfClose()
    unary.attached()
    #expect(unary.nextFrame(upTo: 100) == .data(count: 8, isLast: true))
    _ = self.take(8, from: &unary)
    #expect(unary.rewind(to: RPCMessage("one")) == true)
    #expect(unary.nextFrame(upTo: 100) == .data(count: 8, isLast: true))
  }
}
