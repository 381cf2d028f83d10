// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQClient
import MemQModel
import Testing

@testable import MemQCommands

@Suite struct ParsingTests {
  static func parse<C: ParsableCommand>(_ line: String, as: C.Type = C.self) throws -> C {
    let command = try RootCommand.parseAsRoot(line.split(separator: " ").map(String.init))
    return try #require(command as? C)
  }

  /// The lines of the README and of scripts/run.
  @Test(arguments: [
    "topic create events --partitions 4", "topic create media --scan gate",
    "topic create cold --set local.retention.bytes=0 --set retention.ms=-1",
    "consume events --from beginning --max 100000 --format %v",
    "consume events --from beginning --until-end --group g1 --format %p",
    "file put media --recursive /usr/include", "file list media -o json",
    "file put media eicar.com",
    "file get media NAME -o /tmp/out",
    "file get media NAME -o - --output json --offset 3 --length 4",
    "quarantine list media -o json", "upload status -o json", "upload flush events",
    "log dump --data /tmp/mq --live --partition events/0", "produce events --acks 0 --print-acked",
    "cluster status", "cluster nodes -o json --server 127.0.0.1:1", "rebalance plan",
    "group reset g events --to 2025-01-01 --partition 0", "completion bash", "doctor --data /tmp",
  ])
  func `lines that people type are understood`(line: String) throws {
    _ = try RootCommand.parseAsRoot(line.split(separator: " ").map(String.init))
  }

  @Test(arguments: [
    "topic frobnicate", "topic create", "topic create a --scan maybe",
    "topic create a --set novalue",
    "topic alter a", "produce t --acks 2", "consume t --from yesterday", "consume t --from -1",
    "consume t --format %x", "consume t --max -1", "file put t a b --name x",
    "file get t n --length 0",
    "file put t a --concurrency 0", "cluster status --connect-timeout -1", "nonsense",
  ])
  func `usage errors are usage errors`(line: String) {
    let error = #expect(throws: (any Error).self) {
      _ = try RootCommand.parseAsRoot(line.split(separator: " ").map(String.init))
    }
    #expect(error.map { RootCommand.exitCode(for: $0) } == .validationFailure)
  }

  @Test(arguments: ["consume t --partition -1", "produce t --partition -1", "consume t --max -1"])
  func `a negative number is named as what is wrong`(line: String) {
    let error = #expect(throws: (any Error).self) {
      _ = try RootCommand.parseAsRoot(line.split(separator: " ").map(String.init))
    }
    #expect(error.map { RootCommand.message(for: $0) }?.contains("must not be negative") == true)
  }

  @Test func `a start is a word, an offset or a time`() throws {
    #expect(StartChoice(argument: "beginning")?.start == .beginning)
    #expect(StartChoice(argument: "end")?.start == .end)
    #expect(StartChoice(argument: "17")?.start == .offset(Offset(17)))
    #expect(
      StartChoice(argument: "1970-01-02")?.start == .timestamp(Timestamp(milliseconds: 86_400_000)))
  }

  @Test func `a setting keeps what stands behind the first equals sign`() throws {
    let command: TopicCreate = try Self.parse("topic create t --set a=b=c --set d=")
    #expect(try command.set.dictionary() == ["a": "b=c", "d": ""])
    let twice: TopicCreate = try Self.parse("topic create t --set a=1 --set a=2")
    #expect(throws: (any Error).self) { try twice.set.dictionary() }
  }

  @Test func `several servers are separated by commas`() throws {
    let command: TopicList = try Self.parse("topic list --server a:1,b:2")
    #expect(command.server.addresses == ["a:1", "b:2"])
  }

  @Test(arguments: ["foo", "a:1,foo", "a:x", ":7460", "a:70000", "unix:"])
  func `an address that is none is refused before anything is tried`(address: String) {
    let error = #expect(throws: (any Error).self) {
      let _: TopicList = try Self.parse("topic list --server \(address)")
    }
    #expect(error.map { "\(RootCommand.message(for: $0))".contains("--server") } == true)
  }
}
