// Part of MemQ. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdint.h>

// The benchmark's own fdatasync and pwritev: this executable's calls come here instead of libc's, and go on to the system.

// Each fdatasync takes at least so long; 0: as long as the disk takes.
void bench_sync_takes(int64_t nanoseconds);

// CPU and wall time of all threads within pwritev and within fdatasync since the start, and how many calls of each.
struct bench_calls {
  int64_t write_cpu_nanoseconds;
  int64_t sync_cpu_nanoseconds;
  int64_t write_nanoseconds;
  int64_t sync_nanoseconds;
  // From the end of a sync to the next write's begin, and from a write's end to the next sync's begin, where they follow each other.
  int64_t sync_to_write_nanoseconds;
  int64_t write_to_sync_nanoseconds;
  int64_t writes;
  int64_t syncs;
};
struct bench_calls bench_calls_now(void);

// CPU time of the calling thread.
int64_t bench_thread_cpu_nanoseconds(void);
// Bytes that the allocator has given out and not got back.
int64_t bench_heap_bytes(void);
// Ends the process at once, as a crash would.
void bench_die(void) __attribute__((noreturn));
