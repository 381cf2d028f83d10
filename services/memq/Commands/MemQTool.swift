// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import MemQClient
import MemQModel
import MemQSystem
import MemQTelemetry

/// The `memq` command line.
///
/// Exit status: 0 done, 1 error, 2 usage, 3 refused by a verdict.
public enum MemQTool {
  /// Runs one command.
  ///
  /// - Parameters:
  ///   - arguments: without the program's name.
  ///   - serve: gets the arguments of `serve`, and those of `config` with that word in front.
  /// - Returns: the exit status.
  public static func main(_ arguments: [String], serve: ServeProgram) async -> Int32 {
    // Who reads our output may go away: that is an error of the write, not the end of us.
    signal(SIGPIPE, SIG_IGN)
    MemoryAllocator.keepFreedMemory()
    switch arguments.first {
    case "serve": return await serve(Array(arguments.dropFirst()))
    case "config" where ["check", "print"].contains(arguments.dropFirst().first):
      return await serve(arguments)
    default: break
    }
    do {
      var command = try RootCommand.parseAsRoot(arguments)
      if var command = command as? any AsyncParsableCommand {
        try await command.run()
      } else {
        try command.run()
      }
      try await Output.standard.flush()
      return 0
    } catch {
      try? await Output.standard.flush()
      return await Self.report(error)
    }
  }

  /// Says what went wrong.
  private static func report(_ error: any Error) async -> Int32 {
    switch error {
    case is OutputClosed: return 0
    case let code as ExitCode: return code.rawValue
    case let error as MemQError:
      Output.note("memq: \(error)")
      return error.isVerdict ? 3 : 1
    default: break
    }
    let text = RootCommand.fullMessage(for: error)
    switch RootCommand.exitCode(for: error) {
    case .success:
      try? await Output.standard.line(text)
      try? await Output.standard.flush()
      return 0
    case .validationFailure:
      Output.note(text)
      return 2
    default:
      Output.note("memq: \(text)")
      return 1
    }
  }
}

struct RootCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "memq",
    abstract: "Publish/subscribe and file transport: server and command line in one.",
    discussion: """
      The server is 127.0.0.1:7460 unless --server or MEMQ_SERVER names another.
      Exit status: 0 done, 1 error, 2 usage, 3 refused by a verdict.
      """,
    version: "memq \(BuildInfo.version) (\(BuildInfo.configuration))",
    subcommands: [
      ServeCommand.self, TopicCommand.self, ProduceCommand.self, ConsumeCommand.self,
      FileCommand.self, GroupCommand.self, ClusterCommand.self, UploadCommand.self,
      ScanCommand.self, QuarantineCommand.self, RebalanceCommand.self, LogCommand.self,
      BenchCommand.self,
      ConfigCommand.self, DoctorCommand.self, CompletionCommand.self,
    ])
}
