/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/* Puts and gets: as many streams as it takes, on the calling thread. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memq/v1/file.pb-c.h"

#define TIME_MS_MAX (INT64_C(1) << 40)

enum {
  /* Half the largest chunk: two are on their way while a third is read. */
  CHUNK_BYTES = 512 << 10,
  DIGEST_BYTES = 32,
  ATTRIBUTES_MAX = 64,
  /* A server tells of the publication, or that it was not in time, by itself; so much later it counts as silent. */
  PUBLISH_GRACE_MS = 30000,
  /* After the publication the server ends the stream; past this it is reset. */
  END_GRACE_MS = 1000,
};

struct memq_file_info {
  Memq__V1__FileInfo *wire;
};

void memq_file_options_init_sized(memq_file_options *options, size_t size) {
  static const memq_file_options defaults = {
      .resume_timeout_ms = 120000,
      .stall_timeout_ms = 30000,
      .publish_timeout_ms = 60000,
  };
  MQ_INIT(options, size, defaults);
}

bool memq_upload_id_make(uint8_t id[MEMQ_UPLOAD_ID_BYTES]) {
  if (!mq_random_bytes(id, MEMQ_UPLOAD_ID_BYTES)) return false;
  /* A version 4 UUID. */
  id[6] = (uint8_t)((id[6] & 0x0F) | 0x40);
  id[8] = (uint8_t)((id[8] & 0x3F) | 0x80);
  return true;
}

/* --- file infos */

const char *memq_file_info_name(const memq_file_info *info) { return info->wire->name; }

int64_t memq_file_info_version(const memq_file_info *info) { return info->wire->version; }

int64_t memq_file_info_size(const memq_file_info *info) { return info->wire->size; }

const uint8_t *memq_file_info_sha256(const memq_file_info *info) { return info->wire->sha256.data; }

const char *memq_file_info_content_type(const memq_file_info *info) { return info->wire->content_type; }

int32_t memq_file_info_partition(const memq_file_info *info) { return info->wire->partition; }

int64_t memq_file_info_offset(const memq_file_info *info) { return info->wire->offset; }

const char *memq_file_info_attribute(const memq_file_info *info, const char *name) {
  for (size_t i = 0; i < info->wire->n_attributes; i++) {
    if (strcmp(info->wire->attributes[i]->key, name) == 0) return info->wire->attributes[i]->value;
  }
  return NULL;
}

void memq_file_info_free(memq_file_info *info) {
  if (info == NULL) return;
  memq__v1__file_info__free_unpacked(info->wire, NULL);
  free(info);
}

/* Takes `wire`, also when it fails. `out` NULL: not wanted. */
static memq_code hand_out(Memq__V1__FileInfo *wire, const char *name, memq_file_info **out, memq_error *error) {
  memq_code code = MEMQ_OK;
  memq_file_info *info = NULL;
  if (wire->sha256.len != DIGEST_BYTES) {
    code = mq_fail(error, MEMQ_ERROR_CORRUPT_MESSAGE, name, "the server told of a file without a digest");
  } else if (out != NULL) {
    info = malloc(sizeof(*info));
    if (info == NULL) code = mq_fail_memory(error);
  }
  if (info != NULL) {
    info->wire = wire;
    *out = info;
  } else {
    memq__v1__file_info__free_unpacked(wire, NULL);
  }
  return code;
}

/* --- digests */

struct digest {
  EVP_MD_CTX *context;
  int64_t below;
};

static bool digest_begin(struct digest *digest) {
  digest->below = 0;
  digest->context = EVP_MD_CTX_new();
  return digest->context != NULL && EVP_DigestInit_ex(digest->context, EVP_sha256(), NULL) == 1;
}

/* Takes bytes in, once each. */
static bool digest_feed(struct digest *digest, const uint8_t *bytes, size_t size, int64_t offset) {
  int64_t end = offset + (int64_t)size;
  if (end <= digest->below) return true;
  size_t known = digest->below > offset ? (size_t)(digest->below - offset) : 0;
  digest->below = end;
  return EVP_DigestUpdate(digest->context, bytes + known, size - known) == 1;
}

/* Of what was taken in so far; more may follow. */
static bool digest_value(const struct digest *digest, uint8_t value[DIGEST_BYTES]) {
  EVP_MD_CTX *copy = EVP_MD_CTX_new();
  bool is_done = copy != NULL && EVP_MD_CTX_copy_ex(copy, digest->context) == 1 && EVP_DigestFinal_ex(copy, value, NULL) == 1;
  EVP_MD_CTX_free(copy);
  return is_done;
}

static void hex(char *text, const uint8_t *bytes, size_t size) {
  for (size_t i = 0; i < size; i++) snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

/* --- what puts and gets share */

struct transfer {
  memq_client *client;
  const char *topic, *name;
  const memq_file_options *options;
  int64_t deadline;
  mq_waker waker;
  mq_call *call;
  int server;
  struct digest digest;
  mq_backoff backoff;
  /* When something was won for the last time. */
  int64_t moved_at;
};

static memq_code transfer_begin(struct transfer *transfer, memq_error *error) {
  const memq_file_options *options = transfer->options;
  const struct {
    int64_t ms, least;
    const char *name;
  } times[] = {
      {options->timeout_ms, 0, "timeout_ms"},
      {options->resume_timeout_ms, 0, "resume_timeout_ms"},
      {options->stall_timeout_ms, 1, "stall_timeout_ms"},
      {options->publish_timeout_ms, 0, "publish_timeout_ms"},
  };
  for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
    if (times[i].ms < times[i].least || times[i].ms > TIME_MS_MAX)
      return mq_fail(error, MEMQ_ERROR_CONFIGURATION_INVALID, times[i].name, "must be %s", times[i].least > 0 ? "positive" : "not negative");
  }
  transfer->moved_at = mq_now();
  transfer->deadline = transfer->options->timeout_ms > 0 ? mq_after_ms(transfer->moved_at, transfer->options->timeout_ms) : MQ_NEVER;
  if (transfer->topic == NULL || transfer->name == NULL)
    return mq_fail(error, MEMQ_ERROR_INVALID_ARGUMENT, transfer->topic == NULL ? "topic" : "name", "is wanted");
  return digest_begin(&transfer->digest) ? MEMQ_OK : mq_fail_memory(error);
}

/* The next message, or the end, of a stream that must not stand still. `cap` bounds the wait as well. */
static mq_next transfer_wait(struct transfer *transfer, int64_t stall_at, mq_msg **message, memq_error *error) {
  int64_t at = mq_min(stall_at, transfer->deadline);
  mq_next next = mq_call_wait(transfer->call, &transfer->waker, at, message, error);
  if (next == MQ_NEXT_END && error->code == MEMQ_ERROR_DEADLINE_EXCEEDED && mq_now() >= at)
    mq_fail(error, MEMQ_ERROR_DEADLINE_EXCEEDED, NULL, mq_now() >= transfer->deadline ? "not done in time" : "the server stood still");
  return next;
}

static int64_t stall_at(const struct transfer *transfer) { return mq_after_ms(mq_now(), transfer->options->stall_timeout_ms); }

/* Whether another stream may do what this one could not. Waits for its time. */
static bool goes_on(struct transfer *transfer, bool may_heal, bool has_moved, memq_error *error) {
  int64_t now = mq_now();
  mq_client_name_error(transfer->client, transfer->server, error);
  if (error->subject[0] == 0) mq_set_subject(error, transfer->name);
  if (!may_heal || error->code == MEMQ_ERROR_LOCAL_FILE) return false;
  if (has_moved) {
    transfer->moved_at = now;
    mq_backoff_reset(&transfer->backoff);
  }
  int64_t end = mq_min(mq_after_ms(transfer->moved_at, transfer->options->resume_timeout_ms), transfer->deadline);
  if (now >= end) return false;
  if (mq_is_absence(error)) mq_client_failed(transfer->client, transfer->server);
  int64_t at = mq_min(now + mq_backoff_step(&transfer->backoff), end);
  while (mq_now() < at) mq_waker_wait(&transfer->waker, at);
  return true;
}

static bool report(const struct transfer *transfer, int64_t done, int64_t size) {
  return transfer->options->on_progress == NULL || transfer->options->on_progress(transfer->options->user, done, size);
}

/* --- put */

struct put {
  struct transfer transfer;
  int64_t size;
  memq_read_callback read;
  void *read_user;
  /* NULL: not of a path. */
  const char *path;
  uint8_t upload_id[MEMQ_UPLOAD_ID_BYTES];
  uint8_t *chunk;
  /* Durable on the server, as far as it has told. */
  int64_t durable;
  int64_t begin_at;
  Memq__V1__FileInfo *published;
};

static memq_code read_piece(struct put *put, int64_t offset, size_t size, memq_error *error) {
  size_t count = 0;
  while (count < size) {
    errno = 0;
    int64_t got = put->read(put->read_user, offset + (int64_t)count, put->chunk + count, size - count);
    if (got > 0 && (size_t)got <= size - count) {
      count += (size_t)got;
      continue;
    }
    return mq_fail(error, MEMQ_ERROR_LOCAL_FILE, put->path != NULL ? put->path : put->transfer.name, "cannot be read at byte %lld: %s",
                   (long long)(offset + (int64_t)count), errno != 0 ? strerror(errno) : "it is shorter than it was");
  }
  return digest_feed(&put->transfer.digest, put->chunk, size, offset) ? MEMQ_OK : mq_fail_memory(error);
}

static bool send_request(struct put *put, const Memq__V1__PutRequest *request, memq_error *error) {
  mq_msg *message = mq_msg_pack(&request->base);
  if (message == NULL) {
    mq_fail_memory(error);
    return false;
  }
  /* When the stream is over, its end tells why. */
  mq_call_send(put->transfer.call, message);
  return true;
}

static bool send_start(struct put *put, memq_error *error) {
  const memq_file_options *options = put->transfer.options;
  Memq__V1__PutStart start = MEMQ__V1__PUT_START__INIT;
  Memq__V1__PutStart__AttributesEntry entries[ATTRIBUTES_MAX], *pointers[ATTRIBUTES_MAX];
  for (size_t i = 0; i < options->attribute_count; i++) {
    memq__v1__put_start__attributes_entry__init(&entries[i]);
    entries[i].key = (char *)(uintptr_t)options->attributes[i].name;
    entries[i].value = (char *)(uintptr_t)options->attributes[i].value;
    pointers[i] = &entries[i];
  }
  start.topic = (char *)(uintptr_t)put->transfer.topic;
  start.name = (char *)(uintptr_t)put->transfer.name;
  start.upload_id = (ProtobufCBinaryData){.len = MEMQ_UPLOAD_ID_BYTES, .data = put->upload_id};
  start.size = put->size;
  start.content_type = (char *)(uintptr_t)(options->content_type != NULL ? options->content_type : "");
  start.n_attributes = options->attribute_count;
  start.attributes = pointers;
  Memq__V1__PutRequest request = MEMQ__V1__PUT_REQUEST__INIT;
  request.part_case = MEMQ__V1__PUT_REQUEST__PART_START;
  request.start = &start;
  return send_request(put, &request, error);
}

static bool send_chunk(struct put *put, int64_t offset, size_t size, memq_error *error) {
  Memq__V1__PutChunk header = MEMQ__V1__PUT_CHUNK__INIT;
  header.offset = offset;
  header.crc32c = mq_crc32c(0, put->chunk, size);
  Memq__V1__PutRequest request = MEMQ__V1__PUT_REQUEST__INIT;
  request.part_case = MEMQ__V1__PUT_REQUEST__PART_CHUNK_HEADER;
  request.chunk_header = &header;
  request.chunk = (ProtobufCBinaryData){.len = size, .data = put->chunk};
  return send_request(put, &request, error);
}

static bool send_finish(struct put *put, memq_error *error) {
  uint8_t value[DIGEST_BYTES];
  if (!digest_value(&put->transfer.digest, value)) {
    mq_fail_memory(error);
    return false;
  }
  Memq__V1__PutFinish finish = MEMQ__V1__PUT_FINISH__INIT;
  finish.sha256 = (ProtobufCBinaryData){.len = sizeof(value), .data = value};
  finish.wait_max_ms = (int32_t)mq_min(put->transfer.options->publish_timeout_ms, INT32_MAX);
  Memq__V1__PutRequest request = MEMQ__V1__PUT_REQUEST__INIT;
  request.part_case = MEMQ__V1__PUT_REQUEST__PART_FINISH;
  request.finish = &finish;
  if (!send_request(put, &request, error)) return false;
  mq_call_half_close(put->transfer.call);
  return true;
}

/* What a reply told. */
static memq_code hear(struct put *put, const mq_msg *message, memq_error *error) {
  Memq__V1__PutResponse *reply = memq__v1__put_response__unpack(NULL, message->size, message->data);
  if (reply == NULL) return mq_fail(error, MEMQ_ERROR_CORRUPT_MESSAGE, put->transfer.name, "the server's reply to a put cannot be read");
  switch (reply->part_case) {
    case MEMQ__V1__PUT_RESPONSE__PART_BEGIN_AT:
      put->begin_at = reply->begin_at;
      put->durable = mq_max(put->durable, reply->begin_at);
      break;
    case MEMQ__V1__PUT_RESPONSE__PART_DURABLE_BELOW: put->durable = mq_max(put->durable, reply->durable_below); break;
    case MEMQ__V1__PUT_RESPONSE__PART_PUBLISHED:
      if (put->published != NULL) memq__v1__file_info__free_unpacked(put->published, NULL);
      put->published = reply->published;
      reply->published = NULL;
      reply->part_case = MEMQ__V1__PUT_RESPONSE__PART__NOT_SET;
      break;
    default: break;
  }
  memq__v1__put_response__free_unpacked(reply, NULL);
  return MEMQ_OK;
}

/* Hears the stream to its end. MEMQ_OK: the file is published. */
static memq_code put_end(struct put *put, int64_t until, memq_error *error) {
  while (put->published == NULL) {
    mq_msg *message;
    if (transfer_wait(&put->transfer, until, &message, error) == MQ_NEXT_END) {
      if (error->code == MEMQ_OK) mq_fail(error, MEMQ_ERROR_UNAVAILABLE, NULL, "the server ended the put without a result");
      return error->code;
    }
    memq_code code = hear(put, message, error);
    free(message);
    if (code != MEMQ_OK) return code;
  }
  return MEMQ_OK;
}

/* The file is published: lets the server end the stream, so that it need not be reset. */
static void put_settle(struct put *put) {
  int64_t until = mq_min(mq_after_ms(mq_now(), END_GRACE_MS), put->transfer.deadline);
  memq_error error;
  mq_msg *message;
  mq_call_half_close(put->transfer.call);
  while (mq_call_wait(put->transfer.call, &put->transfer.waker, until, &message, &error) == MQ_NEXT_MESSAGE) free(message);
}

/* Hears what is there, and waits until there is room to send. `is_over`: the server has said its last word. */
static memq_code put_room(struct put *put, bool *is_over, memq_error *error) {
  int64_t until = stall_at(&put->transfer);
  *is_over = false;
  while (true) {
    mq_msg *message;
    mq_next next = mq_call_next(put->transfer.call, &message, error);
    if (next == MQ_NEXT_MESSAGE) {
      memq_code code = hear(put, message, error);
      free(message);
      if (code != MEMQ_OK) return code;
      if (put->published != NULL) {
        *is_over = true;
        return MEMQ_OK;
      }
      until = stall_at(&put->transfer);
    } else if (next == MQ_NEXT_END) {
      *is_over = true;
      if (error->code == MEMQ_OK) mq_fail(error, MEMQ_ERROR_UNAVAILABLE, NULL, "the server ended the put without a result");
      return error->code;
    } else if (mq_call_has_room(put->transfer.call)) {
      return MEMQ_OK;
    } else if (!mq_waker_wait(&put->transfer.waker, mq_min(until, put->transfer.deadline)) && mq_now() >= mq_min(until, put->transfer.deadline)) {
      return mq_fail(error, MEMQ_ERROR_DEADLINE_EXCEEDED, NULL, mq_now() >= put->transfer.deadline ? "not done in time" : "the server stood still");
    }
  }
}

/* One stream. */
static memq_code put_stream(struct put *put, memq_error *error) {
  struct transfer *transfer = &put->transfer;
  put->begin_at = -1;
  transfer->call = mq_client_call(transfer->client, MQ_LANE_BODIES, "/memq.v1.FileService/Put", transfer->deadline, &transfer->waker,
                                  &transfer->server, error);
  if (transfer->call == NULL) return error->code;
  if (!send_start(put, error)) return error->code;
  int64_t until = stall_at(transfer);
  while (put->begin_at < 0 && put->published == NULL) {
    mq_msg *message;
    if (transfer_wait(transfer, until, &message, error) == MQ_NEXT_END) {
      if (error->code == MEMQ_OK) mq_fail(error, MEMQ_ERROR_UNAVAILABLE, NULL, "the server ended the put without a result");
      return error->code;
    }
    memq_code code = hear(put, message, error);
    free(message);
    if (code != MEMQ_OK) return code;
  }
  int64_t at = put->begin_at;
  if (at > put->size) {
    mq_fail(error, MEMQ_ERROR_UPLOAD_OFFSET_MISMATCH, transfer->name, "the server has more bytes under this upload id than the file");
    return error->code;
  }
  bool is_over = put->published != NULL;
  while (!is_over && at < put->size) {
    /* What the server has and this call has not read goes into the digest first. */
    bool is_known = transfer->digest.below < at;
    int64_t from = is_known ? transfer->digest.below : at;
    size_t size = (size_t)mq_min(CHUNK_BYTES, (is_known ? at : put->size) - from);
    memq_code code = read_piece(put, from, size, error);
    if (code == MEMQ_OK) code = put_room(put, &is_over, error);
    if (code != MEMQ_OK) return code;
    if (is_over || is_known) continue;
    if (!send_chunk(put, from, size, error)) return error->code;
    at += (int64_t)size;
    if (!report(transfer, at, put->size)) return mq_fail(error, MEMQ_ERROR_CANCELLED, transfer->name, "given up by the caller");
  }
  while (!is_over && transfer->digest.below < put->size) {
    size_t size = (size_t)mq_min(CHUNK_BYTES, put->size - transfer->digest.below);
    if (read_piece(put, transfer->digest.below, size, error) != MEMQ_OK) return error->code;
  }
  if (!is_over && put->path != NULL) {
    struct stat now;
    int fd = (int)(intptr_t)put->read_user;
    if (fstat(fd, &now) != 0 || now.st_size != put->size)
      return mq_fail(error, MEMQ_ERROR_LOCAL_FILE, put->path, "its size has changed while it was put");
  }
  if (!is_over && !send_finish(put, error)) return error->code;
  return put_end(put, mq_after_ms(mq_now(), transfer->options->publish_timeout_ms + PUBLISH_GRACE_MS), error);
}

/* Whether the same put may go on after this error. */
static bool put_may_heal(const memq_error *error) {
  switch ((int)error->code) {
    case MEMQ_ERROR_SCAN_HELD:
    case MEMQ_ERROR_OUT_OF_MEMORY: return false;
    case MEMQ_ERROR_CHUNK_CHECKSUM_MISMATCH:
    case MEMQ_ERROR_UPLOAD_OFFSET_MISMATCH: return true;
    default: return error->is_retriable || error->is_unprocessed;
  }
}

static memq_code run_put(struct put *put, memq_file_info **info, memq_error *error) {
  struct transfer *transfer = &put->transfer;
  const memq_file_options *options = transfer->options;
  if (put->size < 0 || options->attribute_count > ATTRIBUTES_MAX)
    return mq_fail(error, MEMQ_ERROR_INVALID_ARGUMENT, transfer->name, "%s",
                   put->size < 0 ? "a size is not negative" : "a file has at most 64 attributes");
  for (size_t i = 0; i < options->attribute_count; i++) {
    if (options->attributes[i].name == NULL || options->attributes[i].value == NULL)
      return mq_fail(error, MEMQ_ERROR_INVALID_ARGUMENT, transfer->name, "an attribute without a name or a value");
  }
  if (options->upload_id != NULL) {
    memcpy(put->upload_id, options->upload_id, MEMQ_UPLOAD_ID_BYTES);
  } else if (!memq_upload_id_make(put->upload_id)) {
    return mq_fail(error, MEMQ_ERROR_INTERNAL_ERROR, transfer->name, "the system has no randomness");
  }
  put->chunk = malloc(CHUNK_BYTES);
  if (put->chunk == NULL) return mq_fail_memory(error);
  if (mq_waker_init(&transfer->waker) != 0) {
    free(put->chunk);
    return mq_fail_memory(error);
  }
  memq_code code = transfer_begin(transfer, error);
  while (code == MEMQ_OK) {
    int64_t durable = put->durable;
    code = put_stream(put, error);
    if (code == MEMQ_OK) put_settle(put);
    mq_call_free(transfer->call);
    transfer->call = NULL;
    if (code == MEMQ_OK || !goes_on(transfer, put_may_heal(error), put->durable > durable, error)) break;
    code = MEMQ_OK;
  }
  if (code == MEMQ_OK) {
    code = hand_out(put->published, transfer->name, info, error);
  } else if (put->published != NULL) {
    memq__v1__file_info__free_unpacked(put->published, NULL);
  }
  EVP_MD_CTX_free(transfer->digest.context);
  mq_waker_destroy(&transfer->waker);
  free(put->chunk);
  return code;
}

memq_code memq_file_put_from(memq_client *client, const char *topic, const char *name, int64_t size, memq_read_callback read, void *read_user,
                             const memq_file_options *given, memq_file_info **info, memq_error **error_out) {
  memq_error error = {0};
  memq_file_options options;
  MQ_OPTIONS(memq_file_options, options, given);
  struct put put = {.transfer = {.client = client, .topic = topic, .name = name, .options = &options}, .size = size, .read = read, .read_user = read_user};
  memq_code code = run_put(&put, info, &error);
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}

static int64_t read_file(void *user, int64_t offset, void *buffer, size_t size) {
  ssize_t count;
  do {
    count = pread((int)(intptr_t)user, buffer, size, offset);
  } while (count < 0 && errno == EINTR);
  return count;
}

memq_code memq_file_put(memq_client *client, const char *topic, const char *name, const char *path, const memq_file_options *given,
                        memq_file_info **info, memq_error **error_out) {
  memq_error error = {0};
  memq_file_options options;
  MQ_OPTIONS(memq_file_options, options, given);
  struct stat status;
  memq_code code = MEMQ_OK;
  /* A pipe must not hold up the open. */
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0 || fstat(fd, &status) != 0) {
    code = mq_fail(&error, MEMQ_ERROR_LOCAL_FILE, path, "cannot be read: %s", strerror(errno));
  } else if (!S_ISREG(status.st_mode)) {
    code = mq_fail(&error, MEMQ_ERROR_LOCAL_FILE, path, "is not a regular file");
  } else {
    struct put put = {
        .transfer = {.client = client, .topic = topic, .name = name, .options = &options},
        .size = status.st_size,
        .read = read_file,
        .read_user = (void *)(intptr_t)fd,
        .path = path,
    };
    code = run_put(&put, info, &error);
  }
  if (fd >= 0) close(fd);
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}

/* --- get */

struct get {
  struct transfer transfer;
  memq_write_callback write;
  void *write_user;
  Memq__V1__FileInfo *info;
  /* Place of the next byte in the file; one past the last that is wanted, -1 before it is known. */
  int64_t position, end;
};

static memq_code learn(struct get *get, Memq__V1__GetResponse *response, memq_error *error) {
  Memq__V1__FileInfo *info = response->file;
  const memq_file_options *options = get->transfer.options;
  response->file = NULL;
  if (get->info != NULL) {
    bool is_same = get->info->version == info->version && get->info->sha256.len == info->sha256.len &&
                   memcmp(get->info->sha256.data, info->sha256.data, info->sha256.len) == 0;
    memq__v1__file_info__free_unpacked(info, NULL);
    return is_same ? MEMQ_OK : mq_fail(error, MEMQ_ERROR_FILE_NOT_FOUND, get->transfer.name, "this version is gone");
  }
  get->info = info;
  if (info->size < 0) return mq_fail(error, MEMQ_ERROR_CORRUPT_MESSAGE, get->transfer.name, "the server told of a file of negative size");
  get->end = info->size;
  if (options->range_length > 0 && options->range_length < info->size - options->range_offset)
    get->end = options->range_offset + options->range_length;
  return MEMQ_OK;
}

static memq_code take(struct get *get, const mq_msg *message, memq_error *error) {
  Memq__V1__GetResponse *response = memq__v1__get_response__unpack(NULL, message->size, message->data);
  const char *name = get->transfer.name;
  if (response == NULL) return mq_fail(error, MEMQ_ERROR_CORRUPT_MESSAGE, name, "the server's answer to a get cannot be read");
  memq_code code = response->file != NULL ? learn(get, response, error) : MEMQ_OK;
  const uint8_t *bytes = response->chunk.data;
  size_t size = response->chunk.len;
  if (code == MEMQ_OK && size > 0) {
    uint32_t crc = mq_crc32c(0, bytes, size);
    if (get->info == NULL || response->offset != get->position || (int64_t)size > get->end - get->position) {
      code = mq_fail(error, MEMQ_ERROR_CORRUPT_MESSAGE, name, "the server sent bytes of another place");
    } else if (crc != response->crc32c) {
      code = mq_fail(error, MEMQ_ERROR_CHUNK_CHECKSUM_MISMATCH, name, "a chunk was damaged on its way");
    } else if (!digest_feed(&get->transfer.digest, bytes, size, get->position - get->transfer.options->range_offset)) {
      code = mq_fail_memory(error);
    } else if (!get->write(get->write_user, get->position, bytes, size)) {
      code = mq_fail(error, MEMQ_ERROR_CANCELLED, name, "given up by the caller");
    } else {
      get->position += (int64_t)size;
      int64_t from = get->transfer.options->range_offset;
      if (!report(&get->transfer, get->position - from, get->end - from))
        code = mq_fail(error, MEMQ_ERROR_CANCELLED, name, "given up by the caller");
    }
  }
  memq__v1__get_response__free_unpacked(response, NULL);
  return code;
}

static memq_code get_stream(struct get *get, memq_error *error) {
  struct transfer *transfer = &get->transfer;
  if (get->info != NULL && get->position == get->end) return MEMQ_OK;
  Memq__V1__GetRequest request = MEMQ__V1__GET_REQUEST__INIT;
  request.topic = (char *)(uintptr_t)transfer->topic;
  request.name = (char *)(uintptr_t)transfer->name;
  request.version = get->info != NULL ? get->info->version : transfer->options->version;
  request.offset = get->position;
  request.length = get->end >= 0 ? get->end - get->position : transfer->options->range_length;
  mq_msg *message = mq_msg_pack(&request.base);
  if (message == NULL) return mq_fail_memory(error);
  transfer->call = mq_client_call(transfer->client, MQ_LANE_BODIES, "/memq.v1.FileService/Get", transfer->deadline, &transfer->waker,
                                  &transfer->server, error);
  if (transfer->call == NULL) {
    free(message);
    return error->code;
  }
  mq_call_send(transfer->call, message);
  mq_call_half_close(transfer->call);
  while (transfer_wait(transfer, stall_at(transfer), &message, error) == MQ_NEXT_MESSAGE) {
    memq_code code = take(get, message, error);
    free(message);
    if (code != MEMQ_OK) return code;
  }
  if (error->code == MEMQ_OK && (get->info == NULL || get->position != get->end))
    mq_fail(error, MEMQ_ERROR_UNAVAILABLE, NULL, "the server ended the get before the file's end");
  return error->code;
}

/* The whole has the digest that was published. */
static memq_code verify(const struct get *get, memq_error *error) {
  uint8_t value[DIGEST_BYTES];
  char have[2 * DIGEST_BYTES + 1], want[2 * DIGEST_BYTES + 1];
  if (get->transfer.options->range_offset > 0 || get->end < get->info->size) return MEMQ_OK;
  if (!digest_value(&get->transfer.digest, value)) return mq_fail_memory(error);
  if (get->info->sha256.len == sizeof(value) && memcmp(value, get->info->sha256.data, sizeof(value)) == 0) return MEMQ_OK;
  hex(have, value, sizeof(value));
  want[0] = 0;
  if (get->info->sha256.len == sizeof(value)) hex(want, get->info->sha256.data, sizeof(value));
  return mq_fail(error, MEMQ_ERROR_DIGEST_MISMATCH, get->transfer.name, "the bytes have SHA-256 %s, the record says %s", have, want);
}

static memq_code run_get(struct get *get, memq_file_info **info, memq_error *error) {
  struct transfer *transfer = &get->transfer;
  const memq_file_options *options = transfer->options;
  if (options->range_offset < 0 || options->range_length < 0)
    return mq_fail(error, MEMQ_ERROR_RANGE_INVALID, transfer->name, "a range is not negative");
  get->position = options->range_offset;
  get->end = -1;
  if (mq_waker_init(&transfer->waker) != 0) return mq_fail_memory(error);
  memq_code code = transfer_begin(transfer, error);
  while (code == MEMQ_OK) {
    int64_t before = get->position;
    code = get_stream(get, error);
    mq_call_free(transfer->call);
    transfer->call = NULL;
    bool may_heal = error->is_retriable || error->is_unprocessed || error->code == MEMQ_ERROR_CHUNK_CHECKSUM_MISMATCH;
    if (code == MEMQ_OK || code == MEMQ_ERROR_OUT_OF_MEMORY || !goes_on(transfer, may_heal, get->position > before, error)) break;
    code = MEMQ_OK;
  }
  if (code == MEMQ_OK) code = verify(get, error);
  EVP_MD_CTX_free(transfer->digest.context);
  mq_waker_destroy(&transfer->waker);
  return code == MEMQ_OK ? hand_out(get->info, transfer->name, info, error) : (memq__v1__file_info__free_unpacked(get->info, NULL), code);
}

memq_code memq_file_get_to(memq_client *client, const char *topic, const char *name, memq_write_callback write, void *write_user,
                           const memq_file_options *given, memq_file_info **info, memq_error **error_out) {
  memq_error error = {0};
  memq_file_options options;
  MQ_OPTIONS(memq_file_options, options, given);
  struct get get = {.transfer = {.client = client, .topic = topic, .name = name, .options = &options}, .write = write, .write_user = write_user};
  memq_code code = run_get(&get, info, &error);
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}

struct target {
  int fd;
  int64_t begin;
  /* Why it could not be written. */
  int number;
};

static bool write_file(void *user, int64_t offset, const void *bytes, size_t size) {
  struct target *target = user;
  const uint8_t *at = bytes;
  offset -= target->begin;
  while (size > 0) {
    ssize_t count = pwrite(target->fd, at, size, offset);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      target->number = count < 0 ? errno : ENOSPC;
      return false;
    }
    at += count;
    offset += count;
    size -= (size_t)count;
  }
  return true;
}

memq_code memq_file_get(memq_client *client, const char *topic, const char *name, const char *path, const memq_file_options *given,
                        memq_file_info **info, memq_error **error_out) {
  memq_error error = {0};
  memq_file_options options;
  MQ_OPTIONS(memq_file_options, options, given);
  /* A hidden name beside the path, so that the rename stays within one file system. */
  const char *slash = strrchr(path, '/');
  int folder_size = slash != NULL ? (int)(slash - path + 1) : 0;
  size_t size = (size_t)folder_size + 40;
  char *temporary = malloc(size);
  memq_file_info *made = NULL;
  if (temporary == NULL) {
    mq_fail_memory(&error);
    return mq_publish(error_out, &error);
  }
  snprintf(temporary, size, "%.*s.memq-%016llx", folder_size, path, (unsigned long long)mq_random());
  struct target target = {.begin = options.range_offset};
  target.fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  memq_code code = MEMQ_OK;
  if (target.fd < 0) {
    code = mq_fail(&error, MEMQ_ERROR_LOCAL_FILE, path, "cannot be made: %s", strerror(errno));
  } else {
    struct get get = {.transfer = {.client = client, .topic = topic, .name = name, .options = &options}, .write = write_file, .write_user = &target};
    code = run_get(&get, &made, &error);
    if (target.number != 0) code = mq_fail(&error, MEMQ_ERROR_LOCAL_FILE, path, "cannot be written: %s", strerror(target.number));
    if (code == MEMQ_OK && fsync(target.fd) != 0)
      code = mq_fail(&error, MEMQ_ERROR_LOCAL_FILE, path, "cannot be written: %s", strerror(errno));
    if (close(target.fd) != 0 && code == MEMQ_OK) code = mq_fail(&error, MEMQ_ERROR_LOCAL_FILE, path, "cannot be written: %s", strerror(errno));
    if (code == MEMQ_OK && rename(temporary, path) != 0)
      code = mq_fail(&error, MEMQ_ERROR_LOCAL_FILE, path, "cannot take its place: %s", strerror(errno));
    if (code != MEMQ_OK) unlink(temporary);
  }
  free(temporary);
  if (code == MEMQ_OK && info != NULL) {
    *info = made;
  } else {
    memq_file_info_free(made);
  }
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}

/* --- stat, delete */

memq_code memq_file_stat(memq_client *client, const char *topic, const char *name, int64_t version, int64_t timeout_ms, memq_file_info **info,
                         memq_error **error_out) {
  memq_error error = {0};
  Memq__V1__StatRequest request = MEMQ__V1__STAT_REQUEST__INIT;
  ProtobufCMessage *answer;
  request.topic = (char *)(uintptr_t)(topic != NULL ? topic : "");
  request.name = (char *)(uintptr_t)(name != NULL ? name : "");
  request.version = version;
  memq_code code = mq_client_unary(client, MQ_LANE_CONTROL, "/memq.v1.FileService/Stat", &request.base, &memq__v1__file_info__descriptor,
                                   mq_client_deadline(client, timeout_ms), MQ_RETRY_UNTIL_DEADLINE, NULL, &answer, &error);
  if (code == MEMQ_OK) code = hand_out((Memq__V1__FileInfo *)answer, request.name, info, &error);
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}

memq_code memq_file_delete(memq_client *client, const char *topic, const char *name, int64_t timeout_ms, memq_error **error_out) {
  memq_error error = {0};
  Memq__V1__DeleteRequest request = MEMQ__V1__DELETE_REQUEST__INIT;
  request.topic = (char *)(uintptr_t)(topic != NULL ? topic : "");
  request.name = (char *)(uintptr_t)(name != NULL ? name : "");
  memq_code code = mq_client_unary(client, MQ_LANE_CONTROL, "/memq.v1.FileService/Delete", &request.base, &memq__v1__delete_response__descriptor,
                                   mq_client_deadline(client, timeout_ms), MQ_RETRY_NEVER, NULL, NULL, &error);
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}
