// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQModel
import MemQSystem

/// Waits where a process is out of descriptors or memory: that says nothing of its disk, and passes. A write or a sync that fails is not
/// tried again, nor anything that the device itself refuses. Blocks: on a volume's own threads only.
struct TransientPatience: Sendable {
  /// A process that has no descriptor for so long is of no use.
  static let limit: Duration = .seconds(60)
  private static let pauseMicroseconds: UInt32 = 5_000

  let clock: any MemQClock
  let logger: Logger
  /// Which volume, for the log.
  let volume: String

  /// - Parameter isEnded: nobody waits for it any more.
  /// - Throws: what `body` does; one that is transient after `limit`.
  func run<R>(
    isEnded: () -> Bool = { false }, _ body: () throws(FileError) -> R
  ) throws(FileError) -> R {
    try self.run(while: { (error: FileError) in error.isTransient && !isEnded() }, body)
  }

  /// As `run`, of what an opening does.
  ///
  /// - Throws: retriable `.resourceExhausted` after `limit`, which is no damage; else `.volumeFailed`.
  func open<R>(_ body: () throws(FileError) -> R) throws(MemQError) -> R {
    do throws(FileError) {
      return try self.run(body)
    } catch {
      throw error.volumeError
    }
  }

  func run<R, Failure: Error>(
    while passes: (Failure) -> Bool, _ body: () throws(Failure) -> R
  ) throws(Failure) -> R {
    let end = self.clock.monotonic + Self.limit
    var isLogged = false
    while true {
      do throws(Failure) {
        return try body()
      } catch {
        guard passes(error), self.clock.monotonic < end else { throw error }
        if !isLogged {
          self.logger.error(
            "A file of the volume can't be opened or read for now; the volume waits",
            metadata: ["volume": "\(self.volume)", "error": "\(error)"])
        }
        isLogged = true
      }
      usleep(Self.pauseMicroseconds)
    }
  }
}

extension FileError {
  /// What it says of a volume: a process that is out of descriptors or memory says nothing of its disk.
  var volumeError: MemQError {
    self.memqError(self.isTransient ? .resourceExhausted : .volumeFailed)
  }
}
