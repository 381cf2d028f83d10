// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc

/// A child process of this very program, spoken to by lines over pipes.
final class Peer: @unchecked Sendable {
  private let pid: pid_t
  private let toChild: Int32
  private let fromChild: Int32
  private var buffered: [UInt8] = []

  init(_ arguments: [String]) {
    var input: [Int32] = [0, 0]
    var output: [Int32] = [0, 0]
    guard pipe(&input) == 0, pipe(&output) == 0 else { fatalError("pipe: \(errno)") }
    for descriptor in input + output { _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC) }
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    posix_spawn_file_actions_adddup2(&actions, input[0], 0)
    posix_spawn_file_actions_adddup2(&actions, output[1], 1)
    defer { posix_spawn_file_actions_destroy(&actions) }
    let program = "/proc/self/exe"
    var argv = ([program] + arguments).map { strdup($0) } + [nil]
    defer { for argument in argv { free(argument) } }
    var pid: pid_t = 0
    guard posix_spawn(&pid, program, &actions, nil, &argv, environ) == 0 else {
      fatalError("cannot start \(arguments)")
    }
    close(input[0])
    close(output[1])
    self.pid = pid
    self.toChild = input[1]
    self.fromChild = output[0]
  }

  func say(_ line: String) {
    let bytes = Array((line + "\n").utf8)
    guard write(self.toChild, bytes, bytes.count) == bytes.count else {
      fatalError("write: \(errno)")
    }
  }

  func hear() -> String {
    while true {
      if let end = self.buffered.firstIndex(of: 10) {
        let line = String(decoding: self.buffered[..<end], as: UTF8.self)
        self.buffered.removeFirst(end + 1)
        return line
      }
      var chunk = [UInt8](repeating: 0, count: 4096)
      let count = read(self.fromChild, &chunk, chunk.count)
      guard count > 0 else { fatalError("the child is gone") }
      self.buffered += chunk[..<count]
    }
  }

  /// Memory of the child that is in use now.
  var residentKiB: Int {
    guard let file = fopen("/proc/\(self.pid)/status", "r") else { fatalError("fopen: \(errno)") }
    defer { fclose(file) }
    var line = [CChar](repeating: 0, count: 256)
    while fgets(&line, Int32(line.count), file) != nil {
      let text = String(
        decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
      guard text.hasPrefix("VmRSS:") else { continue }
      return Int(text.split(separator: " ", omittingEmptySubsequences: true)[1]) ?? 0
    }
    fatalError("no VmRSS")
  }

  /// Ends the child at once.
  func kill() {
    _ = Glibc.kill(self.pid, SIGKILL)
    self.end()
  }

  /// Ends the child by closing its input.
  func end() {
    close(self.toChild)
    close(self.fromChild)
    var status: Int32 = 0
    waitpid(self.pid, &status, 0)
  }
}
