// Part of MemQ. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

// Calls that Swift can't make cleanly. Each retries EINTR and returns a negative errno instead of setting it.

// Writes all of the pieces at the offset, in as many calls as the kernel needs. Changes the pieces.
// Returns the number of system calls made.
int64_t memq_pwritev_all(int descriptor, struct iovec *pieces, size_t count, int64_t offset);

// As above, through `staging` (`size` bytes), `size` at a time: for descriptors with O_DIRECT. The offset, the sum of the pieces, `size` and the
// address of `staging` are whole blocks. Leaves the pieces as they are. -EIO: the device took less than a sector.
int64_t memq_pwritev_staged(int descriptor, const struct iovec *pieces, size_t count, int64_t offset, void *staging, size_t size);

// Memory for that, of large pages where the kernel gives them: each page costs a direct write something. `size`: whole pages. NULL: there is none.
void *memq_staging(size_t size);
void memq_staging_free(void *memory, size_t size);

// Reads until `count` bytes or the end of the file. Returns the bytes read.
int64_t memq_pread_all(int descriptor, void *bytes, size_t count, int64_t offset);

// Reserves real space for the first `count` bytes and makes the file that long.
int memq_allocate(int descriptor, int64_t count);

int memq_fdatasync(int descriptor);
int memq_fsync(int descriptor);

// Takes the file's exclusive lock without waiting. -EWOULDBLOCK: another holder.
int memq_try_lock(int descriptor);

// Bytes that an unprivileged process may still take in the file system of the path.
int64_t memq_available_bytes(const char *path);

// Opens with O_CLOEXEC.
int memq_open(const char *path, int flags, unsigned mode);

// Cuts the power of the file system that holds the descriptor: nothing that isn't on the disk yet reaches it
// (FS_IOC_SHUTDOWN, without flushing the journal). Only for tests on a file system made for that.
int memq_shutdown_file_system(int descriptor);

// Names a thread (pthread_t) for debuggers and top; at most 15 bytes.
void memq_name_thread(uint64_t thread, const char *name);

// Makes the calling thread give way to others: niceness up by `niceness`, and the lowest best-effort disk priority. Needs no
// privilege; what the system refuses is passed over.
void memq_yield_thread(int niceness);

// Freed memory up to so many bytes stays with each arena of the allocator; single allocations above it are mapped and unmapped.
void memq_keep_freed_memory(int bytes);

// Whether the program runs with more rights than who started it (AT_SECURE).
int memq_is_privileged(void);

// Opens an existing file for reading and writing past the page cache (O_DIRECT). -EINVAL: the file system can't.
int memq_open_direct(const char *path);

// io_uring, just enough to compare it with plain calls: one ring, one thread, one write and its fdatasync at a time.
typedef struct memq_uring memq_uring;
// NULL: the kernel has none for us; *error is then a negative errno.
memq_uring *memq_uring_open(int *error);
void memq_uring_close(memq_uring *ring);
// Writes and then makes durable, in one submission. 0, or a negative errno; -EIO for a short write.
int memq_uring_write_sync(memq_uring *ring, int descriptor, const void *bytes, unsigned count, int64_t offset);

// Of the device that holds the descriptor's file: its numbers, and the magic number of the file system.
int memq_device(int descriptor, unsigned *major_number, unsigned *minor_number, int64_t *file_system);
