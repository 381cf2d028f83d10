// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CMemQSystem
import Glibc

/// What the process's allocator does with freed memory.
public enum MemoryAllocator {
  /// Freed memory above it goes back to the system, for each of the allocator's arenas (at most eight per core, in use: one per busy
  /// thread). 32 MiB: a few messages of the largest size, and what a loop reads ahead.
  public static let keptBytesMax: Int32 = 32 << 20

  /// Keeps freed memory up to ``keptBytesMax`` for the next use. Call it once, before threads start.
  ///
  /// Bulk transfer allocates and frees read buffers of 256 KiB thousands of times a second. With glibc's defaults these go back to the
  /// system and come again page by page: 70,000 page faults a second at 4 GB/s, a tenth of the CPU (docs/performance.md).
  public static func keepFreedMemory() {
    // Setting them turns off glibc's own adjustment. Above half of an arena's heap (64 MiB) glibc maps anyway.
    memq_keep_freed_memory(Self.keptBytesMax)
  }

  /// Freed pieces of one size that a thread keeps for itself. glibc's default, 7, is less than one turn of a loop frees: with 64 calls
  /// in flight the rest goes through the arena, a sixth of a call's CPU (docs/performance.md).
  public static let keptPiecesMax = 128
  private static let tunables = "GLIBC_TUNABLES"
  /// Set for the second start, so that there is no third.
  private static let restarted = "STARTED_AGAIN_BY_MEMQ"
  private static let keptPieces = "glibc.malloc.tcache_count"

  /// Has each thread keep up to ``keptPiecesMax`` freed pieces of each size. glibc takes that from the environment alone, when a program
  /// starts: so this one starts once more, in the same process, and only then returns. Call it first, on the only thread, before anything is open.
  ///
  /// A value that the environment states already stands. Where the program can't be started again it goes on as it is.
  public static func keepFreedPieces() {
    let stated = getenv(Self.tunables).map { String(cString: $0) } ?? ""
    // With raised privileges glibc takes nothing from the environment, and takes it away.
    guard !stated.contains(Self.keptPieces), memq_is_privileged() == 0,
      getenv(Self.restarted) == nil
    else { return }
    var path = [CChar](repeating: 0, count: Int(PATH_MAX))
    guard readlink("/proc/self/exe", &path, path.count - 1) > 0 else { return }
    let value = (stated.isEmpty ? "" : stated + ":") + "\(Self.keptPieces)=\(Self.keptPiecesMax)"
    setenv(Self.tunables, value, 1)
    setenv(Self.restarted, "1", 1)
    execv(path, CommandLine.unsafeArgv)
    unsetenv(Self.restarted)
    // Not done: what this process starts should not believe it was.
    if stated.isEmpty { unsetenv(Self.tunables) } else { setenv(Self.tunables, stated, 1) }
  }
}
