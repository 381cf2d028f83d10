// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
public import MemQModel
public import MemQSystem
public import NIOCore
import Synchronization

/// What every part of a process is made with.
public struct ProcessContext: Sendable {
  public let configuration: LoadedConfiguration
  /// The loops connections are spread over.
  public let loops: any EventLoopGroup
  public let clock: any MemQClock
  public let entropy: any Entropy
  public let logger: Logger
  /// Where a part says that it is of no use any more and that only a new start can help.
  public let failure: ProcessFailure

  public init(
    configuration: LoadedConfiguration, loops: any EventLoopGroup,
    clock: any MemQClock = SystemClock(), entropy: any Entropy = SystemEntropy(), logger: Logger,
    failure: ProcessFailure = ProcessFailure()
  ) {
    self.configuration = configuration
    self.loops = loops
    self.clock = clock
    self.entropy = entropy
    self.logger = logger
    self.failure = failure
  }
}

/// The first failure that ends the process: it drains as if told to stop, then exits with status 1, for its supervisor to start it anew.
public final class ProcessFailure: Sendable {
  private struct State {
    var error: MemQError?
    var waiter: CheckedContinuation<Void, Never>?
    var isOver = false
  }

  private let state = Mutex(State())

  public init() {}

  /// Nil: nothing failed so far.
  public var error: MemQError? { self.state.withLock { $0.error } }

  public func fail(_ error: MemQError) {
    self.state.withLock { state in
      state.error = state.error ?? error
      defer { state.waiter = nil }
      return state.waiter
    }?.resume()
  }

  /// Returns when something failed, or the task is cancelled. One waiter.
  func wait() async {
    await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let isOver = self.state.withLock { state in
          if state.error != nil || state.isOver { return true }
          state.waiter = continuation
          return false
        }
        if isOver { continuation.resume() }
      }
    } onCancel: {
      self.state.withLock { state in
        state.isOver = true
        defer { state.waiter = nil }
        return state.waiter
      }?.resume()
    }
  }
}

/// What a process runs.
public protocol ProcessBody: Sendable {
  /// Returns when it serves. Cleans up after itself when it throws. Cancelled when the process is told to stop meanwhile.
  func start() async throws(MemQError)
  /// Stops taking work, lets what runs end for at most `deadline`, closes.
  func stop(deadline: Duration) async
}
