/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/*
 * A producer: callers put records into one open batch per partition; the producer's thread sends batches on one Produce stream, opened again
 * when it breaks.
 *
 * Per partition (lane) batches leave in order. When one must be sent again nothing more leaves until every answer is there; then all that
 * is left goes again from the first one, with the same sequences: order holds and nothing is appended twice. A refused batch leaves a gap in the
 * sequence; the server then refuses what follows as out of order, which says for certain that it was not appended. The lane asks
 * for a new producer epoch and numbers what is left from 0.
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memq/v1/ingest.pb-c.h"
#include "memq/v1/metadata.pb-c.h"

enum {
  /* Largest batch a server takes in any topic. */
  BATCH_BYTES_CEILING = 8 << 20,
  /* Plain records of one request. */
  BATCH_RECORDS_MAX = 10000,
  /* Bytes that a record costs beside its own. */
  RECORD_OVERHEAD_BYTES = 32,
  /* Batches of one partition in flight: servers remember five per producer. */
  IN_FLIGHT_MAX = 5,
  TICK_MS = 250,
  /* A server answers at its deadline; past it by so much the stream is dead. */
  SILENCE_MS = 5000,
  CLOSE_MS = 10000,
  /* Nothing is sent meanwhile. */
  INIT_TIMEOUT_MS = 2000,
};

typedef struct record_end {
  /* In the batch's bytes. */
  size_t end;
  memq_delivery_callback callback;
  void *user;
} record_end;

struct batch {
  struct batch *next;
  /* Rises over all batches of a producer; halves of a batch share it. */
  uint64_t id;
  int32_t partition;
  int32_t sequence;
  size_t charged;
  int64_t created_at;
  /* Field 5 of a ProduceRequest, over and over. */
  mq_buf records;
  record_end *ends;
  uint32_t count, ends_capacity;
  bool is_sent;
  uint64_t request;
  int64_t sent_at;
  int attempts;
  /* What became of it, once it is done; before, `failure` says why the last attempt failed. */
  bool is_failed;
  int64_t offset;
  memq_error *failure;
};

struct lane {
  /* Those with something to do form a list. */
  struct lane *next_active;
  bool is_active;
  int32_t partition;
  /* Takes records. */
  struct batch *open;
  /* Closed and numbered, in order; those sent stand in front. */
  struct batch *first, *last;
  int sent_count;
  int64_t producer_id;
  int32_t epoch;
  int32_t next_sequence;
  bool needs_epoch;
  bool is_rewinding;
  int64_t retry_at;
  mq_backoff backoff;
};

struct flush {
  struct flush *next;
  uint64_t last_id;
  uint64_t records;
  pthread_cond_t done;
};

struct memq_producer {
  memq_client *client;
  char *topic;
  memq_producer_options options;
  int32_t partition_count;
  bool uses_sequences;
  int in_flight_max;
  pthread_t thread;
  mq_waker waker;
  /* For the thread's own calls. */
  mq_stop stop;
  pthread_mutex_t lock;
  /* Under the lock. */
  pthread_cond_t room;
  int room_waiters;
  size_t buffered;
  uint64_t next_id;
  uint64_t next_request;
  int32_t sticky;
  bool is_closing;
  /* Of the end of the stream. */
  int64_t end_by;
  struct flush *flushes;
  /* First failure of a record without a callback, since the last flush. */
  memq_error *unheard;
  /* Nothing will succeed any more. */
  memq_error *failure;
  /* How a stream ended first of all: at the close, with MEMQ_ACKS_NONE at any time. */
  memq_error *end;
  struct lane *active;
  struct batch *done_first, *done_last;
  /* The thread's own. */
  mq_call *call;
  /* Its server is about to go: nothing more is sent, and another stream follows when every answer is there. */
  bool is_leaving;
  int server;
  int64_t reconnect_at;
  mq_backoff backoff;
  int64_t epoch_retry_at;
  mq_backoff epoch_backoff;
  struct lane lanes[];
};

void memq_producer_options_init_sized(memq_producer_options *options, size_t size) {
  static const memq_producer_options defaults = {
      .acks = MEMQ_ACKS_ALL,
      .idempotent = true,
      .linger_ms = 5,
      .batch_bytes = 64 << 10,
      .batch_bytes_max = 1 << 20,
      .buffer_bytes_max = 32 << 20,
      .delivery_timeout_ms = 120000,
      .request_timeout_ms = 30000,
  };
  MQ_INIT(options, size, defaults);
}

static memq_error *keep(const memq_error *error) {
  memq_error *copy = NULL;
  mq_publish(&copy, error);
  return copy;
}

/* --- batches */

static void batch_free(struct batch *batch) {
  if (batch == NULL) return;
  mq_buf_free(&batch->records);
  free(batch->ends);
  memq_error_free(batch->failure);
  free(batch);
}

static struct batch *batch_make(int32_t partition, uint64_t id, int64_t created_at) {
  struct batch *made = calloc(1, sizeof(*made));
  if (made == NULL) return NULL;
  made->id = id;
  made->partition = partition;
  made->created_at = created_at;
  made->offset = -1;
  return made;
}

static bool batch_add(struct batch *batch, const ProtobufCMessage *record, size_t size, memq_delivery_callback callback, void *user) {
  if (batch->count == batch->ends_capacity) {
    uint32_t capacity = batch->ends_capacity > 0 ? batch->ends_capacity * 2 : 16;
    record_end *ends = realloc(batch->ends, capacity * sizeof(*ends));
    if (ends == NULL) return false;
    batch->ends = ends;
    batch->ends_capacity = capacity;
  }
  /* Field 5, length-delimited. */
  if (!mq_buf_reserve(&batch->records, 1 + mq_varint_size(size) + size)) return false;
  uint8_t *at = batch->records.data + batch->records.length;
  *at++ = 5 << 3 | 2;
  at += mq_varint_put(at, size);
  at += protobuf_c_message_pack(record, at);
  batch->records.length = (size_t)(at - batch->records.data);
  batch->ends[batch->count++] = (record_end){.end = batch->records.length, .callback = callback, .user = user};
  return true;
}

/* Records from `from` on go into a batch of their own. False: no memory, and nothing has changed. */
static bool batch_split(struct batch *whole, uint32_t from, struct batch **rest_out) {
  struct batch *rest = calloc(1, sizeof(*rest));
  if (rest == NULL) return false;
  *rest = (struct batch){.id = whole->id, .partition = whole->partition, .created_at = whole->created_at, .attempts = whole->attempts, .offset = -1};
  size_t cut = whole->ends[from - 1].end;
  rest->count = rest->ends_capacity = whole->count - from;
  rest->ends = malloc(rest->count * sizeof(*rest->ends));
  if (rest->ends == NULL || !mq_buf_append(&rest->records, whole->records.data + cut, whole->records.length - cut)) {
    batch_free(rest);
    return false;
  }
  for (uint32_t i = 0; i < rest->count; i++) {
    rest->ends[i] = whole->ends[from + i];
    rest->ends[i].end -= cut;
  }
  rest->charged = whole->charged / whole->count * rest->count;
  whole->charged -= rest->charged;
  whole->count = from;
  whole->records.length = cut;
  *rest_out = rest;
  return true;
}

static int32_t sequence_after(int32_t sequence, uint32_t count) { return (int32_t)(((uint32_t)sequence + count) & 0x7FFFFFFF); }

/* --- lanes, under the lock */

static void activate(memq_producer *producer, struct lane *lane) {
  if (lane->is_active) return;
  lane->is_active = true;
  lane->next_active = NULL;
  struct lane **at = &producer->active;
  while (*at != NULL) at = &(*at)->next_active;
  *at = lane;
}

static void number(const memq_producer *producer, struct lane *lane, struct batch *batch) {
  if (!producer->uses_sequences) return;
  batch->sequence = lane->next_sequence;
  lane->next_sequence = sequence_after(lane->next_sequence, batch->count);
}

/* The open batch takes no more. A record without a key goes to another partition from now on. */
static void close_batch(memq_producer *producer, struct lane *lane) {
  struct batch *batch = lane->open;
  lane->open = NULL;
  number(producer, lane, batch);
  batch->next = NULL;
  if (lane->last != NULL) {
    lane->last->next = batch;
  } else {
    lane->first = batch;
  }
  lane->last = batch;
  if (lane->partition == producer->sticky) producer->sticky = (producer->sticky + 1) % producer->partition_count;
}

static void take_out(struct lane *lane, struct batch *batch) {
  struct batch *before = NULL;
  for (struct batch *at = lane->first; at != batch; at = at->next) before = at;
  if (before != NULL) {
    before->next = batch->next;
  } else {
    lane->first = batch->next;
  }
  if (lane->last == batch) lane->last = before;
  batch->next = NULL;
  if (batch->is_sent) {
    batch->is_sent = false;
    lane->sent_count--;
  }
}

/* What goes next when something must be sent again, or goes first of all. */
static struct batch *first_waiting(struct lane *lane) {
  struct batch *at = lane->first;
  while (at != NULL && at->is_sent) at = at->next;
  return at;
}

static bool may_send(const memq_producer *producer, const struct lane *lane, int64_t now) {
  if (lane->sent_count >= producer->in_flight_max || lane->needs_epoch || producer->is_leaving) return false;
  if (lane->is_rewinding && lane->sent_count > 0) return false;
  return lane->retry_at <= now;
}

/* A batch of the lane must go again: everything waits for the answers that are missing. */
static void rewind_lane(struct lane *lane, int64_t now) {
  /* What was in flight with the first one that failed is no further failure. */
  if (lane->is_rewinding) return;
  lane->is_rewinding = true;
  lane->retry_at = now + mq_backoff_step(&lane->backoff);
}

/* The batch is done, one way or the other. Its callbacks follow without the lock. `error` NULL: acknowledged. */
static void complete(memq_producer *producer, struct batch *batch, int64_t offset, const memq_error *error) {
  if (error != NULL) {
    memq_error named = *error;
    if (named.subject[0] == 0) {
      char subject[300];
      snprintf(subject, sizeof(subject), "%s/%d", producer->topic, (int)batch->partition);
      mq_set_subject(&named, subject);
    }
    memq_error_free(batch->failure);
    batch->failure = keep(&named);
    batch->is_failed = true;
    /* Somebody else uses the producer's number, or its topic is gone. */
    if ((named.code == MEMQ_ERROR_PRODUCER_FENCED || named.code == MEMQ_ERROR_TOPIC_DELETED) && producer->failure == NULL)
      producer->failure = keep(&named);
  } else {
    batch->offset = offset;
  }
  batch->next = NULL;
  if (producer->done_last != NULL) {
    producer->done_last->next = batch;
  } else {
    producer->done_first = batch;
  }
  producer->done_last = batch;
}

static void fail_everything(memq_producer *producer, const memq_error *error) {
  for (struct lane *lane = producer->active; lane != NULL; lane = lane->next_active) {
    if (lane->open != NULL) close_batch(producer, lane);
    while (lane->first != NULL) {
      struct batch *batch = lane->first;
      take_out(lane, batch);
      complete(producer, batch, -1, error);
    }
  }
}

/* --- the callers' side */

static memq_code choose(memq_producer *producer, const memq_outgoing *record, int32_t *partition, memq_error *error) {
  if (record->partition >= producer->partition_count || record->partition < -1) {
    mq_fail(error, MEMQ_ERROR_PARTITION_NOT_FOUND, producer->topic, "the topic has fewer partitions");
    error->has_limit = error->has_actual = true;
    error->limit = producer->partition_count - 1;
    error->actual = record->partition;
    return error->code;
  }
  if (record->partition >= 0) {
    *partition = record->partition;
  } else if (record->key != NULL) {
    *partition = mq_partition_of_key(record->key, record->key_size, producer->partition_count);
  } else {
    *partition = producer->sticky;
  }
  return MEMQ_OK;
}

/* Waits until `bytes` have room. */
static memq_code make_room(memq_producer *producer, size_t bytes, int64_t timeout_ms, memq_error *error) {
  int64_t deadline = 0;
  while (true) {
    if (producer->failure != NULL) {
      *error = *producer->failure;
      return error->code;
    }
    if (producer->is_closing) return mq_fail(error, MEMQ_ERROR_CANCELLED, producer->topic, "the producer is closed");
    /* A record larger than the whole buffer is let in alone. */
    if (producer->buffered == 0 || producer->buffered + bytes <= producer->options.buffer_bytes_max) return MEMQ_OK;
    if (deadline == 0) deadline = mq_client_deadline(producer->client, timeout_ms);
    if (mq_now() >= deadline) {
      mq_fail(error, MEMQ_ERROR_RESOURCE_EXHAUSTED, producer->topic, "the buffer is full of records that are not acknowledged yet");
      error->has_limit = error->has_actual = true;
      error->limit = (int64_t)producer->options.buffer_bytes_max;
      error->actual = (int64_t)(producer->buffered + bytes);
      return error->code;
    }
    producer->room_waiters++;
    mq_cond_wait(&producer->room, &producer->lock, deadline);
    producer->room_waiters--;
  }
}

/* Puts an encoded record into its partition's batch. */
static memq_code put(memq_producer *producer, const memq_outgoing *outgoing, const ProtobufCMessage *record, size_t size, size_t charge,
                     bool *is_news, memq_error *error) {
  size_t framed = size + 1 + mq_varint_size(size);
  struct lane *lane;
  while (true) {
    int32_t partition = 0;
    if (choose(producer, outgoing, &partition, error) != MEMQ_OK) return error->code;
    lane = &producer->lanes[partition];
    if (lane->open == NULL) break;
    if (lane->open->records.length + framed <= producer->options.batch_bytes_max && lane->open->count < BATCH_RECORDS_MAX) break;
    /* Without a key the next one may be of another partition. */
    close_batch(producer, lane);
    *is_news = true;
  }
  if (lane->open == NULL) {
    lane->open = batch_make(lane->partition, producer->next_id, mq_now());
    if (lane->open == NULL) return mq_fail_memory(error);
    producer->next_id++;
    *is_news = true;
  }
  struct batch *batch = lane->open;
  size_t before = batch->records.length;
  if (!batch_add(batch, record, size, outgoing->on_delivery, outgoing->user)) {
    if (batch->count == 0) {
      lane->open = NULL;
      batch_free(batch);
    }
    return mq_fail_memory(error);
  }
  batch->charged += charge;
  producer->buffered += charge;
  if (before < producer->options.batch_bytes && batch->records.length >= producer->options.batch_bytes) *is_news = true;
  activate(producer, lane);
  return MEMQ_OK;
}

static memq_code send_record(memq_producer *producer, const memq_outgoing *outgoing, int64_t timeout_ms, memq_error *error) {
  enum { HEADERS_ON_STACK = 16 };
  Memq__V1__Header on_stack[HEADERS_ON_STACK], *headers = on_stack;
  Memq__V1__Header *pointers_on_stack[HEADERS_ON_STACK], **pointers = pointers_on_stack;
  size_t count = outgoing->header_count;
  if ((outgoing->key == NULL && outgoing->key_size > 0) || (outgoing->value == NULL && outgoing->value_size > 0))
    return mq_fail(error, MEMQ_ERROR_INVALID_ARGUMENT, producer->topic, "bytes at NULL with a size");
  if (outgoing->key_size > BATCH_BYTES_CEILING || outgoing->value_size > BATCH_BYTES_CEILING || count > BATCH_BYTES_CEILING) {
    mq_fail(error, MEMQ_ERROR_RECORD_BATCH_TOO_LARGE, producer->topic, "the record is larger than any batch may be; put it as a file");
    error->has_limit = true;
    error->limit = BATCH_BYTES_CEILING;
    return error->code;
  }
  if (count > HEADERS_ON_STACK) {
    headers = malloc(count * sizeof(*headers));
    pointers = malloc(count * sizeof(*pointers));
  }
  memq_code code = headers != NULL && pointers != NULL ? MEMQ_OK : mq_fail_memory(error);
  for (size_t i = 0; code == MEMQ_OK && i < count; i++) {
    const memq_header *from = &outgoing->headers[i];
    memq__v1__header__init(&headers[i]);
    headers[i].name = (char *)(uintptr_t)(from->name != NULL ? from->name : "");
    if (from->value != NULL) {
      headers[i].value_is_case = MEMQ__V1__HEADER__VALUE_IS_VALUE;
      headers[i].value = (ProtobufCBinaryData){.len = from->value_size, .data = (uint8_t *)(uintptr_t)from->value};
    }
    pointers[i] = &headers[i];
  }
  if (code == MEMQ_OK) {
    Memq__V1__Record record = MEMQ__V1__RECORD__INIT;
    record.n_headers = count;
    record.headers = pointers;
    record.timestamp_ms = outgoing->timestamp_ms > 0 ? outgoing->timestamp_ms : mq_wall_ms();
    if (outgoing->key != NULL) {
      record.key_is_case = MEMQ__V1__RECORD__KEY_IS_KEY;
      record.key = (ProtobufCBinaryData){.len = outgoing->key_size, .data = (uint8_t *)(uintptr_t)outgoing->key};
    }
    if (outgoing->value != NULL) {
      record.value_is_case = MEMQ__V1__RECORD__VALUE_IS_VALUE;
      record.value = (ProtobufCBinaryData){.len = outgoing->value_size, .data = (uint8_t *)(uintptr_t)outgoing->value};
    }
    size_t size = memq__v1__record__get_packed_size(&record);
    if (size > BATCH_BYTES_CEILING) {
      mq_fail(error, MEMQ_ERROR_RECORD_BATCH_TOO_LARGE, producer->topic, "the record is larger than any batch may be; put it as a file");
      error->has_limit = error->has_actual = true;
      error->limit = BATCH_BYTES_CEILING;
      error->actual = (int64_t)size;
      code = error->code;
    } else {
      size_t charge = size + RECORD_OVERHEAD_BYTES;
      bool is_news = false;
      pthread_mutex_lock(&producer->lock);
      code = make_room(producer, charge, timeout_ms, error);
      if (code == MEMQ_OK) code = put(producer, outgoing, &record.base, size, charge, &is_news, error);
      pthread_mutex_unlock(&producer->lock);
      if (is_news) mq_waker_signal(&producer->waker);
    }
  }
  if (headers != on_stack) free(headers);
  if (pointers != pointers_on_stack) free(pointers);
  return code;
}

memq_code memq_producer_send(memq_producer *producer, const memq_outgoing *record, int64_t timeout_ms, memq_error **error_out) {
  memq_error error;
  memq_code code = send_record(producer, record, timeout_ms, &error);
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}

memq_code memq_producer_send_value(memq_producer *producer, const void *value, size_t size, int64_t timeout_ms, memq_error **error_out) {
  const memq_outgoing record = {.value = value, .value_size = size, .partition = -1};
  return memq_producer_send(producer, &record, timeout_ms, error_out);
}

/* Waits until what was sent before is done. */
static memq_code flush_all(memq_producer *producer, int64_t deadline, memq_error *error) {
  struct flush waiting = {0};
  if (mq_cond_init(&waiting.done) != 0) return mq_fail_memory(error);
  pthread_mutex_lock(&producer->lock);
  waiting.last_id = producer->next_id - 1;
  for (struct lane *lane = producer->active; lane != NULL; lane = lane->next_active) {
    /* So that what is sent from now on goes into batches that do not count. */
    if (lane->open != NULL) close_batch(producer, lane);
    for (const struct batch *batch = lane->first; batch != NULL; batch = batch->next) waiting.records += batch->count;
  }
  for (const struct batch *batch = producer->done_first; batch != NULL; batch = batch->next) waiting.records += batch->count;
  bool is_done = true;
  if (waiting.records > 0) {
    waiting.next = producer->flushes;
    producer->flushes = &waiting;
    mq_waker_signal(&producer->waker);
    while (waiting.records > 0 && mq_now() < deadline) mq_cond_wait(&waiting.done, &producer->lock, deadline);
    is_done = waiting.records == 0;
    struct flush **at = &producer->flushes;
    while (*at != &waiting) at = &(*at)->next;
    *at = waiting.next;
  }
  memq_code code = MEMQ_OK;
  if (producer->unheard != NULL) {
    *error = *producer->unheard;
    code = error->code;
    memq_error_free(producer->unheard);
    producer->unheard = NULL;
  } else if (!is_done) {
    code = mq_fail(error, MEMQ_ERROR_DEADLINE_EXCEEDED, producer->topic, "records are not acknowledged in time");
  }
  pthread_mutex_unlock(&producer->lock);
  pthread_cond_destroy(&waiting.done);
  return code;
}

memq_code memq_producer_flush(memq_producer *producer, int64_t timeout_ms, memq_error **error_out) {
  memq_error error;
  int64_t deadline = timeout_ms < 0 ? MQ_NEVER : mq_after_ms(mq_now(), timeout_ms);
  memq_code code = flush_all(producer, deadline, &error);
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}

/* --- the thread's side */

static bool send_batch(memq_producer *producer, struct lane *lane, struct batch *batch, int64_t now) {
  Memq__V1__ProduceRequest request = MEMQ__V1__PRODUCE_REQUEST__INIT;
  request.request_id = producer->next_request;
  request.topic = producer->topic;
  request.partition = batch->partition;
  request.acks = (Memq__V1__Acks)producer->options.acks;
  request.timeout_ms = (int32_t)mq_min(producer->options.request_timeout_ms, INT32_MAX);
  if (producer->uses_sequences) {
    request.producer_id = lane->producer_id;
    request.producer_epoch = lane->epoch;
    request.base_sequence = batch->sequence;
  }
  /* Fields may stand in any order: the records follow as they are. */
  size_t head = memq__v1__produce_request__get_packed_size(&request);
  mq_msg *message = mq_msg_make(head + batch->records.length);
  if (message == NULL) return false;
  memq__v1__produce_request__pack(&request, message->data + MQ_PREFIX_BYTES);
  memcpy(message->data + MQ_PREFIX_BYTES + head, batch->records.data, batch->records.length);
  if (!mq_call_send(producer->call, message)) return false;
  batch->request = producer->next_request++;
  batch->is_sent = true;
  batch->sent_at = now;
  batch->attempts++;
  lane->sent_count++;
  return true;
}

/* There is a stream to send on. */
static bool open_stream(memq_producer *producer, int64_t now) {
  if (producer->call != NULL) return true;
  if (producer->reconnect_at > now) return false;
  memq_error error;
  producer->call =
      mq_client_call(producer->client, MQ_LANE_PRODUCE, "/memq.v1.IngestService/Produce", MQ_NEVER, &producer->waker, &producer->server, &error);
  if (producer->call != NULL) return true;
  mq_client_failed(producer->client, producer->server);
  producer->reconnect_at = now + mq_backoff_step(&producer->backoff);
  return false;
}

static bool is_ready(const memq_producer *producer, const struct batch *open, int64_t now) {
  return open->records.length >= producer->options.batch_bytes || open->count >= BATCH_RECORDS_MAX || producer->is_closing ||
         mq_after_ms(open->created_at, producer->options.linger_ms) <= now;
}

/* Sends what a lane may send. When to look again, by time alone. */
static int64_t pump_lane(memq_producer *producer, struct lane *lane, int64_t now) {
  while (may_send(producer, lane, now)) {
    struct batch *batch = first_waiting(lane);
    if (batch == NULL) {
      if (lane->open == NULL) return MQ_NEVER;
      if (!is_ready(producer, lane->open, now)) return mq_after_ms(lane->open->created_at, producer->options.linger_ms);
      close_batch(producer, lane);
      batch = first_waiting(lane);
    }
    if (!open_stream(producer, now)) return producer->reconnect_at;
    if (!mq_call_has_room(producer->call)) return MQ_NEVER;
    if (!send_batch(producer, lane, batch, now)) return now + TICK_MS * MQ_MS;
    lane->is_rewinding = false;
    lane->retry_at = 0;
    if (producer->options.acks == MEMQ_ACKS_NONE) {
      take_out(lane, batch);
      complete(producer, batch, -1, NULL);
    }
  }
  /* What else holds it up ends with an answer. */
  if (lane->sent_count > 0 || lane->needs_epoch || producer->is_leaving) return MQ_NEVER;
  return lane->first != NULL || lane->open != NULL ? lane->retry_at : MQ_NEVER;
}

/* An answer's batch. */
static struct batch *find(memq_producer *producer, uint64_t request, struct lane **found) {
  for (struct lane *lane = producer->active; lane != NULL; lane = lane->next_active) {
    for (struct batch *batch = lane->first; batch != NULL && lane->sent_count > 0; batch = batch->next) {
      if (batch->is_sent && batch->request == request) {
        *found = lane;
        return batch;
      }
    }
  }
  return NULL;
}

static void unsend(struct lane *lane, struct batch *batch) {
  if (batch->is_sent) {
    batch->is_sent = false;
    lane->sent_count--;
  }
}

static void refused(memq_producer *producer, struct lane *lane, struct batch *batch, const memq_error *error, int64_t now) {
  bool is_first = lane->first == batch;
  struct batch *rest;
  switch ((int)error->code) {
    case MEMQ_ERROR_DUPLICATE_SEQUENCE:
      mq_backoff_reset(&lane->backoff);
      take_out(lane, batch);
      complete(producer, batch, -1, NULL);
      return;
    case MEMQ_ERROR_OUT_OF_ORDER_SEQUENCE:
    case MEMQ_ERROR_UNKNOWN_PRODUCER:
      if (!producer->uses_sequences) break;
      /* With an earlier batch unanswered, or to be sent again, this one only came too early. */
      if (is_first) lane->needs_epoch = true;
      unsend(lane, batch);
      rewind_lane(lane, now);
      return;
    case MEMQ_ERROR_RECORD_BATCH_TOO_LARGE:
      if (batch->count < 2 || !batch_split(batch, batch->count / 2, &rest)) break;
      unsend(lane, batch);
      rest->next = batch->next;
      batch->next = rest;
      if (lane->last == batch) lane->last = rest;
      if (producer->uses_sequences) rest->sequence = sequence_after(batch->sequence, batch->count);
      /* What follows waits for the halves; there is nothing to wait for otherwise. */
      lane->is_rewinding = true;
      lane->retry_at = now;
      return;
    default: break;
  }
  if (error->code == MEMQ_ERROR_SHUTTING_DOWN && !producer->is_leaving) {
    producer->is_leaving = true;
    mq_client_failed(producer->client, producer->server);
  }
  if (error->is_retriable) {
    unsend(lane, batch);
    memq_error_free(batch->failure);
    batch->failure = keep(error);
    rewind_lane(lane, now);
    return;
  }
  take_out(lane, batch);
  complete(producer, batch, -1, error);
}

static void answered(memq_producer *producer, const mq_msg *message, int64_t now) {
  Memq__V1__ProduceResponse *response = memq__v1__produce_response__unpack(NULL, message->size, message->data);
  if (response == NULL) return;
  struct lane *lane;
  struct batch *batch = find(producer, response->request_id, &lane);
  if (batch != NULL && response->error != NULL) {
    memq_error error;
    mq_fail_detail(&error, response->error);
    refused(producer, lane, batch, &error, now);
  } else if (batch != NULL) {
    mq_backoff_reset(&lane->backoff);
    take_out(lane, batch);
    complete(producer, batch, response->base_offset, NULL);
  }
  memq__v1__produce_response__free_unpacked(response, NULL);
}

/* An error that a repetition would meet again. A broken connection shows up under many codes; only a status that carries a reason of MemQ's, or says
   that the request itself is wrong, is final. */
static bool is_final(const memq_error *error) {
  if (error->code == MEMQ_OK || error->is_retriable || error->is_unprocessed) return false;
  switch (error->grpc_status) {
    case 3:
    case 5:
    case 6:
    case 7:
    case 9:
    case 11:
    case 12:
    case 16: return true;
    case 8: return error->code == MEMQ_ERROR_MESSAGE_TOO_LARGE;
    default: return error->code >= 100 && error->code < 10000;
  }
}

/* The stream is gone: no answer will come. What became of the batches nobody knows, so they go again. */
static void stream_lost(memq_producer *producer, const memq_error *error, int64_t now) {
  mq_call_free(producer->call);
  producer->call = NULL;
  producer->is_leaving = false;
  if ((producer->is_closing || producer->options.acks == MEMQ_ACKS_NONE) && producer->end == NULL && error->code != MEMQ_OK)
    producer->end = keep(error);
  bool final = is_final(error);
  for (struct lane *lane = producer->active; lane != NULL; lane = lane->next_active) {
    for (struct batch *batch = lane->first, *next; batch != NULL; batch = next) {
      next = batch->next;
      if (!batch->is_sent) continue;
      if (final) {
        take_out(lane, batch);
        complete(producer, batch, -1, error);
        continue;
      }
      unsend(lane, batch);
      memq_error_free(batch->failure);
      batch->failure = keep(error);
    }
    lane->is_rewinding = false;
    lane->retry_at = 0;
  }
  if (!final && !producer->is_closing && (mq_is_absence(error) || error->code == MEMQ_ERROR_CANCELLED))
    mq_client_failed(producer->client, producer->server);
  producer->reconnect_at = now + mq_backoff_step(&producer->backoff);
}

static void hear(memq_producer *producer, int64_t now) {
  while (producer->call != NULL) {
    mq_msg *message;
    memq_error error;
    mq_next next = mq_call_next(producer->call, &message, &error);
    if (next == MQ_NEXT_NOTHING) return;
    if (next == MQ_NEXT_END) {
      if (error.code == MEMQ_OK) {
        if (!producer->is_closing) mq_fail(&error, MEMQ_ERROR_SHUTTING_DOWN, NULL, "the server ended the stream");
      } else {
        mq_client_name_error(producer->client, producer->server, &error);
      }
      stream_lost(producer, &error, now);
      return;
    }
    mq_backoff_reset(&producer->backoff);
    answered(producer, message, now);
    free(message);
  }
}

/* Gives up a stream whose server is about to go, once every answer is there. */
static void leave(memq_producer *producer, int64_t now) {
  if (!producer->is_leaving) return;
  for (const struct lane *lane = producer->active; lane != NULL; lane = lane->next_active) {
    if (lane->sent_count > 0) return;
  }
  mq_call_free(producer->call);
  producer->call = NULL;
  producer->is_leaving = false;
  producer->reconnect_at = now + mq_backoff_step(&producer->backoff);
}

/* A new epoch for the lanes that want one. Gives up the lock meanwhile. */
static void renew(memq_producer *producer, int64_t now) {
  int64_t id = 0;
  if (producer->epoch_retry_at > now || producer->is_closing) return;
  for (struct lane *lane = producer->active; lane != NULL && id == 0; lane = lane->next_active) {
    if (lane->needs_epoch && lane->sent_count == 0) id = lane->producer_id;
  }
  if (id == 0) return;
  Memq__V1__InitProducerRequest request = MEMQ__V1__INIT_PRODUCER_REQUEST__INIT;
  request.producer_id = id;
  ProtobufCMessage *answer;
  memq_error error;
  pthread_mutex_unlock(&producer->lock);
  memq_code code = mq_client_unary(producer->client, MQ_LANE_CONTROL, "/memq.v1.IngestService/InitProducer", &request.base,
                                   &memq__v1__init_producer_response__descriptor, mq_after_ms(mq_now(), INIT_TIMEOUT_MS), MQ_RETRY_NEVER, &producer->stop, &answer,
                                   &error);
  pthread_mutex_lock(&producer->lock);
  if (code != MEMQ_OK) {
    producer->epoch_retry_at = mq_now() + mq_backoff_step(&producer->epoch_backoff);
    if (error.is_retriable || error.is_unprocessed || error.code == MEMQ_ERROR_CANCELLED) return;
    if (producer->failure == NULL) producer->failure = keep(&error);
    fail_everything(producer, &error);
    return;
  }
  mq_backoff_reset(&producer->epoch_backoff);
  const Memq__V1__InitProducerResponse *response = (const Memq__V1__InitProducerResponse *)answer;
  for (struct lane *lane = producer->active; lane != NULL; lane = lane->next_active) {
    if (!lane->needs_epoch || lane->sent_count > 0) continue;
    lane->producer_id = response->producer_id;
    lane->epoch = response->producer_epoch;
    lane->next_sequence = 0;
    lane->needs_epoch = lane->is_rewinding = false;
    lane->retry_at = 0;
    for (struct batch *batch = lane->first; batch != NULL; batch = batch->next) number(producer, lane, batch);
  }
  protobuf_c_message_free_unpacked(answer, NULL);
}

/* What was sent too long ago. */
static void expire(memq_producer *producer, int64_t now) {
  int64_t cutoff = now - producer->options.delivery_timeout_ms * MQ_MS;
  int64_t silent = now - (producer->options.request_timeout_ms + SILENCE_MS) * MQ_MS;
  bool is_silent = false;
  for (struct lane *lane = producer->active; lane != NULL; lane = lane->next_active) {
    if (lane->first == NULL && lane->open != NULL && lane->open->created_at < cutoff) close_batch(producer, lane);
    while (lane->first != NULL && lane->first->created_at < cutoff) {
      struct batch *batch = lane->first;
      memq_error error;
      const memq_error *last = batch->failure;
      mq_fail(&error, batch->attempts > 0 ? MEMQ_ERROR_OUTCOME_UNKNOWN : MEMQ_ERROR_DEADLINE_EXCEEDED, NULL,
              "not acknowledged within %lld ms after %d attempts%s%.700s", (long long)producer->options.delivery_timeout_ms, batch->attempts,
              last != NULL ? "; the last one: " : "", last != NULL ? last->message : "");
      take_out(lane, batch);
      complete(producer, batch, -1, &error);
    }
    for (const struct batch *batch = lane->first; batch != NULL; batch = batch->next) {
      if (batch->is_sent && batch->sent_at < silent) is_silent = true;
    }
  }
  if (is_silent && producer->call != NULL) {
    memq_error error;
    mq_fail(&error, MEMQ_ERROR_DEADLINE_EXCEEDED, NULL, "the server did not answer in time");
    stream_lost(producer, &error, now);
  }
}

/* Tells what became of batches, without the lock. */
static void deliver(memq_producer *producer) {
  while (producer->done_first != NULL) {
    /* One at a time, so that a flush that begins meanwhile sees those that are left. */
    struct batch *batch = producer->done_first;
    pthread_mutex_unlock(&producer->lock);
    const memq_error *failure = batch->failure;
    bool is_failed = batch->is_failed;
    bool has_silent = false;
    for (uint32_t i = 0; i < batch->count; i++) {
      if (batch->ends[i].callback == NULL) {
        has_silent = true;
        continue;
      }
      const memq_delivery delivery = {
          .code = is_failed ? failure->code : MEMQ_OK,
          .partition = batch->partition,
          .offset = !is_failed && batch->offset >= 0 && batch->offset < INT64_MAX - i ? batch->offset + i : -1,
          .error = is_failed ? failure : NULL,
      };
      batch->ends[i].callback(batch->ends[i].user, &delivery);
    }
    pthread_mutex_lock(&producer->lock);
    producer->done_first = batch->next;
    if (producer->done_first == NULL) producer->done_last = NULL;
    if (is_failed && has_silent && producer->unheard == NULL) producer->unheard = keep(failure);
    producer->buffered -= batch->charged;
    if (producer->room_waiters > 0 &&
        (producer->buffered <= producer->options.buffer_bytes_max - producer->options.buffer_bytes_max / 4 || producer->done_first == NULL))
      pthread_cond_broadcast(&producer->room);
    for (struct flush *waiting = producer->flushes; waiting != NULL; waiting = waiting->next) {
      if (batch->id > waiting->last_id) continue;
      waiting->records -= mq_min((int64_t)waiting->records, batch->count);
      if (waiting->records == 0) pthread_cond_signal(&waiting->done);
    }
    batch_free(batch);
  }
}

static int64_t pump(memq_producer *producer, int64_t now) {
  int64_t wake_at = MQ_NEVER;
  struct lane **at = &producer->active;
  while (*at != NULL) {
    struct lane *lane = *at;
    wake_at = mq_min(wake_at, pump_lane(producer, lane, now));
    if (lane->open == NULL && lane->first == NULL) {
      *at = lane->next_active;
      lane->is_active = false;
    } else {
      at = &lane->next_active;
      wake_at = mq_min(wake_at, now + TICK_MS * MQ_MS);
    }
  }
  /* Turns: with a full stream the partition that comes first must not be the same each time. */
  struct lane *first = producer->active;
  if (first != NULL && first->next_active != NULL) {
    producer->active = first->next_active;
    first->is_active = false;
    activate(producer, first);
  }
  return wake_at;
}

static void *run(void *argument) {
  memq_producer *producer = argument;
  bool is_ending = false;
  int64_t tick_at = 0;
  pthread_mutex_lock(&producer->lock);
  while (true) {
    int64_t now = mq_now();
    hear(producer, now);
    renew(producer, now);
    /* That may have taken long: what has come meanwhile is no silence. */
    now = mq_now();
    hear(producer, now);
    if (now >= tick_at) {
      expire(producer, now);
      tick_at = now + TICK_MS * MQ_MS;
    }
    leave(producer, now);
    if (producer->is_closing && producer->active != NULL) {
      memq_error error;
      mq_fail(&error, MEMQ_ERROR_CANCELLED, NULL, "the producer was closed");
      fail_everything(producer, &error);
    }
    int64_t wake_at = pump(producer, now);
    bool has_done = producer->done_first != NULL;
    deliver(producer);
    if (has_done) continue;
    if (producer->is_closing && producer->active == NULL) {
      if (producer->call == NULL) break;
      if (!is_ending) {
        is_ending = true;
        mq_call_half_close(producer->call);
        continue;
      }
      if (now >= producer->end_by) {
        mq_call_free(producer->call);
        producer->call = NULL;
        break;
      }
    }
    if (producer->is_closing) wake_at = mq_min(wake_at, producer->end_by);
    pthread_mutex_unlock(&producer->lock);
    mq_waker_wait(&producer->waker, wake_at);
    pthread_mutex_lock(&producer->lock);
  }
  pthread_mutex_unlock(&producer->lock);
  return NULL;
}

/* --- life */

static void destroy(memq_producer *producer) {
  for (int32_t i = 0; i < producer->partition_count; i++) batch_free(producer->lanes[i].open);
  memq_error_free(producer->unheard);
  memq_error_free(producer->failure);
  memq_error_free(producer->end);
  pthread_cond_destroy(&producer->room);
  pthread_mutex_destroy(&producer->lock);
  mq_waker_destroy(&producer->waker);
  mq_client_release(producer->client);
  free(producer->topic);
  free(producer);
}

static memq_code check(const memq_producer_options *options, memq_error *error) {
  const struct {
    bool holds;
    const char *name, *want;
  } checks[] = {
      {options->acks >= MEMQ_ACKS_NONE && options->acks <= MEMQ_ACKS_ALL, "acks", "a memq_acks"},
      {options->linger_ms >= 0, "linger_ms", "not negative"},
      {options->batch_bytes > 0, "batch_bytes", "positive"},
      {options->batch_bytes_max >= options->batch_bytes && options->batch_bytes_max <= BATCH_BYTES_CEILING, "batch_bytes_max",
       "from batch_bytes to 8 MiB"},
      {options->buffer_bytes_max >= options->batch_bytes_max, "buffer_bytes_max", "at least batch_bytes_max"},
      {options->request_timeout_ms > 0, "request_timeout_ms", "positive"},
      {options->delivery_timeout_ms >= options->request_timeout_ms && options->delivery_timeout_ms <= INT64_C(1) << 40, "delivery_timeout_ms",
       "at least request_timeout_ms"},
  };
  for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
    if (!checks[i].holds) return mq_fail(error, MEMQ_ERROR_CONFIGURATION_INVALID, checks[i].name, "must be %s", checks[i].want);
  }
  return MEMQ_OK;
}

static memq_code make(memq_client *client, const char *topic, const memq_producer_options *options, int32_t partitions, int64_t id, int32_t epoch,
                      memq_producer **out, memq_error *error) {
  memq_producer *producer = calloc(1, sizeof(*producer) + (size_t)partitions * sizeof(struct lane));
  if (producer == NULL) return mq_fail_memory(error);
  producer->topic = strdup(topic);
  if (producer->topic == NULL || mq_waker_init(&producer->waker) != 0) {
    free(producer->topic);
    free(producer);
    return mq_fail_memory(error);
  }
  if (mq_mutex_init(&producer->lock) != 0) {
    mq_waker_destroy(&producer->waker);
    free(producer->topic);
    free(producer);
    return mq_fail_memory(error);
  }
  if (mq_cond_init(&producer->room) != 0) {
    pthread_mutex_destroy(&producer->lock);
    mq_waker_destroy(&producer->waker);
    free(producer->topic);
    free(producer);
    return mq_fail_memory(error);
  }
  producer->client = client;
  mq_client_retain(client);
  producer->stop.waker = &producer->waker;
  producer->options = *options;
  producer->partition_count = partitions;
  producer->uses_sequences = options->idempotent && options->acks != MEMQ_ACKS_NONE;
  producer->in_flight_max = options->acks == MEMQ_ACKS_NONE ? INT32_MAX : options->idempotent ? IN_FLIGHT_MAX : 1;
  producer->next_id = producer->next_request = 1;
  producer->sticky = (int32_t)(mq_random() % (uint32_t)partitions);
  for (int32_t i = 0; i < partitions; i++) {
    producer->lanes[i].partition = i;
    producer->lanes[i].producer_id = id;
    producer->lanes[i].epoch = epoch;
  }
  int number = mq_thread_start(&producer->thread, run, producer);
  if (number != 0) {
    destroy(producer);
    return mq_fail(error, MEMQ_ERROR_RESOURCE_EXHAUSTED, topic, "no thread for a producer: %s", strerror(number));
  }
  *out = producer;
  return MEMQ_OK;
}

memq_code memq_producer_open(memq_client *client, const char *topic, const memq_producer_options *given, memq_producer **out,
                             memq_error **error_out) {
  memq_error error = {0};
  memq_producer_options options;
  MQ_OPTIONS(memq_producer_options, options, given);
  int64_t deadline = mq_client_deadline(client, MEMQ_DEFAULT_TIMEOUT);
  int64_t id = 0;
  int32_t epoch = 0, partitions = 0;
  memq_code code = check(&options, &error);
  Memq__V1__DescribeTopicResponse *described = NULL;
  if (code == MEMQ_OK) code = mq_client_describe_topic(client, topic, deadline, &described, &error);
  if (code == MEMQ_OK) partitions = described->topic->partition_count;
  if (described != NULL) memq__v1__describe_topic_response__free_unpacked(described, NULL);
  if (code == MEMQ_OK && options.idempotent && options.acks != MEMQ_ACKS_NONE) {
    const Memq__V1__InitProducerRequest request = MEMQ__V1__INIT_PRODUCER_REQUEST__INIT;
    ProtobufCMessage *answer;
    code = mq_client_unary(client, MQ_LANE_CONTROL, "/memq.v1.IngestService/InitProducer", &request.base,
                           &memq__v1__init_producer_response__descriptor, deadline, MQ_RETRY_UNTIL_DEADLINE, NULL, &answer, &error);
    if (code == MEMQ_OK) {
      id = ((const Memq__V1__InitProducerResponse *)answer)->producer_id;
      epoch = ((const Memq__V1__InitProducerResponse *)answer)->producer_epoch;
      protobuf_c_message_free_unpacked(answer, NULL);
    }
  }
  if (code == MEMQ_OK) code = make(client, topic, &options, partitions, id, epoch, out, &error);
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}

memq_code memq_producer_close(memq_producer *producer, int64_t timeout_ms, memq_error **error_out) {
  if (producer == NULL) return MEMQ_OK;
  memq_error error = {0};
  int64_t deadline = timeout_ms < 0 ? MQ_NEVER : mq_after_ms(mq_now(), timeout_ms);
  memq_code code = flush_all(producer, deadline, &error);
  pthread_mutex_lock(&producer->lock);
  producer->is_closing = true;
  producer->stop.is_set = true;
  producer->end_by = mq_min(deadline, mq_after_ms(mq_now(), CLOSE_MS));
  pthread_cond_broadcast(&producer->room);
  pthread_mutex_unlock(&producer->lock);
  mq_waker_signal(&producer->waker);
  pthread_join(producer->thread, NULL);
  /* Of records that another thread sent while the flush waited. */
  if (code == MEMQ_OK && producer->unheard != NULL) {
    error = *producer->unheard;
    code = error.code;
  }
  if (code == MEMQ_OK && producer->options.acks == MEMQ_ACKS_NONE && producer->end != NULL) {
    error = *producer->end;
    code = error.code;
  }
  destroy(producer);
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}
