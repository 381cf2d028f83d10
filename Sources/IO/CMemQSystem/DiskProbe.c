// Part of MemQ. SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "CMemQSystem.h"

int memq_open_direct(const char *path) {
  int descriptor;
  do descriptor = open(path, O_RDWR | O_CLOEXEC | O_DIRECT);
  while (descriptor < 0 && errno == EINTR);
  return descriptor < 0 ? -errno : descriptor;
}

int memq_device(int descriptor, unsigned *major_number, unsigned *minor_number, int64_t *file_system) {
  struct stat status;
  struct statfs system;
  if (fstat(descriptor, &status) != 0 || fstatfs(descriptor, &system) != 0) return -errno;
  *major_number = major(status.st_dev);
  *minor_number = minor(status.st_dev);
  *file_system = (int64_t)system.f_type;
  return 0;
}

enum { ENTRIES = 8 };

struct memq_uring {
  int descriptor;
  unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
  struct io_uring_sqe *sqes;
  struct io_uring_cqe *cqes;
  void *sq, *cq;
  size_t sq_bytes, cq_bytes, sqe_bytes;
};

memq_uring *memq_uring_open(int *error) {
  struct io_uring_params parameters;
  memset(&parameters, 0, sizeof parameters);
  int descriptor = (int)syscall(__NR_io_uring_setup, ENTRIES, &parameters);
  if (descriptor < 0) {
    *error = -errno;
    return NULL;
  }
  memq_uring *ring = calloc(1, sizeof *ring);
  if (!ring) {
    close(descriptor);
    *error = -ENOMEM;
    return NULL;
  }
  ring->descriptor = descriptor;
  ring->sq_bytes = parameters.sq_off.array + parameters.sq_entries * sizeof(unsigned);
  ring->cq_bytes = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
  ring->sqe_bytes = parameters.sq_entries * sizeof(struct io_uring_sqe);
  int protection = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
  ring->sq = mmap(NULL, ring->sq_bytes, protection, flags, descriptor, IORING_OFF_SQ_RING);
  ring->cq = mmap(NULL, ring->cq_bytes, protection, flags, descriptor, IORING_OFF_CQ_RING);
  ring->sqes = mmap(NULL, ring->sqe_bytes, protection, flags, descriptor, IORING_OFF_SQES);
  if (ring->sq == MAP_FAILED || ring->cq == MAP_FAILED || ring->sqes == MAP_FAILED) {
    *error = -errno;
    memq_uring_close(ring);
    return NULL;
  }
  char *sq = ring->sq, *cq = ring->cq;
  ring->sq_tail = (unsigned *)(sq + parameters.sq_off.tail);
  ring->sq_mask = (unsigned *)(sq + parameters.sq_off.ring_mask);
  ring->sq_array = (unsigned *)(sq + parameters.sq_off.array);
  ring->cq_head = (unsigned *)(cq + parameters.cq_off.head);
  ring->cq_tail = (unsigned *)(cq + parameters.cq_off.tail);
  ring->cq_mask = (unsigned *)(cq + parameters.cq_off.ring_mask);
  ring->cqes = (struct io_uring_cqe *)(cq + parameters.cq_off.cqes);
  return ring;
}

void memq_uring_close(memq_uring *ring) {
  if (!ring) return;
  if (ring->sq && ring->sq != MAP_FAILED) munmap(ring->sq, ring->sq_bytes);
  if (ring->cq && ring->cq != MAP_FAILED) munmap(ring->cq, ring->cq_bytes);
  if (ring->sqes && (void *)ring->sqes != MAP_FAILED) munmap(ring->sqes, ring->sqe_bytes);
  close(ring->descriptor);
  free(ring);
}

static struct io_uring_sqe *next_entry(memq_uring *ring, unsigned *tail) {
  unsigned index = *tail & *ring->sq_mask;
  struct io_uring_sqe *entry = &ring->sqes[index];
  memset(entry, 0, sizeof *entry);
  ring->sq_array[index] = index;
  ++*tail;
  return entry;
}

int memq_uring_write_sync(memq_uring *ring, int descriptor, const void *bytes, unsigned count, int64_t offset) {
  unsigned tail = *ring->sq_tail;
  struct io_uring_sqe *entry = next_entry(ring, &tail);
  entry->opcode = IORING_OP_WRITE;
  entry->flags = IOSQE_IO_LINK;
  entry->fd = descriptor;
  entry->addr = (uint64_t)(uintptr_t)bytes;
  entry->len = count;
  entry->off = (uint64_t)offset;
  entry->user_data = 1;
  entry = next_entry(ring, &tail);
  entry->opcode = IORING_OP_FSYNC;
  entry->fsync_flags = IORING_FSYNC_DATASYNC;
  entry->fd = descriptor;
  entry->user_data = 2;
  __atomic_store_n(ring->sq_tail, tail, __ATOMIC_RELEASE);
  unsigned submitted = 0, done = 0;
  int result = 0;
  while (done < 2) {
    long taken = syscall(
        __NR_io_uring_enter, ring->descriptor, 2 - submitted, 2 - done, IORING_ENTER_GETEVENTS, NULL, 0);
    if (taken < 0) {
      if (errno == EINTR) continue;
      return -errno;
    }
    submitted += (unsigned)taken;
    unsigned head = *ring->cq_head;
    while (head != __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE)) {
      struct io_uring_cqe *completion = &ring->cqes[head & *ring->cq_mask];
      if (completion->res < 0 && result == 0) result = completion->res;
      if (completion->user_data == 1 && completion->res >= 0 && (unsigned)completion->res != count) result = -EIO;
      head++;
      done++;
    }
    __atomic_store_n(ring->cq_head, head, __ATOMIC_RELEASE);
  }
  return result;
}
