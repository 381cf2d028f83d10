// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CMemQSystem

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
}
