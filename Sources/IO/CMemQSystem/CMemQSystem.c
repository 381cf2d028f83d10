// Part of MemQ. SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE

#include "CMemQSystem.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef IOV_MAX
#define IOV_MAX 1024
#endif

enum { HUGE_PAGE_BYTES = 2 << 20 };

int64_t memq_pwritev_all(int descriptor, struct iovec *pieces, size_t count, int64_t offset) {
  int64_t calls = 0;
  while (count > 0) {
    int batch = count > IOV_MAX ? IOV_MAX : (int)count;
    ssize_t written = pwritev(descriptor, pieces, batch, offset);
    if (written < 0) {
      if (errno == EINTR) continue;
      return -errno;
    }
    calls += 1;
    offset += written;
    size_t left = (size_t)written;
    while (count > 0 && left >= pieces->iov_len) {
      left -= pieces->iov_len;
      pieces += 1;
      count -= 1;
    }
    if (left > 0) {
      pieces->iov_base = (char *)pieces->iov_base + left;
      pieces->iov_len -= left;
    }
  }
  return calls;
}

int64_t memq_pwritev_staged(int descriptor, const struct iovec *pieces, size_t count, int64_t offset, void *staging, size_t size) {
  int64_t calls = 0;
  size_t piece = 0, taken = 0;
  while (piece < count) {
    size_t filled = 0;
    while (piece < count && filled < size) {
      size_t left = pieces[piece].iov_len - taken;
      size_t step = left < size - filled ? left : size - filled;
      memcpy((char *)staging + filled, (const char *)pieces[piece].iov_base + taken, step);
      filled += step;
      taken += step;
      if (taken == pieces[piece].iov_len) {
        piece += 1;
        taken = 0;
      }
    }
    size_t done = 0;
    while (done < filled) {
      struct iovec block = {.iov_base = (char *)staging + done, .iov_len = filled - done};
      ssize_t written = pwritev(descriptor, &block, 1, offset);
      if (written < 0) {
        if (errno == EINTR) continue;
        return -errno;
      }
      // A piece of a block: the device failed in the middle, and the rest could not be written as it has to be.
      if (written == 0 || written % 512 != 0) return -EIO;
      calls += 1;
      offset += written;
      done += (size_t)written;
    }
  }
  return calls;
}

void *memq_staging(size_t size) {
  void *memory = mmap(NULL, size + HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return NULL;
  uintptr_t start = ((uintptr_t)memory + HUGE_PAGE_BYTES - 1) & ~(uintptr_t)(HUGE_PAGE_BYTES - 1);
  size_t before = start - (uintptr_t)memory, after = HUGE_PAGE_BYTES - before;
  if (before > 0) munmap(memory, before);
  if (after > 0) munmap((void *)(start + size), after);
  madvise((void *)start, size, MADV_HUGEPAGE);
  return (void *)start;
}

void memq_staging_free(void *memory, size_t size) { munmap(memory, size); }

int64_t memq_pread_all(int descriptor, void *bytes, size_t count, int64_t offset) {
  size_t done = 0;
  while (done < count) {
    ssize_t got = pread(descriptor, (char *)bytes + done, count - done, offset + (int64_t)done);
    if (got < 0) {
      if (errno == EINTR) continue;
      return -errno;
    }
    if (got == 0) break;
    done += (size_t)got;
  }
  return (int64_t)done;
}

int memq_allocate(int descriptor, int64_t count) {
  for (;;) {
    if (fallocate(descriptor, 0, 0, count) == 0) return 0;
    if (errno == EINTR) continue;
    if (errno != EOPNOTSUPP) return -errno;
    // The file system can't reserve: posix_fallocate writes instead.
    int result = posix_fallocate(descriptor, 0, count);
    if (result != EINTR) return -result;
  }
}

int memq_fdatasync(int descriptor) {
  // Not retried on any other error: after a failed sync the kernel may have dropped the pages.
  while (fdatasync(descriptor) != 0) {
    if (errno != EINTR) return -errno;
  }
  return 0;
}

int memq_fsync(int descriptor) {
  while (fsync(descriptor) != 0) {
    if (errno != EINTR) return -errno;
  }
  return 0;
}

int memq_try_lock(int descriptor) {
  while (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EINTR) return -errno;
  }
  return 0;
}

int64_t memq_available_bytes(const char *path) {
  struct statvfs status;
  while (statvfs(path, &status) != 0) {
    if (errno != EINTR) return -errno;
  }
  return (int64_t)status.f_bavail * (int64_t)status.f_frsize;
}

int memq_open(const char *path, int flags, unsigned mode) {
  for (;;) {
    int descriptor = open(path, flags | O_CLOEXEC, mode);
    if (descriptor >= 0) return descriptor;
    if (errno != EINTR) return -errno;
  }
}

int memq_shutdown_file_system(int descriptor) {
  // FS_IOC_SHUTDOWN with FS_SHUTDOWN_FLAGS_NOLOGFLUSH, the same number on ext4 and xfs.
  uint32_t flags = 2;
  return ioctl(descriptor, 0x8004587dUL, &flags) == 0 ? 0 : -errno;
}

void memq_name_thread(uint64_t thread, const char *name) {
  pthread_setname_np((pthread_t)thread, name);
}

void memq_yield_thread(int niceness) {
  id_t thread = (id_t)syscall(SYS_gettid);
  (void)setpriority(PRIO_PROCESS, thread, getpriority(PRIO_PROCESS, thread) + niceness);
#ifdef SYS_ioprio_set
  // IOPRIO_WHO_PROCESS; IOPRIO_CLASS_BE, level 7.
  (void)syscall(SYS_ioprio_set, 1, (int)thread, (2 << 13) | 7);
#endif
}

void memq_keep_freed_memory(int bytes) {
  mallopt(M_TRIM_THRESHOLD, bytes);
  mallopt(M_MMAP_THRESHOLD, bytes);
}

int memq_is_privileged(void) { return getauxval(AT_SECURE) != 0; }
