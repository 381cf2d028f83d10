// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import MemQAPI
import MemQClient
import MemQModel
import MemQSystem
import NIOCore
import SwiftProtobuf
import Synchronization
import Testing

@Suite(.timeLimit(.minutes(5))) struct FileClientTests {
  static func bytes(_ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 2_654_435_761 >> 7) }
  }

  static func withFolder<R>(_ body: (URL) async throws -> R) async throws -> R {
    let folder = FileManager.default.temporaryDirectory
      .appendingPathComponent("memq-client-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    return try await body(folder)
  }

  @Test(arguments: [0, 1, 300_000, 524_288, 3_000_001])
  func `a file goes in and comes out byte for byte`(size: Int) async throws {
    try await Self.withFolder { folder in
      let files = FakeServer().client().files()
      let bytes = Self.bytes(size)
      let source = folder.appendingPathComponent("source")
      try Data(bytes).write(to: source)
      let info = try await files.put(source.path, to: FakeServer.topic, as: "a/b")
      #expect(info.size == Int64(size) && info.sha256 == SHA256.digest(of: bytes))
      let target = folder.appendingPathComponent("target")
      try await files.get(FakeServer.topic, "a/b", toFile: target.path)
      #expect([UInt8](try Data(contentsOf: target)) == bytes)
      let left = try FileManager.default.contentsOfDirectory(atPath: folder.path)
      #expect(left.count == 2)
    }
  }

  @Test func `a broken put goes on at what is durable and the digest is right`() async throws {
    let server = FakeServer(putBreak: { stream in stream < 4 ? stream * 2 + 1 : nil })
    let bytes = Self.bytes(8 << 20)
    let info = try await server.client().files().put(bytes: bytes, to: FakeServer.topic, as: "f")
    #expect(info.sha256 == SHA256.digest(of: bytes))
    #expect(server.state.withLock { $0.putStreams } == 4)
    #expect(server.state.withLock { $0.files["f"]?.bytes } == bytes)
  }

  @Test func `a broken get goes on where it stood`() async throws {
    let server = FakeServer(getBreak: { stream in stream < 5 ? stream : nil })
    let files = server.client().files()
    let bytes = Self.bytes(2_000_000)
    try await files.put(bytes: bytes, to: FakeServer.topic, as: "f")
    var got: [UInt8] = []
    try await files.get(FakeServer.topic, "f") { got += Array(buffer: $0) }
    #expect(got == bytes)
    #expect(server.state.withLock { $0.getStreams } == 5)
    var part: [UInt8] = []
    let range = FileClient.ByteRange(offset: 123_456, length: 777_777)
    try await files.get(FakeServer.topic, "f", range: range) { part += Array(buffer: $0) }
    #expect(part == Array(bytes[123_456..<(123_456 + 777_777)]))
  }

  @Test func `a get goes to the longest name a file system takes`() async throws {
    try await Self.withFolder { folder in
      let files = FakeServer().client().files()
      try await files.put(bytes: [1], to: FakeServer.topic, as: "f")
      let name = String(repeating: "☃", count: 85)
      try await files.get(
        FakeServer.topic, "f", toFile: folder.appendingPathComponent(name).path)
      #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == [name])
    }
  }

  @Test func `a get that fails leaves nothing behind`() async throws {
    try await Self.withFolder { folder in
      let files = FakeServer().client().files()
      let target = folder.appendingPathComponent("target").path
      let error = await #expect(throws: MemQError.self) {
        try await files.get(FakeServer.topic, "nothing", toFile: target)
      }
      #expect(error?.code == .fileNotFound)
      let left = try FileManager.default.contentsOfDirectory(atPath: folder.path)
      #expect(left.isEmpty)
    }
  }

  @Test func `a folder is put under relative names, links skipped, refusals told`() async throws {
    try await Self.withFolder { folder in
      let manager = FileManager.default
      try manager.createDirectory(
        at: folder.appendingPathComponent("früh/☃"), withIntermediateDirectories: true)
      try Data().write(to: folder.appendingPathComponent("empty"))
      try Data([0, 1, 2]).write(to: folder.appendingPathComponent("früh/☃/näme with space"))
      try Data("malware".utf8).write(to: folder.appendingPathComponent("bad"))
      for number in 0..<100 {
        try Data("\(number)".utf8).write(to: folder.appendingPathComponent("file-\(number)"))
      }
      try manager.createSymbolicLink(
        atPath: folder.appendingPathComponent("link").path, withDestinationPath: "empty")
      let server = FakeServer()
      let skipped = Mutex<[String]>([])
      let refused = Mutex<[String]>([])
      let sum = try await server.client().files().putFolder(
        folder.path + "/", to: FakeServer.topic, concurrency: 8
      ) { event in
        switch event {
        case .skipped(let name, _): skipped.withLock { $0.append(name) }
        case .failed(let name, let error):
          #expect(error.code == .infected)
          refused.withLock { $0.append(name) }
        case .published: break
        }
      }
      #expect(sum.published == 102 && sum.refused == 1 && sum.skipped == 1 && sum.failed == 0)
      #expect(skipped.withLock { $0 } == ["link"] && refused.withLock { $0 } == ["bad"])
      let names = server.state.withLock { Set($0.files.keys) }
      #expect(names == Set(["empty", "früh/☃/näme with space"] + (0..<100).map { "file-\($0)" }))
    }
  }

  @Test func `a folder cannot be put as a file`() async throws {
    try await Self.withFolder { folder in
      let files = FakeServer().client().files()
      let error = await #expect(throws: MemQError.self) {
        try await files.put(folder.path, to: FakeServer.topic, as: "x")
      }
      #expect(error?.code == .invalidArgument && error?.subject == folder.path)
    }
  }

  @Test func `a file that is not there is said in words, without the system's number`() async {
    let files = FakeServer().client().files()
    let error = await #expect(throws: MemQError.self) {
      try await files.put("/nowhere/at all", to: FakeServer.topic, as: "x")
    }
    #expect(error?.subject == "/nowhere/at all" && error?.actual == nil)
    #expect(error?.message.contains("No such file or directory") == true)
  }

  @Test func `a put and a get whose server stands still are tried on another stream`() async throws
  {
    let server = FakeServer(stalls: { $0 == 1 })
    let files = server.client().files()
    // A little more than the windows hold: the put has to wait for the server.
    let bytes = Self.bytes(12 << 20)
    var options = FileClient.PutOptions()
    options.stallTimeout = .seconds(2)
    try await files.put(bytes: bytes, to: FakeServer.topic, as: "f", options: options)
    // A busy machine may make the second stand still as well.
    #expect(server.state.withLock { $0.putStreams } >= 2)
    var count = 0
    try await files.get(FakeServer.topic, "f", stallTimeout: .seconds(2)) {
      count += $0.readableBytes
    }
    #expect(count == bytes.count && server.state.withLock { $0.getStreams } >= 2)
  }

  @Test func `a get that stands still for good ends with an error`() async throws {
    let server = FakeServer(stalls: { _ in true })
    server.state.withLock { $0.files["f"] = (.with { $0.size = 1 }, [1]) }
    let files = server.client().files()
    let error = await #expect(throws: MemQError.self) {
      try await files.get(FakeServer.topic, "f", resumeTimeout: .seconds(2)) { _ in }
    }
    #expect(error?.code == .deadlineExceeded)
  }

  @Test func `a pipe is refused as a file instead of waiting for a writer`() async throws {
    try await Self.withFolder { folder in
      let path = folder.appendingPathComponent("pipe").path
      #expect(mkfifo(path, 0o600) == 0)
      let error = await #expect(throws: MemQError.self) {
        try await FakeServer().client().files().put(path, to: FakeServer.topic, as: "x")
      }
      #expect(error?.code == .invalidArgument && error?.subject == path)
    }
  }
}
