// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import Logging
import MemQMetadata
import MemQModel
@testable import MemQStore
import MemQSystem
import Synchronization

/// A real etcd of one or more members on loopback ports, with its data in a temporary folder. It ends with the test's process at the latest.
final class TestEtcd: Sendable {
  private struct Member {
    var clientPort: Int
    var peerPort: Int
    /// Of the shell that watches over it: closing its input ends both.
    var shell: Process?
    var input: Pipe?
    var pid: Int32 = 0
  }

  private let folder: String
  private let extra: [String]
  private let members: Mutex<[Member]>
  let endpoints: [String]

  private init(_ count: Int, extra: [String]) throws {
    let base = ProcessInfo.processInfo.environment["TMPDIR"] ?? "/tmp"
    var template = Array("\(base)/memq-etcd-XXXXXX".utf8CString)
    self.folder = template.withUnsafeMutableBufferPointer {
      String(cString: mkdtemp($0.baseAddress!))
    }
    self.extra = extra
    let ports = try Self.freePorts(2 * count)
    let members = (0..<count).map {
      Member(clientPort: ports[2 * $0], peerPort: ports[2 * $0 + 1])
    }
    self.endpoints = members.map { "127.0.0.1:\($0.clientPort)" }
    self.members = Mutex(members)
  }

  deinit {
    for member in self.members.withLock({ $0 }) {
      kill(member.pid, SIGKILL)
      try? member.input?.fileHandleForWriting.close()
      member.shell?.waitUntilExit()
    }
    try? FileManager.default.removeItem(atPath: self.folder)
  }

  /// - Throws: also when etcd is not installed (`scripts/setup`).
  static func start(_ count: Int = 1, extra: [String] = []) async throws -> TestEtcd {
    let etcd = try TestEtcd(count, extra: extra)
    for index in 0..<count { try etcd.run(index) }
    return etcd
  }

  /// One for all tests that don't harm it.
  static func shared() async throws -> TestEtcd { try await sharing.value }
  private static let sharing = Task { try await TestEtcd.start() }

  private static func freePorts(_ count: Int) throws -> [Int] {
    var sockets: [Int32] = []
    defer { for socket in sockets { close(socket) } }
    return try (0..<count).map { _ in
      let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
      sockets.append(descriptor)
      var address = sockaddr_in()
      address.sin_family = sa_family_t(AF_INET)
      address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
      var length = socklen_t(MemoryLayout<sockaddr_in>.size)
      let isBound = withUnsafePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          bind(descriptor, $0, length) == 0
        }
      }
      let isNamed = withUnsafeMutablePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          getsockname(descriptor, $0, &length) == 0
        }
      }
      guard isBound, isNamed else { throw MemQError(.internalError, "no free port") }
      return Int(UInt16(bigEndian: address.sin_port))
    }
  }

  // MARK: Members

  /// Starts a member, again with its data when it ran before.
  func run(_ index: Int) throws {
    let members = self.members.withLock { $0 }
    let member = members[index]
    let peers = members.enumerated().map { "m\($0)=http://127.0.0.1:\($1.peerPort)" }
    let client = "http://127.0.0.1:\(member.clientPort)"
    let peer = "http://127.0.0.1:\(member.peerPort)"
    let shell = Process()
    shell.executableURL = URL(filePath: "/bin/sh")
    shell.arguments =
      [
        "-c",
        "etcd \"$@\" </dev/null >>\(self.folder)/log 2>&1 & p=$!; echo $p; read _; kill -9 $p 2>/dev/null",
        "sh", "--name", "m\(index)", "--data-dir", "\(self.folder)/m\(index)",
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
        "--initial-cluster", peers.joined(separator: ","), "--initial-cluster-token", self.folder,
        "--log-level", "warn",
      ] + self.extra
    let (input, output) = (Pipe(), Pipe())
    shell.standardInput = input
    shell.standardOutput = output
    try shell.run()
    let line = String(decoding: output.fileHandleForReading.availableData, as: UTF8.self)
    guard let pid = Int32(line.trimmingCharacters(in: .whitespacesAndNewlines)) else {
      throw MemQError(.internalError, "etcd did not start: \(line)")
    }
    self.members.withLock {
      $0[index].shell = shell
      $0[index].input = input
      $0[index].pid = pid
    }
  }

  /// kill -9.
  func kill9(_ index: Int) {
    let member = self.members.withLock { $0[index] }
    kill(member.pid, SIGKILL)
    try? member.input?.fileHandleForWriting.close()
    member.shell?.waitUntilExit()
  }

  func stop(_ index: Int) { kill(self.members.withLock { $0[index].pid }, SIGSTOP) }
  func goOn(_ index: Int) { kill(self.members.withLock { $0[index].pid }, SIGCONT) }

  // MARK: Stores

  /// A store under a prefix of its own, or a given one.
  func store(
    prefix: String = "/test/\(UUID().uuidString)",
    _ change: (inout EtcdStore.Configuration) -> Void = { _ in }
  ) async throws -> EtcdStore {
    var configuration = EtcdStore.Configuration(
      endpoints: self.endpoints, prefix: prefix, name: UUID().uuidString)
    configuration.openTimeout = .seconds(60)
    configuration.operationTimeout = .seconds(30)
    change(&configuration)
    var logger = Logger(label: "test")
    logger.logLevel = .error
    return try await EtcdStore.open(configuration, group: TestMetadata.group, logger: logger)
  }
}
