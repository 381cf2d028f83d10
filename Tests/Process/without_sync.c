// Part of MemQ. SPDX-License-Identifier: Apache-2.0
//
// Preloaded into a server, makes fsync and fdatasync of files whose path contains $WITHOUT_SYNC do nothing:
// shows that the power-cut test notices a missing sync.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int skipped(int fd) {
  const char *wanted = getenv("WITHOUT_SYNC");
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (!wanted || length <= 0) return 0;
  path[length] = 0;
  return strstr(path, wanted) != NULL;
}

int fsync(int fd) {
  static int (*real)(int);
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  return skipped(fd) ? 0 : real(fd);
}

int fdatasync(int fd) {
  static int (*real)(int);
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
  return skipped(fd) ? 0 : real(fd);
}
