// Part of MemQ. SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE

#include "CBenchSync.h"

#include <malloc.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static _Atomic int64_t sync_nanoseconds;
static _Atomic int64_t write_cpu, sync_cpu, writes, syncs;
static _Atomic int64_t write_wall, sync_wall, sync_to_write, write_to_sync;
// When the last call of each ended.
static _Atomic int64_t write_end, sync_end;

static int64_t now(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

void bench_sync_takes(int64_t nanoseconds) { atomic_store(&sync_nanoseconds, nanoseconds); }

struct bench_calls bench_calls_now(void) {
  struct bench_calls calls = {write_cpu,     sync_cpu,      write_wall, sync_wall,
                              sync_to_write, write_to_sync, writes,     syncs};
  return calls;
}

int64_t bench_thread_cpu_nanoseconds(void) { return now(CLOCK_THREAD_CPUTIME_ID); }

int64_t bench_heap_bytes(void) {
  struct mallinfo2 info = mallinfo2();
  return (int64_t)(info.uordblks + info.hblkhd);
}

void bench_die(void) { _exit(0); }

int fdatasync(int descriptor) {
  int64_t cpu = now(CLOCK_THREAD_CPUTIME_ID);
  int64_t takes = atomic_load(&sync_nanoseconds);
  int64_t start = now(CLOCK_MONOTONIC);
  if (write_end > sync_end) write_to_sync += start - write_end;
  int64_t end = start + takes;
  int result = (int)syscall(SYS_fdatasync, descriptor);
  if (result == 0 && takes > 0) {
    // A disk's completion comes when it comes, not up to 50 us later.
    prctl(PR_SET_TIMERSLACK, 1);
    struct timespec until = {end / 1000000000, end % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0) {
    }
  }
  sync_cpu += now(CLOCK_THREAD_CPUTIME_ID) - cpu;
  sync_end = now(CLOCK_MONOTONIC);
  sync_wall += sync_end - start;
  syncs += 1;
  return result;
}

ssize_t pwritev(int descriptor, const struct iovec *pieces, int count, off_t offset) {
  int64_t cpu = now(CLOCK_THREAD_CPUTIME_ID);
  int64_t start = now(CLOCK_MONOTONIC);
  if (sync_end > write_end) sync_to_write += start - sync_end;
  ssize_t result = syscall(
      SYS_pwritev, descriptor, pieces, count, (unsigned long)offset,
      (unsigned long)((uint64_t)offset >> 32));
  write_cpu += now(CLOCK_THREAD_CPUTIME_ID) - cpu;
  write_end = now(CLOCK_MONOTONIC);
  write_wall += write_end - start;
  writes += 1;
  return result;
}
