// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
public import MemQModel
public import MemQSystem
public import NIOCore

/// What every part of a process is made with.
public struct ProcessContext: Sendable {
  public let configuration: LoadedConfiguration
  /// The loops connections are spread over.
  public let loops: any EventLoopGroup
  public let clock: any MemQClock
  public let entropy: any Entropy
  public let logger: Logger

  public init(
    configuration: LoadedConfiguration, loops: any EventLoopGroup,
    clock: any MemQClock = SystemClock(), entropy: any Entropy = SystemEntropy(), logger: Logger
  ) {
    self.configuration = configuration
    self.loops = loops
    self.clock = clock
    self.entropy = entropy
    self.logger = logger
  }
}

/// What a process runs.
public protocol ProcessBody: Sendable {
  /// Returns when it serves. Cleans up after itself when it throws. Cancelled when the process is told to stop meanwhile.
  func start() async throws(MemQError)
  /// Stops taking work, lets what runs end for at most `deadline`, closes.
  func stop(deadline: Duration) async
}
