/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/*
 * A consumer: one Fetch stream at a time, begun by polls and read by them. What the server sends ahead waits in the connection, bounded by the
 * stream's window. A group's member has a thread of its own for heartbeats and commits.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#include "memq/v1/ingest.pb-c.h"
#include "memq/v1/metadata.pb-c.h"

enum {
  FETCH_BYTES_CEILING = 64 << 20,
  FETCH_WAIT_CEILING_MS = 60000,
  /* Positions of one fetch, as the protocol bounds them. */
  POSITIONS_MAX = 1000,
  /* A fetch that says nothing for so long beyond its wait is dead. */
  SILENCE_MS = 30000,
  /* An answer that cannot be read so often is not the memory's fault. */
  UNREADABLE_MAX = 3,
  HEARTBEAT_TIMEOUT_MS = 10000,
  HEARTBEAT_INTERVAL_MAX_MS = 5000,
  LEAVE_TIMEOUT_MS = 5000,
  /* For a member's steps within a poll, however short that is. */
  GROUP_STEP_MS = 10000,
  MEMBER_ID_SIZE = 33,
};

#define BEYOND_ANY_OFFSET (INT64_C(1) << 62)

typedef struct position {
  int32_t partition;
  /* Of the next fetch. */
  int64_t offset;
  /* Handed out below it. */
  int64_t delivered;
  /* Handed out by polls before the last one: what the background commits. */
  int64_t consumed;
  int64_t committed;
  /* Leader epochs of the records before offset, delivered and consumed; -1: not known. With them the server can tell that the log lost records
     that were read (KIP-320). */
  int64_t epoch, delivered_epoch, consumed_epoch;
} position;

static position new_position(int32_t partition) {
  return (position){
      .partition = partition,
      .offset = -1,
      .delivered = -1,
      .consumed = -1,
      .committed = -1,
      .epoch = -1,
      .delivered_epoch = -1,
      .consumed_epoch = -1,
  };
}

/* What a member's calls carry. */
typedef struct member {
  char id[MEMBER_ID_SIZE];
  int64_t epoch;
} member;

struct memq_consumer {
  memq_client *client;
  char *topic;
  uint8_t topic_id[16];
  memq_consumer_options options;
  char *group;
  /* Partitions of the topic at the open. */
  int32_t partition_count;
  /* What the application is shown, until its next poll. */
  int32_t *partitions;
  size_t shown_count;
  /* Those that the application named; NULL: all. */
  int32_t *only;
  size_t only_count;
  mq_waker waker;
  pthread_t thread;
  /* For the calls of that thread. */
  mq_waker thread_waker;
  mq_stop stop;
  /* For its heartbeat: set also when there is something new to say. */
  mq_stop beat_stop;
  bool has_thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  /* Under the lock. */
  bool is_polling, is_closing;
  memq_error *failure;
  /* By partition. */
  position *positions;
  size_t count;
  bool is_joined;
  member member;
  /* The group gave the member up; the next poll joins again. */
  bool is_lost;
  /* What the group assigns, ascending. A poll makes positions of it: until then both count as read. */
  int32_t *wanted;
  size_t wanted_count;
  bool has_news;
  /* Rises with each change of what is read. */
  uint64_t reading_version, reported_version;
  int64_t heartbeat_number;
  /* When a poll may try again to do what the group says. */
  int64_t follow_at;
  mq_backoff follow_backoff;
  /* Rises with each seek: what was fetched before is dropped. */
  uint64_t generation;
  /* One commit at a time. */
  bool is_committing;
  /* Of the poll that runs. */
  mq_call *call;
  int server;
  uint64_t call_generation;
  /* When the fetch began, or brought its last message to a poll. */
  int64_t heard_at;
  /* Messages in a row that could not be read. */
  int unreadable_count;
  size_t first_position;
  /* How often the log lost what was handed out. */
  int64_t truncations;
  int64_t failing_since;
  int64_t retry_at;
  mq_backoff backoff;
};

struct memq_batch {
  Memq__V1__FetchResponse *response;
  size_t count;
  memq_header *headers;
  memq_record records[];
};

void memq_consumer_options_init_sized(memq_consumer_options *options, size_t size) {
  static const memq_consumer_options defaults = {
      .start = MEMQ_START_EARLIEST,
      .reset = MEMQ_RESET_NEAREST,
      .fetch_bytes_max = 4 << 20,
      .fetch_wait_ms = 5000,
      .commit_interval_ms = 5000,
      .session_timeout_ms = 45000,
      .reconnect_timeout_ms = 120000,
  };
  MQ_INIT(options, size, defaults);
}

/* --- batches */

size_t memq_batch_count(const memq_batch *batch) { return batch->count; }

const memq_record *memq_batch_record(const memq_batch *batch, size_t index) { return index < batch->count ? &batch->records[index] : NULL; }

int32_t memq_batch_partition(const memq_batch *batch) { return batch->response->partition; }

int64_t memq_batch_next_offset(const memq_batch *batch) { return batch->response->next_offset; }

int64_t memq_batch_high_watermark(const memq_batch *batch) { return batch->response->high_watermark; }

void memq_batch_free(memq_batch *batch) {
  if (batch == NULL) return;
  memq__v1__fetch_response__free_unpacked(batch->response, NULL);
  free(batch->headers);
  free(batch);
}

/* Empty bytes are unpacked as NULL; to the application NULL means null. */
static const void *bytes_of(const ProtobufCBinaryData *data) { return data->data != NULL ? (const void *)data->data : (const void *)""; }

/* Takes the response when it returns a batch. Records below `from` are left out. */
static memq_batch *batch_make(Memq__V1__FetchResponse *response, int64_t from) {
  size_t header_count = 0;
  for (size_t i = 0; i < response->n_records; i++) header_count += response->records[i]->n_headers;
  memq_batch *batch = malloc(sizeof(*batch) + response->n_records * sizeof(memq_record));
  memq_header *headers = header_count > 0 ? malloc(header_count * sizeof(*headers)) : NULL;
  if (batch == NULL || (headers == NULL && header_count > 0)) {
    free(batch);
    free(headers);
    return NULL;
  }
  *batch = (memq_batch){.response = response, .headers = headers};
  for (size_t i = 0; i < response->n_records; i++) {
    const Memq__V1__Record *wire = response->records[i];
    if (wire->offset < from) continue;
    memq_record *record = &batch->records[batch->count++];
    *record = (memq_record){
        .partition = response->partition,
        .offset = wire->offset,
        .timestamp_ms = wire->timestamp_ms,
        .header_count = wire->n_headers,
    };
    if (wire->key_is_case == MEMQ__V1__RECORD__KEY_IS_KEY) {
      record->key = bytes_of(&wire->key);
      record->key_size = wire->key.len;
    }
    if (wire->value_is_case == MEMQ__V1__RECORD__VALUE_IS_VALUE) {
      record->value = bytes_of(&wire->value);
      record->value_size = wire->value.len;
    }
    if (wire->n_headers > 0) record->headers = headers;
    for (size_t j = 0; j < wire->n_headers; j++) {
      const Memq__V1__Header *header = wire->headers[j];
      *headers = (memq_header){.name = header->name};
      if (header->value_is_case == MEMQ__V1__HEADER__VALUE_IS_VALUE) {
        headers->value = bytes_of(&header->value);
        headers->value_size = header->value.len;
      }
      headers++;
    }
  }
  return batch;
}

/* --- the group */

static void fail_for_good(memq_consumer *consumer, const memq_error *error) {
  if (consumer->failure == NULL) mq_publish(&consumer->failure, error);
  pthread_cond_broadcast(&consumer->changed);
  mq_waker_signal(&consumer->waker);
}

static memq_code group_call(memq_consumer *consumer, const char *path, const ProtobufCMessage *request, const ProtobufCMessageDescriptor *type,
                            int64_t deadline, mq_retry retry, mq_stop *stop, memq_error *error) {
  return mq_client_unary(consumer->client, MQ_LANE_CONTROL, path, request, type, deadline, retry, stop, NULL, error);
}

static position *find_in(position *positions, size_t count, int32_t partition) {
  size_t low = 0, high = count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (positions[middle].partition < partition) low = middle + 1;
    else high = middle;
  }
  return low < count && positions[low].partition == partition ? &positions[low] : NULL;
}

static position *find(memq_consumer *consumer, int32_t partition) { return find_in(consumer->positions, consumer->count, partition); }

static bool is_among(const int32_t *partitions, size_t count, int32_t partition) {
  for (size_t low = 0, high = count; low < high;) {
    size_t middle = low + (high - low) / 2;
    if (partitions[middle] == partition) return true;
    if (partitions[middle] < partition) low = middle + 1;
    else high = middle;
  }
  return false;
}

static member member_of(memq_consumer *consumer) {
  pthread_mutex_lock(&consumer->lock);
  member result = consumer->member;
  pthread_mutex_unlock(&consumer->lock);
  return result;
}

/* The group does not know the member any more: others may read what it read. */
static void lost(memq_consumer *consumer, const member *who) {
  pthread_mutex_lock(&consumer->lock);
  if (strcmp(who->id, consumer->member.id) == 0) {
    consumer->is_lost = true;
    pthread_cond_broadcast(&consumer->changed);
    mq_waker_signal(&consumer->waker);
  }
  pthread_mutex_unlock(&consumer->lock);
}

static memq_code send_commit(memq_consumer *consumer, const position *offsets, size_t count, int64_t deadline, mq_stop *stop, memq_error *error) {
  Memq__V1__CommitOffsetsRequest request = MEMQ__V1__COMMIT_OFFSETS_REQUEST__INIT;
  member from = member_of(consumer);
  Memq__V1__GroupOffset *wire = calloc(count, sizeof(*wire));
  Memq__V1__TopicPartition *places = calloc(count, sizeof(*places));
  Memq__V1__GroupOffset **pointers = calloc(count, sizeof(*pointers));
  memq_code code = wire != NULL && places != NULL && pointers != NULL ? MEMQ_OK : mq_fail_memory(error);
  for (size_t i = 0; code == MEMQ_OK && i < count; i++) {
    memq__v1__topic_partition__init(&places[i]);
    places[i].topic_id = (ProtobufCBinaryData){.len = sizeof(consumer->topic_id), .data = consumer->topic_id};
    places[i].partition = offsets[i].partition;
    memq__v1__group_offset__init(&wire[i]);
    wire[i].topic_partition = &places[i];
    wire[i].offset = offsets[i].committed;
    if (offsets[i].consumed_epoch >= 0) {
      wire[i].leader_epoch_is_case = MEMQ__V1__GROUP_OFFSET__LEADER_EPOCH_IS_LEADER_EPOCH;
      wire[i].leader_epoch = offsets[i].consumed_epoch;
    }
    pointers[i] = &wire[i];
  }
  if (code == MEMQ_OK) {
    request.group = consumer->group;
    request.member_id = from.id;
    request.member_epoch = from.epoch;
    request.n_offsets = count;
    request.offsets = pointers;
    code = group_call(consumer, "/memq.v1.IngestService/CommitOffsets", &request.base, &memq__v1__commit_offsets_response__descriptor, deadline,
                      MQ_RETRY_UNTIL_DEADLINE, stop, error);
    if (code == MEMQ_ERROR_GROUP_MEMBER_UNKNOWN) lost(consumer, &from);
  }
  free(wire);
  free(places);
  free(pointers);
  return code;
}

/* What was handed out is processed. */
static void consume(position *at) {
  at->consumed = at->delivered;
  at->consumed_epoch = at->delivered_epoch;
}

typedef enum commit_kind { COMMIT_CONSUMED, COMMIT_DELIVERED } commit_kind;

/* Commits what has changed. */
static memq_code commit(memq_consumer *consumer, commit_kind kind, int64_t deadline, mq_stop *stop, memq_error *error) {
  if (consumer->group == NULL)
    return mq_fail(error, MEMQ_ERROR_INVALID_ARGUMENT, consumer->topic, "a consumer without a group has nothing to commit to");
  memq_code code = MEMQ_OK;
  position *changed = NULL;
  size_t count = 0;
  pthread_mutex_lock(&consumer->lock);
  while (consumer->is_committing && mq_cond_wait(&consumer->changed, &consumer->lock, deadline)) continue;
  if (consumer->is_committing) {
    code = mq_fail(error, MEMQ_ERROR_DEADLINE_EXCEEDED, consumer->group, "another commit is under way");
  } else {
    changed = malloc((consumer->count > 0 ? consumer->count : 1) * sizeof(*changed));
    if (changed == NULL) code = mq_fail_memory(error);
    for (size_t i = 0; changed != NULL && i < consumer->count; i++) {
      position *at = &consumer->positions[i];
      if (kind == COMMIT_DELIVERED) consume(at);
      if (at->consumed < 0 || at->consumed == at->committed) continue;
      changed[count] = *at;
      changed[count++].committed = at->consumed;
    }
    consumer->is_committing = count > 0;
  }
  pthread_mutex_unlock(&consumer->lock);
  if (count > 0) {
    code = send_commit(consumer, changed, count, deadline, stop, error);
    pthread_mutex_lock(&consumer->lock);
    for (size_t i = 0; code == MEMQ_OK && i < count; i++) {
      position *at = find(consumer, changed[i].partition);
      if (at != NULL) at->committed = changed[i].committed;
    }
    consumer->is_committing = false;
    pthread_cond_broadcast(&consumer->changed);
    pthread_mutex_unlock(&consumer->lock);
  }
  free(changed);
  return code;
}

memq_code memq_consumer_commit(memq_consumer *consumer, int64_t timeout_ms, memq_error **error_out) {
  memq_error error = {0};
  memq_code code = commit(consumer, COMMIT_DELIVERED, mq_client_deadline(consumer->client, timeout_ms), NULL, &error);
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}

memq_code memq_consumer_commit_offset(memq_consumer *consumer, int32_t partition, int64_t offset, int64_t timeout_ms, memq_error **error_out) {
  memq_error error = {0};
  memq_code code;
  int64_t deadline = mq_client_deadline(consumer->client, timeout_ms);
  if (consumer->group == NULL) {
    code = mq_fail(&error, MEMQ_ERROR_INVALID_ARGUMENT, consumer->topic, "a consumer without a group has nothing to commit to");
  } else if (offset < 0) {
    code = mq_fail(&error, MEMQ_ERROR_INVALID_ARGUMENT, consumer->topic, "an offset is not negative");
  } else {
    position one = new_position(partition);
    one.committed = offset;
    pthread_mutex_lock(&consumer->lock);
    position *at = find(consumer, partition);
    if (at != NULL && at->delivered == offset) one.consumed_epoch = at->delivered_epoch;
    pthread_mutex_unlock(&consumer->lock);
    code = send_commit(consumer, &one, 1, deadline, NULL, &error);
    pthread_mutex_lock(&consumer->lock);
    at = find(consumer, partition);
    if (code == MEMQ_OK && at != NULL) {
      at->committed = at->consumed = offset;
      at->consumed_epoch = one.consumed_epoch;
    }
    pthread_mutex_unlock(&consumer->lock);
  }
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}

static int compare(const void *a, const void *b) {
  int32_t left = *(const int32_t *)a, right = *(const int32_t *)b;
  return (left > right) - (left < right);
}

/* Those of the consumer's topic, ascending. NULL: no memory. */
static int32_t *mine(const memq_consumer *consumer, Memq__V1__TopicPartition *const *wire, size_t wire_count, size_t *count) {
  int32_t *found = calloc(wire_count + 1, sizeof(*found));
  *count = 0;
  if (found == NULL) return NULL;
  for (size_t i = 0; i < wire_count; i++) {
    if (wire[i]->topic_id.len == sizeof(consumer->topic_id) && memcmp(wire[i]->topic_id.data, consumer->topic_id, sizeof(consumer->topic_id)) == 0)
      found[(*count)++] = wire[i]->partition;
  }
  if (*count > 0) qsort(found, *count, sizeof(*found), compare);
  return found;
}

/* Under the lock. Takes the array. */
static void want(memq_consumer *consumer, int32_t *partitions, size_t count) {
  free(consumer->wanted);
  consumer->wanted = partitions;
  consumer->wanted_count = count;
  consumer->has_news = true;
  consumer->reading_version++;
  mq_waker_signal(&consumer->waker);
}

/* All that is read, or will be without another word from the group. Under the lock. False: no memory. */
static bool fill_reading(const memq_consumer *consumer, Memq__V1__TopicPartitions *reading) {
  size_t most = consumer->count + consumer->wanted_count + 1;
  Memq__V1__TopicPartition *wire = calloc(most, sizeof(*wire));
  reading->partitions = calloc(most, sizeof(*reading->partitions));
  if (wire == NULL || reading->partitions == NULL) {
    free(wire);
    free(reading->partitions);
    reading->partitions = NULL;
    return false;
  }
  for (size_t i = 0, j = 0; i < consumer->count || j < consumer->wanted_count;) {
    int32_t next;
    if (j == consumer->wanted_count || (i < consumer->count && consumer->positions[i].partition <= consumer->wanted[j])) {
      next = consumer->positions[i].partition;
      if (j < consumer->wanted_count && consumer->wanted[j] == next) j++;
      i++;
    } else {
      next = consumer->wanted[j++];
    }
    Memq__V1__TopicPartition *one = &wire[reading->n_partitions];
    memq__v1__topic_partition__init(one);
    one->topic_id = (ProtobufCBinaryData){.len = sizeof(consumer->topic_id), .data = (uint8_t *)(uintptr_t)consumer->topic_id};
    one->partition = next;
    reading->partitions[reading->n_partitions++] = one;
  }
  /* With nothing in it the block is still to be freed. */
  reading->partitions[reading->n_partitions] = wire;
  return true;
}

static void free_reading(Memq__V1__TopicPartitions *reading) {
  if (reading->partitions == NULL) return;
  free(reading->n_partitions > 0 ? reading->partitions[0] : reading->partitions[reading->n_partitions]);
  free(reading->partitions);
}

/* One heartbeat, held until `until` unless the group has news. `next_at`: when the next one is due. */
static memq_code heartbeat(memq_consumer *consumer, int64_t until, int64_t *next_at, memq_error *error) {
  Memq__V1__HeartbeatGroupRequest request = MEMQ__V1__HEARTBEAT_GROUP_REQUEST__INIT;
  Memq__V1__TopicPartitions reading = MEMQ__V1__TOPIC_PARTITIONS__INIT;
  ProtobufCMessage *answer;
  int64_t now = mq_now();
  pthread_mutex_lock(&consumer->lock);
  member from = consumer->member;
  uint64_t version = consumer->reading_version;
  consumer->beat_stop.is_set = consumer->is_closing;
  request.number = ++consumer->heartbeat_number;
  bool is_full = version == consumer->reported_version || fill_reading(consumer, &reading);
  pthread_mutex_unlock(&consumer->lock);
  if (!is_full) return mq_fail_memory(error);
  if (reading.partitions != NULL) request.reading = &reading;
  request.group = consumer->group;
  request.member_id = from.id;
  request.member_epoch = from.epoch;
  request.wait_max_ms = (int32_t)mq_max(0, (until - now) / MQ_MS);
  /* Beyond the wait: time for another server before the session is over. */
  int64_t timeout_ms = request.wait_max_ms + mq_min(HEARTBEAT_TIMEOUT_MS, consumer->options.session_timeout_ms / 3);
  memq_code code = mq_client_unary(consumer->client, MQ_LANE_CONTROL, "/memq.v1.IngestService/HeartbeatGroup", &request.base,
                                   &memq__v1__heartbeat_group_response__descriptor, mq_after_ms(now, timeout_ms), MQ_RETRY_NEVER,
                                   &consumer->beat_stop, &answer, error);
  free_reading(&reading);
  if (code == MEMQ_ERROR_GROUP_MEMBER_UNKNOWN) lost(consumer, &from);
  if (code != MEMQ_OK) return code;
  Memq__V1__HeartbeatGroupResponse *place = (Memq__V1__HeartbeatGroupResponse *)answer;
  *next_at = mq_after_ms(mq_now(), place->next_ms);
  size_t count = 0;
  int32_t *assigned = place->assigned != NULL ? mine(consumer, place->assigned->partitions, place->assigned->n_partitions, &count) : NULL;
  if (place->assigned != NULL && assigned == NULL) code = mq_fail_memory(error);
  pthread_mutex_lock(&consumer->lock);
  /* A poll may have joined again meanwhile. */
  if (code == MEMQ_OK && strcmp(from.id, consumer->member.id) == 0) {
    consumer->reported_version = version;
    consumer->member.epoch = place->member_epoch;
    if (assigned != NULL) want(consumer, assigned, count);
    assigned = NULL;
  }
  pthread_mutex_unlock(&consumer->lock);
  free(assigned);
  memq__v1__heartbeat_group_response__free_unpacked(place, NULL);
  return code;
}

static void *run_group(void *argument) {
  memq_consumer *consumer = argument;
  int64_t beat = mq_min(consumer->options.session_timeout_ms / 4, HEARTBEAT_INTERVAL_MAX_MS);
  int64_t interval = consumer->options.commit_interval_ms;
  int64_t beat_at = mq_now(), commit_at = interval > 0 ? mq_after_ms(mq_now(), interval) : MQ_NEVER;
  mq_backoff backoff = {0};
  pthread_mutex_lock(&consumer->lock);
  while (!consumer->is_closing && consumer->failure == NULL) {
    int64_t now = mq_now();
    if (consumer->is_lost) {
      /* The next poll joins again. */
      mq_cond_wait(&consumer->changed, &consumer->lock, MQ_NEVER);
      continue;
    }
    bool has_word = consumer->reading_version != consumer->reported_version;
    if (now < beat_at && now < commit_at && !has_word) {
      mq_cond_wait(&consumer->changed, &consumer->lock, mq_min(beat_at, commit_at));
      continue;
    }
    pthread_mutex_unlock(&consumer->lock);
    memq_error error = {0};
    memq_code code;
    bool is_beat = now < commit_at;
    if (is_beat) {
      code = heartbeat(consumer, mq_min(mq_after_ms(now, beat), commit_at), &beat_at, &error);
      if (code == MEMQ_OK) mq_backoff_reset(&backoff);
    } else {
      code = commit(consumer, COMMIT_CONSUMED, mq_after_ms(now, beat), &consumer->stop, &error);
      commit_at = mq_after_ms(mq_now(), interval);
    }
    pthread_mutex_lock(&consumer->lock);
    if (code == MEMQ_OK) continue;
    /* What can heal is tried again at the next turn. */
    bool may_heal = error.is_retriable || error.is_unprocessed || code == MEMQ_ERROR_CANCELLED || code == MEMQ_ERROR_GROUP_MEMBER_UNKNOWN ||
                    code == MEMQ_ERROR_PARTITION_NOT_ASSIGNED;
    if (!may_heal) fail_for_good(consumer, &error);
    if (!is_beat || consumer->beat_stop.is_set) continue;
    int64_t again_at = mq_now() + mq_backoff_step(&backoff);
    while (!consumer->is_closing && mq_now() < again_at) mq_cond_wait(&consumer->changed, &consumer->lock, again_at);
  }
  pthread_mutex_unlock(&consumer->lock);
  return NULL;
}

/* --- polling */

static mq_msg *fetch_request(memq_consumer *consumer) {
  size_t count = consumer->count < POSITIONS_MAX ? consumer->count : POSITIONS_MAX;
  Memq__V1__FetchRequest request = MEMQ__V1__FETCH_REQUEST__INIT;
  Memq__V1__FetchPosition *wire = calloc(count, sizeof(*wire));
  Memq__V1__FetchPosition **pointers = calloc(count, sizeof(*pointers));
  mq_msg *message = NULL;
  if (wire != NULL && pointers != NULL) {
    /* The server fills the answer in this order: each partition comes first in its turn. Where not all fit, those left out come next, and soon. */
    size_t windows = (consumer->count + POSITIONS_MAX - 1) / POSITIONS_MAX;
    consumer->first_position = (consumer->first_position + (windows > 1 ? POSITIONS_MAX : 1)) % consumer->count;
    for (size_t i = 0; i < count; i++) {
      const position *from = &consumer->positions[(consumer->first_position + i) % consumer->count];
      memq__v1__fetch_position__init(&wire[i]);
      wire[i].partition = from->partition;
      wire[i].offset = from->offset;
      if (from->epoch >= 0) {
        wire[i].last_epoch_is_case = MEMQ__V1__FETCH_POSITION__LAST_EPOCH_IS_LAST_EPOCH;
        wire[i].last_epoch = from->epoch;
      }
      pointers[i] = &wire[i];
    }
    request.topic = consumer->topic;
    request.n_positions = count;
    request.positions = pointers;
    request.max_bytes = (int32_t)consumer->options.fetch_bytes_max;
    request.min_bytes = 1;
    request.wait_max_ms = (int32_t)(consumer->options.fetch_wait_ms / (int64_t)windows);
    request.format = MEMQ__V1__FETCH_FORMAT__FETCH_FORMAT_RECORDS;
    message = mq_msg_pack(&request.base);
  }
  free(wire);
  free(pointers);
  return message;
}

static int64_t last_epoch(const Memq__V1__FetchResponse *response) {
  return response->last_epoch_is_case == MEMQ__V1__FETCH_RESPONSE__LAST_EPOCH_IS_LAST_EPOCH ? response->last_epoch : -1;
}

static void end_fetch(memq_consumer *consumer) {
  mq_call_free(consumer->call);
  consumer->call = NULL;
}

/* A fetch failed: to be tried again, or for good. */
static memq_code fetch_failed(memq_consumer *consumer, memq_error *error) {
  int64_t now = mq_now();
  mq_client_name_error(consumer->client, consumer->server, error);
  if (consumer->failing_since == 0) consumer->failing_since = now;
  /* A server that cancels is about to go, or broken: as one that is not there. */
  bool may_heal = error->is_retriable || error->is_unprocessed || error->code == MEMQ_ERROR_CANCELLED;
  if (!may_heal || now >= mq_after_ms(consumer->failing_since, consumer->options.reconnect_timeout_ms)) {
    fail_for_good(consumer, error);
    return error->code;
  }
  if (mq_is_absence(error)) mq_client_failed(consumer->client, consumer->server);
  consumer->retry_at = now + mq_backoff_step(&consumer->backoff);
  return MEMQ_OK;
}

/* The log lost records that were read: on where both histories agree, as far as the server can tell. */
static void go_back(memq_consumer *consumer, position *at, const Memq__V1__FetchResponse *response) {
  at->offset = response->next_offset;
  at->epoch = last_epoch(response);
  if (at->delivered > at->offset) {
    consumer->truncations++;
    at->delivered = at->offset;
    at->delivered_epoch = at->epoch;
  }
  if (at->consumed > at->offset) {
    at->consumed = at->offset;
    at->consumed_epoch = at->epoch;
  }
}

static memq_code part_failed(memq_consumer *consumer, position *at, const Memq__V1__FetchResponse *response, memq_error *error) {
  mq_fail_detail(error, response->error);
  if (error->code == MEMQ_ERROR_LOG_TRUNCATED && consumer->options.reset != MEMQ_RESET_FAIL) {
    go_back(consumer, at, response);
    *error = (memq_error){0};
    return MEMQ_OK;
  }
  if (error->code != MEMQ_ERROR_OFFSET_OUT_OF_RANGE || consumer->options.reset == MEMQ_RESET_FAIL) return fetch_failed(consumer, error);
  /* The limit is the nearest offset there is: the log's start for one below it, the high watermark for one above. The other end is found by
     asking beyond it. */
  int64_t nearest = error->has_limit && error->limit >= 0 ? error->limit : 0;
  bool is_below = at->offset < nearest;
  at->epoch = -1;
  switch (consumer->options.reset) {
    case MEMQ_RESET_EARLIEST: at->offset = is_below ? nearest : 0; break;
    case MEMQ_RESET_LATEST: at->offset = is_below ? BEYOND_ANY_OFFSET : nearest; break;
    default: at->offset = nearest; break;
  }
  return MEMQ_OK;
}

/* One message of a fetch. A batch when it brought records. */
static memq_code take(memq_consumer *consumer, const mq_msg *message, memq_batch **batch, memq_error *error) {
  Memq__V1__FetchResponse *response = memq__v1__fetch_response__unpack(NULL, message->size, message->data);
  if (response == NULL) {
    mq_fail(error, MEMQ_ERROR_CORRUPT_MESSAGE, consumer->topic, "the server's answer to a fetch cannot be read");
    /* There may only have been no memory for it. */
    error->is_retriable = ++consumer->unreadable_count < UNREADABLE_MAX;
    end_fetch(consumer);
    return fetch_failed(consumer, error);
  }
  consumer->unreadable_count = 0;
  memq_code code = MEMQ_OK;
  position *at = find(consumer, response->partition);
  if (at != NULL && response->error != NULL) {
    code = part_failed(consumer, at, response, error);
  } else if (at != NULL) {
    consumer->failing_since = 0;
    mq_backoff_reset(&consumer->backoff);
    int64_t next = response->next_offset, epoch = last_epoch(response);
    if (response->n_records > 0) {
      int64_t last = response->records[response->n_records - 1]->offset;
      next = mq_max(next, last < INT64_MAX ? last + 1 : last);
      response->next_offset = next;
      memq_batch *made = batch_make(response, at->offset);
      if (made == NULL) {
        /* What the stream brings next lies behind this gap. */
        end_fetch(consumer);
        code = mq_fail_memory(error);
        next = at->offset;
        epoch = at->epoch;
      } else if (made->count > 0) {
        *batch = made;
        at->delivered = next;
        at->delivered_epoch = epoch;
        response = NULL;
      } else {
        response = NULL;
        memq_batch_free(made);
      }
    }
    if (next >= at->offset) {
      at->offset = next;
      at->epoch = epoch;
    }
  }
  if (response != NULL) memq__v1__fetch_response__free_unpacked(response, NULL);
  return code;
}

static void begin_fetch(memq_consumer *consumer, memq_error *error) {
  mq_msg *request = fetch_request(consumer);
  if (request == NULL) {
    mq_fail_memory(error);
    return;
  }
  consumer->call_generation = consumer->generation;
  consumer->heard_at = mq_now();
  consumer->call =
      mq_client_call(consumer->client, MQ_LANE_FETCH, "/memq.v1.IngestService/Fetch", MQ_NEVER, &consumer->waker, &consumer->server, error);
  if (consumer->call == NULL) {
    free(request);
    return;
  }
  mq_call_send(consumer->call, request);
  mq_call_half_close(consumer->call);
}

static memq_code join(memq_consumer *consumer, int64_t deadline, memq_error *error);
static memq_code begin(memq_consumer *consumer, position *positions, size_t count, int64_t deadline, memq_error *error);

/* Makes the positions those that the group wants: what goes is committed first, what comes begins where the group stands. Under the lock, which
   it gives up for its calls; the poll that calls it is the only one. */
static memq_code follow_wanted(memq_consumer *consumer, int64_t deadline, memq_error *error) {
  int32_t *wanted = calloc(consumer->wanted_count + 1, sizeof(*wanted));
  position *next = calloc(consumer->wanted_count + 1, sizeof(*next));
  position *made = calloc(consumer->wanted_count + 1, sizeof(*made));
  int32_t *shown = calloc(consumer->wanted_count + 1, sizeof(*shown));
  size_t wanted_count = consumer->wanted_count, count = 0, made_count = 0;
  memq_code code = wanted != NULL && next != NULL && made != NULL && shown != NULL ? MEMQ_OK : mq_fail_memory(error);
  if (code == MEMQ_OK) {
    bool is_any_gone = false;
    memcpy(wanted, consumer->wanted, wanted_count * sizeof(*wanted));
    for (size_t i = 0; i < consumer->count; i++) is_any_gone |= !is_among(wanted, wanted_count, consumer->positions[i].partition);
    for (size_t i = 0; i < wanted_count; i++) {
      if (find(consumer, wanted[i]) == NULL)
        made[made_count++] = new_position(wanted[i]);
    }
    pthread_mutex_unlock(&consumer->lock);
    /* Where it cannot be committed the next reader goes on at the last commit. */
    memq_error ignored = {0};
    if (is_any_gone && consumer->options.commit_interval_ms > 0) (void)commit(consumer, COMMIT_CONSUMED, deadline, NULL, &ignored);
    if (made_count > 0) code = begin(consumer, made, made_count, deadline, error);
    pthread_mutex_lock(&consumer->lock);
  }
  if (code == MEMQ_OK && !consumer->is_lost) {
    for (size_t i = 0; i < wanted_count; i++) {
      const position *at = find(consumer, wanted[i]);
      if (at == NULL) at = find_in(made, made_count, wanted[i]);
      /* The group may have changed its mind. */
      if (at == NULL || !is_among(consumer->wanted, consumer->wanted_count, wanted[i])) continue;
      shown[count] = wanted[i];
      next[count++] = *at;
    }
    free(consumer->positions);
    free(consumer->partitions);
    consumer->positions = next;
    consumer->count = count;
    consumer->partitions = shown;
    consumer->shown_count = count;
    next = NULL;
    shown = NULL;
    consumer->first_position = 0;
    consumer->has_news = count != consumer->wanted_count;
    consumer->reading_version++;
    consumer->beat_stop.is_set = true;
    mq_waker_signal(&consumer->thread_waker);
    pthread_cond_broadcast(&consumer->changed);
  }
  free(wanted);
  free(next);
  free(made);
  free(shown);
  return code;
}

/* What the group says: others or more partitions, or that this member must join again. As follow_wanted(). */
static memq_code follow_group(memq_consumer *consumer, memq_error *error) {
  int64_t deadline = mq_after_ms(mq_now(), GROUP_STEP_MS);
  memq_code code;
  if (consumer->is_lost) {
    /* Others read it already. */
    consumer->count = 0;
    consumer->wanted_count = 0;
    pthread_mutex_unlock(&consumer->lock);
    code = join(consumer, deadline, error);
    pthread_mutex_lock(&consumer->lock);
  } else {
    code = follow_wanted(consumer, deadline, error);
  }
  if (code == MEMQ_OK) {
    mq_backoff_reset(&consumer->follow_backoff);
    return MEMQ_OK;
  }
  if (!error->is_retriable && !error->is_unprocessed && code != MEMQ_ERROR_CANCELLED) {
    if (code != MEMQ_ERROR_OUT_OF_MEMORY) fail_for_good(consumer, error);
    return code;
  }
  consumer->follow_at = mq_now() + mq_backoff_step(&consumer->follow_backoff);
  *error = (memq_error){0};
  return MEMQ_OK;
}

/* Under the lock, which it gives up only to wait, and to follow its group. */
static memq_code poll_locked(memq_consumer *consumer, int64_t deadline, memq_batch **batch, memq_error *error) {
  while (true) {
    if (consumer->failure != NULL) {
      *error = *consumer->failure;
      return error->code;
    }
    if (consumer->is_closing) return mq_fail(error, MEMQ_ERROR_CANCELLED, consumer->topic, "the consumer is closed");
    if (consumer->is_lost || consumer->has_news) {
      if (mq_now() < consumer->follow_at) {
        if (mq_now() >= deadline) return MEMQ_OK;
        pthread_mutex_unlock(&consumer->lock);
        mq_waker_wait(&consumer->waker, mq_min(deadline, consumer->follow_at));
        pthread_mutex_lock(&consumer->lock);
        continue;
      }
      end_fetch(consumer);
      if (follow_group(consumer, error) != MEMQ_OK) return error->code;
      continue;
    }
    if (consumer->call != NULL && consumer->call_generation != consumer->generation) end_fetch(consumer);
    int64_t now = mq_now();
    int64_t wake_at = deadline;
    if (consumer->count == 0) {
      /* Nothing is assigned. */
    } else if (consumer->call == NULL && consumer->retry_at > now) {
      wake_at = mq_min(deadline, consumer->retry_at);
    } else {
      if (consumer->call == NULL) {
        begin_fetch(consumer, error);
        if (consumer->call == NULL) {
          if (error->code == MEMQ_ERROR_OUT_OF_MEMORY) return error->code;
          if (fetch_failed(consumer, error) != MEMQ_OK) return error->code;
          continue;
        }
      }
      mq_msg *message;
      mq_next next = mq_call_next(consumer->call, &message, error);
      if (next == MQ_NEXT_MESSAGE) {
        consumer->heard_at = now;
        memq_code code = take(consumer, message, batch, error);
        free(message);
        if (code != MEMQ_OK || *batch != NULL) return code;
        continue;
      }
      if (next == MQ_NEXT_END) {
        end_fetch(consumer);
        if (error->code != MEMQ_OK && fetch_failed(consumer, error) != MEMQ_OK) return error->code;
        continue;
      }
      int64_t silent_at = mq_after_ms(consumer->heard_at, consumer->options.fetch_wait_ms + SILENCE_MS);
      if (now >= silent_at) {
        end_fetch(consumer);
        mq_fail(error, MEMQ_ERROR_DEADLINE_EXCEEDED, NULL, "the server did not answer a fetch");
        if (fetch_failed(consumer, error) != MEMQ_OK) return error->code;
        continue;
      }
      wake_at = mq_min(deadline, silent_at);
    }
    if (now >= deadline) return MEMQ_OK;
    pthread_mutex_unlock(&consumer->lock);
    mq_waker_wait(&consumer->waker, wake_at);
    pthread_mutex_lock(&consumer->lock);
  }
}

memq_code memq_consumer_poll(memq_consumer *consumer, int64_t timeout_ms, memq_batch **batch, memq_error **error_out) {
  memq_error error = {0};
  int64_t deadline = mq_client_deadline(consumer->client, timeout_ms);
  memq_code code = MEMQ_OK;
  *batch = NULL;
  pthread_mutex_lock(&consumer->lock);
  while (consumer->is_polling && !consumer->is_closing && mq_cond_wait(&consumer->changed, &consumer->lock, deadline)) continue;
  if (!consumer->is_polling) {
    consumer->is_polling = true;
    for (size_t i = 0; i < consumer->count; i++) consume(&consumer->positions[i]);
    code = poll_locked(consumer, deadline, batch, &error);
    consumer->is_polling = false;
    pthread_cond_broadcast(&consumer->changed);
  }
  pthread_mutex_unlock(&consumer->lock);
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}

memq_code memq_consumer_seek(memq_consumer *consumer, int32_t partition, int64_t offset, memq_error **error_out) {
  memq_error error = {0};
  memq_code code = MEMQ_OK;
  pthread_mutex_lock(&consumer->lock);
  position *at = find(consumer, partition);
  if (at == NULL || offset < 0) {
    code = mq_fail(&error, at == NULL ? MEMQ_ERROR_PARTITION_NOT_FOUND : MEMQ_ERROR_INVALID_ARGUMENT, consumer->topic, "%s",
                   at == NULL ? "the consumer does not read this partition" : "an offset is not negative");
  } else {
    at->offset = at->delivered = at->consumed = offset;
    at->epoch = at->delivered_epoch = at->consumed_epoch = -1;
    consumer->generation++;
    mq_waker_signal(&consumer->waker);
  }
  pthread_mutex_unlock(&consumer->lock);
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}

int64_t memq_consumer_truncations(memq_consumer *consumer) {
  pthread_mutex_lock(&consumer->lock);
  int64_t count = consumer->truncations;
  pthread_mutex_unlock(&consumer->lock);
  return count;
}

const int32_t *memq_consumer_partitions(const memq_consumer *consumer, size_t *count) {
  *count = consumer->shown_count;
  return consumer->partitions;
}

/* --- life */

static void destroy(memq_consumer *consumer) {
  mq_call_free(consumer->call);
  memq_error_free(consumer->failure);
  pthread_cond_destroy(&consumer->changed);
  pthread_mutex_destroy(&consumer->lock);
  mq_waker_destroy(&consumer->waker);
  mq_waker_destroy(&consumer->thread_waker);
  mq_client_release(consumer->client);
  free(consumer->topic);
  free(consumer->group);
  free(consumer->only);
  free(consumer->wanted);
  free(consumer->partitions);
  free(consumer->positions);
  free(consumer);
}

static memq_code make(memq_client *client, const char *topic, const memq_consumer_options *options, memq_consumer **out, memq_error *error) {
  memq_consumer *consumer = calloc(1, sizeof(*consumer));
  if (consumer == NULL) return mq_fail_memory(error);
  int number = mq_waker_init(&consumer->waker);
  if (number == 0) {
    number = mq_waker_init(&consumer->thread_waker);
    if (number == 0) {
      number = mq_mutex_init(&consumer->lock);
      if (number == 0) {
        number = mq_cond_init(&consumer->changed);
        if (number != 0) pthread_mutex_destroy(&consumer->lock);
      }
      if (number != 0) mq_waker_destroy(&consumer->thread_waker);
    }
    if (number != 0) mq_waker_destroy(&consumer->waker);
  }
  if (number != 0) {
    free(consumer);
    return mq_fail_memory(error);
  }
  consumer->client = client;
  mq_client_retain(client);
  consumer->stop.waker = consumer->beat_stop.waker = &consumer->thread_waker;
  consumer->options = *options;
  consumer->options.partitions = NULL;
  consumer->options.group = NULL;
  consumer->topic = strdup(topic);
  if (options->group != NULL) consumer->group = strdup(options->group);
  if (consumer->topic == NULL || (options->group != NULL && consumer->group == NULL)) {
    destroy(consumer);
    return mq_fail_memory(error);
  }
  *out = consumer;
  return MEMQ_OK;
}

/* Takes the partitions it is to read: those that are given, each once. */
static memq_code assign(memq_consumer *consumer, const int32_t *given, size_t count, int32_t partition_count, memq_error *error) {
  consumer->partitions = calloc(count > 0 ? count : 1, sizeof(*consumer->partitions));
  consumer->positions = calloc(count > 0 ? count : 1, sizeof(*consumer->positions));
  if (consumer->partitions == NULL || consumer->positions == NULL) return mq_fail_memory(error);
  for (size_t i = 0; i < count; i++) {
    if (given[i] < 0 || given[i] >= partition_count) {
      mq_fail(error, MEMQ_ERROR_PARTITION_NOT_FOUND, consumer->topic, "the topic has fewer partitions");
      error->has_limit = error->has_actual = true;
      error->limit = partition_count - 1;
      error->actual = given[i];
      return error->code;
    }
    consumer->partitions[i] = given[i];
  }
  if (count > 0) qsort(consumer->partitions, count, sizeof(*consumer->partitions), compare);
  for (size_t i = 0; i < count; i++) {
    if (i > 0 && consumer->partitions[i] == consumer->partitions[i - 1]) continue;
    consumer->partitions[consumer->count] = consumer->partitions[i];
    consumer->positions[consumer->count++] = new_position(consumer->partitions[i]);
  }
  consumer->shown_count = consumer->count;
  return MEMQ_OK;
}

/* A name that is used once: a join that is sent again leaves no second member behind. */
static void name_member(char id[MEMBER_ID_SIZE]) {
  snprintf(id, MEMBER_ID_SIZE, "%016llx%016llx", (unsigned long long)mq_random(), (unsigned long long)mq_random());
}

/* Becomes a member, another one than before; what it is to read is then wanted. Not under the lock. */
static memq_code join(memq_consumer *consumer, int64_t deadline, memq_error *error) {
  Memq__V1__JoinGroupRequest request = MEMQ__V1__JOIN_GROUP_REQUEST__INIT;
  ProtobufCMessage *answer;
  member made = {0};
  name_member(made.id);
  request.group = consumer->group;
  request.n_topics = 1;
  request.topics = &consumer->topic;
  request.client_id = (char *)(uintptr_t)mq_client_id(consumer->client);
  request.member_id = made.id;
  request.session_timeout_ms = (int32_t)consumer->options.session_timeout_ms;
  Memq__V1__TopicPartition *wire = calloc(consumer->only_count + 1, sizeof(*wire));
  Memq__V1__TopicPartition **pointers = calloc(consumer->only_count + 1, sizeof(*pointers));
  memq_code code = wire != NULL && pointers != NULL ? MEMQ_OK : mq_fail_memory(error);
  if (code == MEMQ_OK) {
    for (size_t i = 0; i < consumer->only_count; i++) {
      memq__v1__topic_partition__init(&wire[i]);
      wire[i].topic_id = (ProtobufCBinaryData){.len = sizeof(consumer->topic_id), .data = consumer->topic_id};
      wire[i].partition = consumer->only[i];
      pointers[i] = &wire[i];
    }
    request.n_only = consumer->only_count;
    request.only = pointers;
    code = mq_client_unary(consumer->client, MQ_LANE_CONTROL, "/memq.v1.IngestService/JoinGroup", &request.base,
                           &memq__v1__join_group_response__descriptor, deadline, MQ_RETRY_UNTIL_DEADLINE, NULL, &answer, error);
  }
  free(wire);
  free(pointers);
  if (code != MEMQ_OK) return code;
  Memq__V1__JoinGroupResponse *joined = (Memq__V1__JoinGroupResponse *)answer;
  size_t count;
  int32_t *assigned = mine(consumer, joined->assigned, joined->n_assigned, &count);
  made.epoch = joined->member_epoch;
  memq__v1__join_group_response__free_unpacked(joined, NULL);
  pthread_mutex_lock(&consumer->lock);
  consumer->member = made;
  consumer->is_joined = true;
  if (assigned != NULL) {
    consumer->is_lost = false;
    want(consumer, assigned, count);
    pthread_cond_broadcast(&consumer->changed);
  }
  pthread_mutex_unlock(&consumer->lock);
  return assigned != NULL ? MEMQ_OK : mq_fail_memory(error);
}

static memq_code all_of(memq_consumer *consumer, int32_t partition_count, memq_error *error) {
  int32_t *every = calloc((size_t)partition_count, sizeof(*every));
  if (every == NULL) return mq_fail_memory(error);
  for (int32_t i = 0; i < partition_count; i++) every[i] = i;
  memq_code code = assign(consumer, every, (size_t)partition_count, partition_count, error);
  free(every);
  return code;
}

/* Where the group stands. */
static memq_code fetch_committed(memq_consumer *consumer, position *positions, size_t count, int64_t deadline, memq_error *error) {
  Memq__V1__FetchOffsetsRequest request = MEMQ__V1__FETCH_OFFSETS_REQUEST__INIT;
  ProtobufCMessage *answer;
  Memq__V1__TopicPartition *wire = calloc(count + 1, sizeof(*wire));
  Memq__V1__TopicPartition **pointers = calloc(count + 1, sizeof(*pointers));
  memq_code code = wire != NULL && pointers != NULL ? MEMQ_OK : mq_fail_memory(error);
  if (code == MEMQ_OK) {
    for (size_t i = 0; i < count; i++) {
      memq__v1__topic_partition__init(&wire[i]);
      wire[i].topic_id = (ProtobufCBinaryData){.len = sizeof(consumer->topic_id), .data = consumer->topic_id};
      wire[i].partition = positions[i].partition;
      pointers[i] = &wire[i];
    }
    request.group = consumer->group;
    request.n_partitions = count;
    request.partitions = pointers;
    code = mq_client_unary(consumer->client, MQ_LANE_CONTROL, "/memq.v1.IngestService/FetchOffsets", &request.base,
                           &memq__v1__fetch_offsets_response__descriptor, deadline, MQ_RETRY_UNTIL_DEADLINE, NULL, &answer, error);
  }
  free(wire);
  free(pointers);
  if (code != MEMQ_OK) return code;
  Memq__V1__FetchOffsetsResponse *offsets = (Memq__V1__FetchOffsetsResponse *)answer;
  for (size_t i = 0; i < offsets->n_offsets; i++) {
    const Memq__V1__GroupOffset *one = offsets->offsets[i];
    position *at = one->topic_partition != NULL && one->topic_partition->topic_id.len == sizeof(consumer->topic_id) &&
                           memcmp(one->topic_partition->topic_id.data, consumer->topic_id, sizeof(consumer->topic_id)) == 0
                       ? find_in(positions, count, one->topic_partition->partition)
                       : NULL;
    if (at != NULL && one->offset >= 0) {
      at->offset = at->committed = one->offset;
      at->epoch = one->leader_epoch_is_case == MEMQ__V1__GROUP_OFFSET__LEADER_EPOCH_IS_LEADER_EPOCH ? one->leader_epoch : -1;
    }
  }
  memq__v1__fetch_offsets_response__free_unpacked(offsets, NULL);
  return MEMQ_OK;
}

/* Positions for partitions that have none yet. */
static memq_code ask_offsets(memq_consumer *consumer, position *positions, size_t count, Memq__V1__OffsetSpec spec, int64_t deadline, memq_error *error) {
  Memq__V1__OffsetsRequest request = MEMQ__V1__OFFSETS_REQUEST__INIT;
  ProtobufCMessage *answer;
  int32_t *open = calloc(count + 1, sizeof(*open));
  if (open == NULL) return mq_fail_memory(error);
  size_t open_count = 0;
  for (size_t i = 0; i < count; i++) {
    if (positions[i].offset < 0) open[open_count++] = positions[i].partition;
  }
  memq_code code = MEMQ_OK;
  if (open_count > 0) {
    request.topic = consumer->topic;
    request.n_partitions = open_count;
    request.partitions = open;
    request.spec = spec;
    request.timestamp_ms = consumer->options.start_timestamp_ms;
    code = mq_client_unary(consumer->client, MQ_LANE_CONTROL, "/memq.v1.IngestService/Offsets", &request.base,
                           &memq__v1__list_offsets_response__descriptor, deadline, MQ_RETRY_UNTIL_DEADLINE, NULL, &answer, error);
  }
  free(open);
  if (open_count == 0 || code != MEMQ_OK) return code;
  Memq__V1__ListOffsetsResponse *offsets = (Memq__V1__ListOffsetsResponse *)answer;
  for (size_t i = 0; i < offsets->n_offsets && code == MEMQ_OK; i++) {
    const Memq__V1__PartitionOffset *one = offsets->offsets[i];
    position *at = one->topic_partition != NULL ? find_in(positions, count, one->topic_partition->partition) : NULL;
    if (at == NULL || at->offset >= 0) continue;
    if (one->error != NULL) {
      code = mq_fail_detail(error, one->error);
    } else {
      at->offset = one->offset;
    }
  }
  memq__v1__list_offsets_response__free_unpacked(offsets, NULL);
  return code;
}

/* As ask_offsets, for as long as the partitions' errors may heal. */
static memq_code begin_at(memq_consumer *consumer, position *positions, size_t count, Memq__V1__OffsetSpec spec, int64_t deadline, memq_error *error) {
  mq_backoff backoff = {0};
  while (true) {
    memq_code code = ask_offsets(consumer, positions, count, spec, deadline, error);
    int64_t at = mq_now() + mq_backoff_step(&backoff);
    if (code == MEMQ_OK || !error->is_retriable || at >= deadline) return code;
    mq_waker_wait(&consumer->waker, at);
  }
}

static memq_code begin(memq_consumer *consumer, position *positions, size_t count, int64_t deadline, memq_error *error) {
  memq_code code = consumer->group != NULL ? fetch_committed(consumer, positions, count, deadline, error) : MEMQ_OK;
  if (code != MEMQ_OK) return code;
  /* A partition that is younger than this consumer has nothing that came before it. */
  size_t known = 0;
  while (known < count && positions[known].partition < consumer->partition_count) known++;
  code = begin_at(consumer, positions + known, count - known, MEMQ__V1__OFFSET_SPEC__OFFSET_SPEC_EARLIEST, deadline, error);
  if (code != MEMQ_OK) return code;
  switch (consumer->options.start) {
    case MEMQ_START_TIMESTAMP:
      code = begin_at(consumer, positions, count, MEMQ__V1__OFFSET_SPEC__OFFSET_SPEC_TIMESTAMP, deadline, error);
      /* Where there is no record so late: the end. */
      if (code == MEMQ_OK) code = begin_at(consumer, positions, count, MEMQ__V1__OFFSET_SPEC__OFFSET_SPEC_LATEST, deadline, error);
      break;
    case MEMQ_START_LATEST: code = begin_at(consumer, positions, count, MEMQ__V1__OFFSET_SPEC__OFFSET_SPEC_LATEST, deadline, error); break;
    default: code = begin_at(consumer, positions, count, MEMQ__V1__OFFSET_SPEC__OFFSET_SPEC_EARLIEST, deadline, error); break;
  }
  for (size_t i = 0; i < count && code == MEMQ_OK; i++) {
    position *at = &positions[i];
    if (at->offset < 0) code = mq_fail(error, MEMQ_ERROR_INTERNAL_ERROR, consumer->topic, "the server left a partition out of its answer");
    /* Without a committed offset the next reader would begin where `start` leads it then, and leave out what came meanwhile. */
    bool is_fixed = consumer->group != NULL && at->committed < 0 && consumer->options.start != MEMQ_START_EARLIEST;
    at->delivered = at->consumed = is_fixed ? at->offset : at->committed;
    at->delivered_epoch = at->consumed_epoch = at->epoch;
  }
  return code;
}

static memq_code leave(memq_consumer *consumer, int64_t deadline, memq_error *error) {
  Memq__V1__LeaveGroupRequest request = MEMQ__V1__LEAVE_GROUP_REQUEST__INIT;
  member from = member_of(consumer);
  request.group = consumer->group;
  request.member_id = from.id;
  request.member_epoch = from.epoch;
  return group_call(consumer, "/memq.v1.IngestService/LeaveGroup", &request.base, &memq__v1__leave_group_response__descriptor, deadline,
                    MQ_RETRY_NEVER, NULL, error);
}

static memq_code check(const memq_consumer_options *options, memq_error *error) {
  const struct {
    bool holds;
    const char *name, *want;
  } checks[] = {
      {options->start >= MEMQ_START_EARLIEST && options->start <= MEMQ_START_TIMESTAMP, "start", "a memq_start"},
      {options->reset >= MEMQ_RESET_NEAREST && options->reset <= MEMQ_RESET_FAIL, "reset", "a memq_reset"},
      {options->fetch_bytes_max > 0 && options->fetch_bytes_max <= FETCH_BYTES_CEILING, "fetch_bytes_max", "from 1 to 64 MiB"},
      {options->fetch_wait_ms >= 0 && options->fetch_wait_ms <= FETCH_WAIT_CEILING_MS, "fetch_wait_ms", "from 0 to 60,000"},
      {options->commit_interval_ms >= 0, "commit_interval_ms", "not negative"},
      {options->session_timeout_ms >= 1000 && options->session_timeout_ms <= 600000, "session_timeout_ms", "from 1,000 to 600,000"},
      {options->reconnect_timeout_ms >= 0, "reconnect_timeout_ms", "not negative"},
  };
  for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
    if (!checks[i].holds) return mq_fail(error, MEMQ_ERROR_CONFIGURATION_INVALID, checks[i].name, "must be %s", checks[i].want);
  }
  return MEMQ_OK;
}

memq_code memq_consumer_open(memq_client *client, const char *topic, const memq_consumer_options *given, memq_consumer **out,
                             memq_error **error_out) {
  memq_error error = {0};
  memq_consumer_options options;
  MQ_OPTIONS(memq_consumer_options, options, given);
  int64_t deadline = mq_client_deadline(client, MEMQ_DEFAULT_TIMEOUT);
  memq_consumer *consumer = NULL;
  Memq__V1__DescribeTopicResponse *described = NULL;
  memq_code code = check(&options, &error);
  if (code == MEMQ_OK) code = mq_client_describe_topic(client, topic, deadline, &described, &error);
  if (code == MEMQ_OK) code = make(client, topic, &options, &consumer, &error);
  if (code == MEMQ_OK) {
    memcpy(consumer->topic_id, described->topic->topic_id.data, sizeof(consumer->topic_id));
    int32_t count = consumer->partition_count = described->topic->partition_count;
    code = options.partitions != NULL ? assign(consumer, options.partitions, options.partition_count, count, &error)
           : consumer->group == NULL  ? all_of(consumer, count, &error)
                                      : assign(consumer, NULL, 0, count, &error);
  }
  if (code == MEMQ_OK && consumer->group != NULL) {
    /* The group says what it reads, among those that are named. */
    if (options.partitions != NULL) {
      consumer->only = consumer->partitions;
      consumer->only_count = consumer->count;
      consumer->partitions = NULL;
      consumer->count = consumer->shown_count = 0;
    }
    code = join(consumer, deadline, &error);
    if (code == MEMQ_OK) {
      pthread_mutex_lock(&consumer->lock);
      code = follow_wanted(consumer, deadline, &error);
      pthread_mutex_unlock(&consumer->lock);
    }
  } else if (code == MEMQ_OK) {
    code = begin(consumer, consumer->positions, consumer->count, deadline, &error);
  }
  if (code == MEMQ_OK && consumer->group != NULL) {
    int number = mq_thread_start(&consumer->thread, run_group, consumer);
    consumer->has_thread = number == 0;
    if (number != 0) code = mq_fail(&error, MEMQ_ERROR_RESOURCE_EXHAUSTED, topic, "no thread for a consumer: %s", strerror(number));
  }
  if (described != NULL) memq__v1__describe_topic_response__free_unpacked(described, NULL);
  if (code == MEMQ_OK) {
    *out = consumer;
    return MEMQ_OK;
  }
  if (consumer != NULL) {
    memq_error ignored;
    if (consumer->is_joined) leave(consumer, mq_after_ms(mq_now(), LEAVE_TIMEOUT_MS), &ignored);
    destroy(consumer);
  }
  return mq_publish(error_out, &error);
}

memq_code memq_consumer_close(memq_consumer *consumer, int64_t timeout_ms, memq_error **error_out) {
  if (consumer == NULL) return MEMQ_OK;
  memq_error error = {0}, ignored;
  memq_code code = MEMQ_OK;
  int64_t deadline = mq_client_deadline(consumer->client, timeout_ms);
  pthread_mutex_lock(&consumer->lock);
  consumer->is_closing = true;
  consumer->stop.is_set = true;
  consumer->beat_stop.is_set = true;
  bool is_fenced = consumer->failure != NULL && consumer->failure->code == MEMQ_ERROR_GROUP_MEMBER_FENCED;
  pthread_cond_broadcast(&consumer->changed);
  mq_waker_signal(&consumer->waker);
  mq_waker_signal(&consumer->thread_waker);
  while (consumer->is_polling) mq_cond_wait(&consumer->changed, &consumer->lock, MQ_NEVER);
  pthread_mutex_unlock(&consumer->lock);
  if (consumer->has_thread) pthread_join(consumer->thread, NULL);
  if (consumer->group != NULL && !is_fenced && !consumer->is_lost) {
    if (consumer->options.commit_interval_ms > 0) code = commit(consumer, COMMIT_DELIVERED, deadline, NULL, &error);
    /* When it does not arrive, the session runs out by itself. */
    int64_t now = mq_now();
    leave(consumer, mq_min(mq_max(deadline, mq_after_ms(now, 100)), mq_after_ms(now, LEAVE_TIMEOUT_MS)), &ignored);
  }
  destroy(consumer);
  return code == MEMQ_OK ? MEMQ_OK : mq_publish(error_out, &error);
}
