// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser

/// Runs the server in this process: `serve`'s arguments without the word itself; the exit status.
public typealias ServeProgram = @Sendable ([String]) async -> Int32

/// `serve` and `config` have flags of their own, one per configuration key: `MemQTool` hands them to the server's program. These two exist
/// for the list of commands and for completion.
struct ServeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "serve",
    abstract: "Run MemQ: all six services in this process. memq serve --help lists its flags.")

  @Argument(parsing: .captureForPassthrough, help: "See memq serve --help.")
  var arguments: [String] = []
}

struct ConfigCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "config",
    abstract:
      "Check or print the configuration of memq serve: memq config check|print [flags of serve].")

  @Argument(parsing: .captureForPassthrough, help: "check or print, then flags of serve.")
  var arguments: [String] = []
}
