// Part of MemQ. SPDX-License-Identifier: Apache-2.0
//
// Preloaded into a server, makes every fsync and fdatasync take $SLOW_SYNC_NANOSECONDS longer (2,000,000: a small
// cloud disk). $SLOW_SYNC_PATH: only of files whose path contains it. For tests and benchmarks on machines whose own
// disk only seems to sync.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void pause_for(int fd) {
  const char *text = getenv("SLOW_SYNC_NANOSECONDS"), *wanted = getenv("SLOW_SYNC_PATH");
  long long nanoseconds = text ? atoll(text) : 0;
  if (nanoseconds <= 0) return;
  if (wanted) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return;
    path[length] = 0;
    if (!strstr(path, wanted)) return;
  }
  struct timespec rest = {nanoseconds / 1000000000, nanoseconds % 1000000000};
  while (nanosleep(&rest, &rest) != 0) {
  }
}

int fsync(int fd) {
  static int (*real)(int);
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  pause_for(fd);
  return real(fd);
}

int fdatasync(int fd) {
  static int (*real)(int);
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
  pause_for(fd);
  return real(fd);
}
