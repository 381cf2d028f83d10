// Part of MemQ. SPDX-License-Identifier: Apache-2.0
//
// Preloaded into a server, makes file calls fail as the file $FAULTY_DISK says: an array of `struct fault`, mapped and
// shared, so that a test switches faults on and off and sees how many were had while the server runs.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

struct fault {
  char call[16];   // write, sync, read
  char path[96];   // what the file's path contains
  int32_t number;  // errno; 0: the call does less than it was asked for
  int32_t left;    // how often still; negative: for ever
  int32_t had;     // how often it happened
  int32_t bytes;   // at most so many, where the number is 0
};
enum { FAULTS = 8 };

static struct fault *faults(void) {
  static struct fault *mapped;
  if (mapped) return mapped;
  const char *path = getenv("FAULTY_DISK");
  int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (fd < 0) return NULL;
  void *memory = mmap(NULL, FAULTS * sizeof(struct fault), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (memory == MAP_FAILED) return NULL;
  return mapped = memory;
}

static struct fault *next(const char *call, int fd) {
  struct fault *all = faults();
  char link[64], path[4096] = "";
  for (int i = 0; all && i < FAULTS; i++) {
    struct fault *fault = &all[i];
    if (strcmp(fault->call, call) || !__atomic_load_n(&fault->left, __ATOMIC_ACQUIRE)) continue;
    if (!path[0]) {
      snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
      ssize_t length = readlink(link, path, sizeof path - 1);
      if (length <= 0) return NULL;
      path[length] = 0;
    }
    if (!strstr(path, fault->path)) continue;
    int32_t left = __atomic_load_n(&fault->left, __ATOMIC_ACQUIRE);
    while (left > 0 && !__atomic_compare_exchange_n(&fault->left, &left, left - 1, 0, __ATOMIC_ACQ_REL,
                                                    __ATOMIC_ACQUIRE)) {
    }
    if (!left) continue;
    __atomic_add_fetch(&fault->had, 1, __ATOMIC_ACQ_REL);
    return fault;
  }
  return NULL;
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL(fault) \
  do { \
    errno = (fault)->number; \
    return -1; \
  } while (0)

int fsync(int fd) {
  REAL(fsync);
  struct fault *fault = next("sync", fd);
  if (fault) FAIL(fault);
  return real(fd);
}

int fdatasync(int fd) {
  REAL(fdatasync);
  struct fault *fault = next("sync", fd);
  if (fault) FAIL(fault);
  return real(fd);
}

static size_t clipped(const struct iovec *pieces, int count, size_t most, struct iovec *out) {
  size_t used = 0, total = 0;
  for (int i = 0; i < count && total < most && used < 64; i++) {
    out[used] = pieces[i];
    if (out[used].iov_len > most - total) out[used].iov_len = most - total;
    total += out[used++].iov_len;
  }
  return used;
}

#define PWRITEV(name, offset_type) \
  ssize_t name(int fd, const struct iovec *pieces, int count, offset_type offset) { \
    REAL(name); \
    struct fault *fault = next("write", fd); \
    if (fault && fault->number) FAIL(fault); \
    if (!fault) return real(fd, pieces, count, offset); \
    struct iovec some[64]; \
    return real(fd, some, clipped(pieces, count, fault->bytes, some), offset); \
  }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

#define PREAD(name, offset_type) \
  ssize_t name(int fd, void *bytes, size_t count, offset_type offset) { \
    REAL(name); \
    struct fault *fault = next("read", fd); \
    if (fault && fault->number) FAIL(fault); \
    return real(fd, bytes, fault && (size_t)fault->bytes < count ? (size_t)fault->bytes : count, offset); \
  }
PREAD(pread, off_t)
PREAD(pread64, off64_t)
