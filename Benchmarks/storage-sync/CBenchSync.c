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

static int64_t now(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

void bench_sync_takes(int64_t nanoseconds) { atomic_store(&sync_nanoseconds, nanoseconds); }

struct bench_calls bench_calls_now(void) {
  struct bench_calls calls = {write_cpu, sync_cpu, writes, syncs};
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
  int64_t end = now(CLOCK_MONOTONIC) + takes;
  int result = (int)syscall(SYS_fdatasync, descriptor);
  if (result == 0 && takes > 0) {
    // A disk's completion comes when it comes, not up to 50 us later.
    prctl(PR_SET_TIMERSLACK, 1);
    struct timespec until = {end / 1000000000, end % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0) {
    }
  }
  sync_cpu += now(CLOCK_THREAD_CPUTIME_ID) - cpu;
  syncs += 1;
  return result;
}

ssize_t pwritev(int descriptor, const struct iovec *pieces, int count, off_t offset) {
  int64_t cpu = now(CLOCK_THREAD_CPUTIME_ID);
  ssize_t result = syscall(
      SYS_pwritev, descriptor, pieces, count, (unsigned long)offset,
      (unsigned long)((uint64_t)offset >> 32));
  write_cpu += now(CLOCK_THREAD_CPUTIME_ID) - cpu;
  writes += 1;
  return result;
}
