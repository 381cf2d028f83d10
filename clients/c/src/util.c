/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/* Time, threads, bytes: nothing here knows of MemQ's protocol but for its checksums and encodings. */
#include "internal.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

/* --- time */

int64_t mq_now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * MQ_SECOND + time.tv_nsec;
}

int64_t mq_wall_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  return (int64_t)time.tv_sec * 1000 + time.tv_nsec / MQ_MS;
}

int64_t mq_after_ms(int64_t now, int64_t ms) {
  if (ms <= 0) return now;
  return ms > (MQ_NEVER - now) / MQ_MS ? MQ_NEVER : now + ms * MQ_MS;
}

int64_t mq_min(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t mq_max(int64_t a, int64_t b) { return a > b ? a : b; }

bool mq_random_bytes(void *bytes, size_t size) {
  /* Never cut short up to 256 bytes. */
  return getrandom(bytes, size, 0) == (ssize_t)size;
}

uint64_t mq_random(void) {
  uint64_t value;
  /* For jitter, the clock will do as well. */
  if (!mq_random_bytes(&value, sizeof(value))) value = (uint64_t)mq_now() * UINT64_C(0x9E3779B97F4A7C15);
  return value;
}

void mq_backoff_reset(mq_backoff *backoff) { backoff->next = 0; }

int64_t mq_backoff_step(mq_backoff *backoff) {
  int64_t wait = backoff->next > 0 ? backoff->next : 20 * MQ_MS;
  backoff->next = mq_min(wait * 2, 500 * MQ_MS);
  return wait / 1000 * (800 + (int64_t)(mq_random() % 401));
}

/* --- threads */

int mq_mutex_init(pthread_mutex_t *mutex) { return pthread_mutex_init(mutex, NULL); }

int mq_cond_init(pthread_cond_t *cond) {
  pthread_condattr_t attributes;
  int result = pthread_condattr_init(&attributes);
  if (result != 0) return result;
  result = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  if (result == 0) result = pthread_cond_init(cond, &attributes);
  pthread_condattr_destroy(&attributes);
  return result;
}

bool mq_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t deadline) {
  if (deadline == MQ_NEVER) {
    pthread_cond_wait(cond, mutex);
    return true;
  }
  struct timespec time = {.tv_sec = (time_t)(deadline / MQ_SECOND), .tv_nsec = (long)(deadline % MQ_SECOND)};
  return pthread_cond_timedwait(cond, mutex, &time) == 0;
}

int mq_thread_start(pthread_t *thread, void *(*body)(void *), void *argument) {
  sigset_t all, before;
  sigfillset(&all);
  int result = pthread_sigmask(SIG_SETMASK, &all, &before);
  if (result != 0) return result;
  result = pthread_create(thread, NULL, body, argument);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return result;
}

int mq_waker_init(mq_waker *waker) {
  waker->is_set = false;
  int result = mq_mutex_init(&waker->mutex);
  if (result != 0) return result;
  result = mq_cond_init(&waker->cond);
  if (result != 0) pthread_mutex_destroy(&waker->mutex);
  return result;
}

void mq_waker_destroy(mq_waker *waker) {
  pthread_cond_destroy(&waker->cond);
  pthread_mutex_destroy(&waker->mutex);
}

void mq_waker_signal(mq_waker *waker) {
  pthread_mutex_lock(&waker->mutex);
  if (!waker->is_set) {
    waker->is_set = true;
    pthread_cond_signal(&waker->cond);
  }
  pthread_mutex_unlock(&waker->mutex);
}

bool mq_waker_wait(mq_waker *waker, int64_t deadline) {
  pthread_mutex_lock(&waker->mutex);
  while (!waker->is_set && mq_now() < deadline) mq_cond_wait(&waker->cond, &waker->mutex, deadline);
  bool was_set = waker->is_set;
  waker->is_set = false;
  pthread_mutex_unlock(&waker->mutex);
  return was_set;
}

/* --- buffers and messages */

bool mq_buf_reserve(mq_buf *buf, size_t more) {
  if (more <= buf->capacity - buf->length) return true;
  if (more > SIZE_MAX / 2 - buf->length) return false;
  size_t wanted = buf->length + more;
  size_t capacity = buf->capacity * 2 > wanted ? buf->capacity * 2 : wanted;
  uint8_t *data = realloc(buf->data, capacity);
  if (data == NULL) return false;
  buf->data = data;
  buf->capacity = capacity;
  return true;
}

bool mq_buf_append(mq_buf *buf, const void *bytes, size_t size) {
  if (size == 0) return true;
  if (!mq_buf_reserve(buf, size)) return false;
  memcpy(buf->data + buf->length, bytes, size);
  buf->length += size;
  return true;
}

void mq_buf_free(mq_buf *buf) {
  free(buf->data);
  *buf = (mq_buf){0};
}

mq_msg *mq_msg_make(size_t size) {
  if (size > UINT32_MAX) return NULL;
  mq_msg *message = malloc(sizeof(*message) + MQ_PREFIX_BYTES + size);
  if (message == NULL) return NULL;
  *message = (mq_msg){.size = MQ_PREFIX_BYTES + size};
  message->data[0] = 0;
  for (int i = 0; i < 4; i++) message->data[1 + i] = (uint8_t)(size >> (24 - 8 * i));
  return message;
}

mq_msg *mq_msg_pack(const ProtobufCMessage *message) {
  mq_msg *packed = mq_msg_make(protobuf_c_message_get_packed_size(message));
  if (packed != NULL) protobuf_c_message_pack(message, packed->data + MQ_PREFIX_BYTES);
  return packed;
}

void mq_msg_free_all(mq_msg *first) {
  while (first != NULL) {
    mq_msg *next = first->next;
    free(first);
    first = next;
  }
}

ssize_t mq_deframe(mq_deframer *deframer, const uint8_t *bytes, size_t size, mq_msg **whole, memq_error *error) {
  size_t at = 0;
  *whole = NULL;
  while (deframer->partial == NULL && at < size) {
    deframer->prefix[deframer->prefix_count++] = bytes[at++];
    if (deframer->prefix_count < MQ_PREFIX_BYTES) continue;
    const uint8_t *prefix = deframer->prefix;
    size_t length = (size_t)prefix[1] << 24 | (size_t)prefix[2] << 16 | (size_t)prefix[3] << 8 | prefix[4];
    if (prefix[0] != 0) {
      mq_fail(error, MEMQ_ERROR_INTERNAL_ERROR, NULL, "the server sent a compressed message, which it was asked not to");
      return -1;
    }
    if (length > deframer->size_max) {
      mq_fail(error, MEMQ_ERROR_MESSAGE_TOO_LARGE, NULL, "the server's message is larger than message_bytes_max");
      error->has_limit = error->has_actual = true;
      error->limit = (int64_t)deframer->size_max;
      error->actual = (int64_t)length;
      return -1;
    }
    deframer->partial = malloc(sizeof(mq_msg) + length);
    if (deframer->partial == NULL) {
      mq_fail_memory(error);
      return -1;
    }
    *deframer->partial = (mq_msg){.size = length};
    deframer->partial_count = 0;
  }
  if (deframer->partial == NULL) return (ssize_t)at;
  size_t missing = deframer->partial->size - deframer->partial_count;
  size_t count = size - at < missing ? size - at : missing;
  if (count > 0) memcpy(deframer->partial->data + deframer->partial_count, bytes + at, count);
  deframer->partial_count += count;
  if (count == missing) {
    *whole = deframer->partial;
    deframer->partial = NULL;
    deframer->prefix_count = 0;
    deframer->partial_count = 0;
  }
  return (ssize_t)(at + count);
}

bool mq_deframer_is_between(const mq_deframer *deframer) { return deframer->prefix_count == 0; }

/* --- checksums and encodings */

uint32_t mq_crc32c_portable(uint32_t crc, const void *bytes, size_t size) {
  /* Four bits at a time: the remainders of 0-15. */
  static const uint32_t table[16] = {
      0x00000000, 0x105EC76F, 0x20BD8EDE, 0x30E349B1, 0x417B1DBC, 0x5125DAD3, 0x61C69362, 0x7198540D,
      0x82F63B78, 0x92A8FC17, 0xA24BB5A6, 0xB21572C9, 0xC38D26C4, 0xD3D3E1AB, 0xE330A81A, 0xF36E6F75,
  };
  const uint8_t *at = bytes;
  crc = ~crc;
  for (; size > 0; size--, at++) {
    crc ^= *at;
    crc = crc >> 4 ^ table[crc & 15];
    crc = crc >> 4 ^ table[crc & 15];
  }
  return ~crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const uint8_t *at, size_t size) {
  uint64_t wide = (uint32_t)~crc;
  for (; size >= 8; size -= 8, at += 8) {
    uint64_t word;
    memcpy(&word, at, 8);
    wide = __builtin_ia32_crc32di(wide, word);
  }
  uint32_t narrow = (uint32_t)wide;
  for (; size > 0; size--, at++) narrow = __builtin_ia32_crc32qi(narrow, *at);
  return ~narrow;
}
#endif

uint32_t mq_crc32c(uint32_t crc, const void *bytes, size_t size) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) return crc32c_sse42(crc, bytes, size);
#endif
  return mq_crc32c_portable(crc, bytes, size);
}

uint32_t mq_murmur2(const void *key, size_t size) {
  const uint32_t multiplier = 0x5BD1E995;
  const uint8_t *at = key;
  uint32_t hash = UINT32_C(0x9747B28C) ^ (uint32_t)size;
  for (; size >= 4; size -= 4, at += 4) {
    uint32_t word = (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
    word *= multiplier;
    word ^= word >> 24;
    hash = hash * multiplier ^ word * multiplier;
  }
  if (size > 0) {
    for (size_t i = size; i > 0; i--) hash ^= (uint32_t)at[i - 1] << (8 * (i - 1));
    hash *= multiplier;
  }
  hash ^= hash >> 13;
  hash *= multiplier;
  return hash ^ hash >> 15;
}

int32_t mq_partition_of_key(const void *key, size_t size, int32_t partitions) {
  return (int32_t)((mq_murmur2(key, size) & 0x7FFFFFFF) % (uint32_t)partitions);
}

static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

size_t mq_percent_decode(char *text, size_t size) {
  size_t out = 0;
  for (size_t at = 0; at < size; at++) {
    if (text[at] == '%' && size - at > 2 && hex_digit(text[at + 1]) >= 0 && hex_digit(text[at + 2]) >= 0) {
      text[out++] = (char)(hex_digit(text[at + 1]) << 4 | hex_digit(text[at + 2]));
      at += 2;
    } else {
      text[out++] = text[at];
    }
  }
  return out;
}

static int base64_digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+' || c == '-') return 62;
  if (c == '/' || c == '_') return 63;
  return -1;
}

bool mq_base64_decode(const char *text, size_t size, uint8_t *out, size_t *out_size) {
  if (size > 0 && text[size - 1] == '=') size--;
  if (size > 0 && text[size - 1] == '=') size--;
  *out_size = 0;
  if (size % 4 == 1) return false;
  uint32_t bits = 0;
  unsigned count = 0;
  for (size_t at = 0; at < size; at++) {
    int digit = base64_digit(text[at]);
    if (digit < 0) return false;
    bits = (bits << 6 | (uint32_t)digit) & 0xFFFFFF;
    count += 6;
    if (count < 8) continue;
    count -= 8;
    out[(*out_size)++] = (uint8_t)(bits >> count);
  }
  return true;
}

void mq_grpc_timeout(char text[12], int64_t ns) {
  static const struct {
    int64_t ns;
    char unit;
  } units[] = {{1000, 'u'}, {MQ_MS, 'm'}, {MQ_SECOND, 'S'}, {60 * MQ_SECOND, 'M'}, {3600 * MQ_SECOND, 'H'}};
  if (ns < 1000) ns = 1000;
  for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
    int64_t value = ns / units[i].ns + (ns % units[i].ns != 0);
    if (value > 99999999 && i + 1 < sizeof(units) / sizeof(units[0])) continue;
    snprintf(text, 12, "%d%c", (int)(value % 100000000), units[i].unit);
    return;
  }
}

size_t mq_varint_size(uint64_t value) {
  size_t size = 1;
  for (; value >= 0x80; value >>= 7) size++;
  return size;
}

size_t mq_varint_put(uint8_t *out, uint64_t value) {
  size_t size = 0;
  for (; value >= 0x80; value >>= 7) out[size++] = (uint8_t)(value | 0x80);
  out[size++] = (uint8_t)value;
  return size;
}
