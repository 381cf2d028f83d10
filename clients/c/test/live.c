/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/* Against a server: `live CASE SERVER ...`, as Tests/Process/test_c_client.py runs it. */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

static char text[4096];

static int64_t now_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static memq_client *open_client(const char *servers) {
  memq_client_options options;
  memq_client_options_init(&options);
  options.servers = servers;
  options.client_id = "live";
  options.tls_ca_file = getenv("MEMQ_TEST_CA");
  options.tls_certificate_file = getenv("MEMQ_TEST_CERT");
  options.tls_key_file = getenv("MEMQ_TEST_KEY");
  options.tls = options.tls_ca_file != NULL;
  memq_client *client;
  WORKS(memq_client_open(&options, &client, &error));
  return client;
}

/* --- records of all kinds, there and back */

typedef struct expected {
  int32_t partition;
  int64_t offset;
  bool is_found;
} expected;

typedef struct shape {
  uint8_t *value;
  size_t size;
  bool has_value, has_key;
  char key[32];
  size_t header_count;
} shape;

static atomic_int delivered;

static void on_delivery(void *user, const memq_delivery *delivery) {
  expected *at = user;
  CHECK(delivery->code == MEMQ_OK && delivery->error == NULL && delivery->offset >= 0);
  at->partition = delivery->partition;
  at->offset = delivery->offset;
  delivered++;
}

static shape shape_of(int number, size_t big_bytes) {
  shape shape = {.has_value = number % 11 != 3, .has_key = number % 3 != 0, .header_count = (size_t)(number % 4)};
  shape.size = number % 7 == 0 ? 0 : number % 500 == 17 ? big_bytes : (size_t)(number * 37 % 900);
  if (!shape.has_value) shape.size = 0;
  shape.value = malloc(shape.size + 1);
  CHECK(shape.value != NULL);
  uint32_t state = (uint32_t)number * 2654435761u + 1;
  for (size_t i = 0; i < shape.size; i++) {
    state = state * 1664525u + 1013904223u;
    shape.value[i] = (uint8_t)(state >> 24);
  }
  /* Empty keys, too. */
  snprintf(shape.key, sizeof(shape.key), "%s", "");
  if (number % 13 != 0) snprintf(shape.key, sizeof(shape.key), "key-%d", number % 50);
  return shape;
}

static const uint8_t header_bytes[] = {0, 255, '\n'};
static const memq_header headers[] = {{"first", header_bytes, sizeof(header_bytes)}, {"null", NULL, 0}, {"empty", header_bytes, 0}};

static void round_trip(const char *servers, const char *topic, int count, size_t big_bytes, int32_t partitions) {
  memq_client *client = open_client(servers);
  memq_producer *producer;
  int32_t told = 0;
  WORKS(memq_topic_partitions(client, topic, MEMQ_DEFAULT_TIMEOUT, &told, &error));
  CHECK(told == partitions);
  WORKS(memq_producer_open(client, topic, NULL, &producer, &error));
  expected *wanted = calloc((size_t)count, sizeof(*wanted));
  CHECK(wanted != NULL);
  for (int i = 0; i < count; i++) {
    shape shape = shape_of(i, big_bytes);
    const memq_outgoing record = {
        .key = shape.has_key ? shape.key : NULL,
        .key_size = shape.has_key ? strlen(shape.key) : 0,
        .value = shape.has_value ? shape.value : NULL,
        .value_size = shape.size,
        .headers = headers,
        .header_count = shape.header_count,
        .partition = i % 10 == 9 ? i % partitions : -1,
        .timestamp_ms = 1700000000000 + i,
        .on_delivery = on_delivery,
        .user = &wanted[i],
    };
    WORKS(memq_producer_send(producer, &record, 30000, &error));
    free(shape.value);
  }
  WORKS(memq_producer_flush(producer, MEMQ_DEFAULT_TIMEOUT, &error));
  CHECK(delivered == count);
  WORKS(memq_producer_close(producer, MEMQ_DEFAULT_TIMEOUT, &error));

  /* Equal keys stand in one partition, in order. */
  memq_consumer *consumer;
  WORKS(memq_consumer_open(client, topic, NULL, &consumer, &error));
  int64_t *next = calloc((size_t)partitions, sizeof(*next));
  CHECK(next != NULL);
  for (int found = 0; found < count;) {
    memq_batch *batch;
    WORKS(memq_consumer_poll(consumer, 30000, &batch, &error));
    CHECK(batch != NULL && memq_batch_record(batch, memq_batch_count(batch)) == NULL);
    for (size_t i = 0; i < memq_batch_count(batch); i++, found++) {
      const memq_record *record = memq_batch_record(batch, i);
      CHECK(record->partition == memq_batch_partition(batch) && record->offset == next[record->partition]);
      next[record->partition] = record->offset + 1;
      CHECK(record->offset < memq_batch_next_offset(batch) && record->offset < memq_batch_high_watermark(batch));
      int number = (int)(record->timestamp_ms - 1700000000000);
      CHECK(number >= 0 && number < count && !wanted[number].is_found);
      wanted[number].is_found = true;
      CHECK(wanted[number].partition == record->partition && wanted[number].offset == record->offset);
      shape shape = shape_of(number, big_bytes);
      CHECK(shape.has_value == (record->value != NULL) && shape.size == record->value_size);
      CHECK(shape.size == 0 || memcmp(shape.value, record->value, shape.size) == 0);
      CHECK(shape.has_key == (record->key != NULL));
      CHECK(!shape.has_key || (strlen(shape.key) == record->key_size && memcmp(shape.key, record->key, record->key_size) == 0));
      CHECK(record->header_count == shape.header_count);
      for (size_t j = 0; j < shape.header_count; j++) {
        CHECK_TEXT(record->headers[j].name, headers[j].name);
        CHECK((record->headers[j].value != NULL) == (headers[j].value != NULL) && record->headers[j].value_size == headers[j].value_size);
        CHECK(headers[j].value_size == 0 || memcmp(record->headers[j].value, headers[j].value, headers[j].value_size) == 0);
      }
      free(shape.value);
    }
    memq_batch_free(batch);
  }
  memq_batch *batch;
  WORKS(memq_consumer_poll(consumer, 0, &batch, &error));
  CHECK(batch == NULL);

  /* A seek goes back; what was fetched ahead is dropped. */
  WORKS(memq_consumer_seek(consumer, partitions - 1, 1, &error));
  WORKS(memq_consumer_poll(consumer, 30000, &batch, &error));
  CHECK(batch != NULL && memq_batch_partition(batch) == partitions - 1 && memq_batch_record(batch, 0)->offset == 1);
  memq_batch_free(batch);
  WORKS(memq_consumer_close(consumer, MEMQ_DEFAULT_TIMEOUT, &error));
  free(next);
  free(wanted);
  memq_client_close(client);
}

/* --- numbers, told on standard output when they are acknowledged */

static void on_number(void *user, const memq_delivery *delivery) {
  if (delivery->code != MEMQ_OK) {
    fprintf(stderr, "%s: %s\n", memq_code_name(delivery->code), memq_error_message(delivery->error));
    exit(1);
  }
  printf("%lld\n", (long long)(intptr_t)user);
}

/* Until standard input ends. */
static void numbers(const char *servers, const char *topic) {
  memq_client *client = open_client(servers);
  memq_producer *producer;
  setvbuf(stdout, NULL, _IOLBF, 0);
  WORKS(memq_producer_open(client, topic, NULL, &producer, &error));
  char line[100];
  while (fgets(line, sizeof(line), stdin) != NULL) {
    line[strcspn(line, "\n")] = 0;
    const memq_outgoing record = {
        .value = line, .value_size = strlen(line), .partition = -1, .on_delivery = on_number, .user = (void *)(intptr_t)atoll(line)};
    WORKS(memq_producer_send(producer, &record, 60000, &error));
  }
  WORKS(memq_producer_close(producer, MEMQ_DEFAULT_TIMEOUT, &error));
  memq_client_close(client);
}

/* --- groups */

static memq_consumer *join(memq_client *client, const char *topic, const char *group, int64_t commit_interval_ms) {
  memq_consumer_options options;
  memq_consumer *consumer;
  memq_consumer_options_init(&options);
  options.group = group;
  options.commit_interval_ms = commit_interval_ms;
  options.session_timeout_ms = 2000;
  WORKS(memq_consumer_open(client, topic, &options, &consumer, &error));
  return consumer;
}

/* Reads `count` records; each number of them once. */
/* The batch's records, each seen once; their number. Frees it. */
static int take_numbers(memq_batch *batch, bool *seen, int all) {
  int count = (int)memq_batch_count(batch);
  for (int i = 0; i < count; i++) {
    const memq_record *record = memq_batch_record(batch, (size_t)i);
    char number[32];
    CHECK(record->value_size < sizeof(number));
    memcpy(number, record->value, record->value_size);
    number[record->value_size] = 0;
    int value = atoi(number);
    CHECK(value >= 0 && value < all && !seen[value]);
    seen[value] = true;
  }
  memq_batch_free(batch);
  return count;
}

static void read_numbers(memq_consumer *consumer, int count, bool *seen, int all) {
  while (count > 0) {
    memq_batch *batch;
    WORKS(memq_consumer_poll(consumer, 30000, &batch, &error));
    CHECK(batch != NULL);
    count -= take_numbers(batch, seen, all);
  }
  CHECK(count == 0);
}

static void send_numbers(memq_client *client, const char *topic, int from, int to) {
  memq_producer *producer;
  WORKS(memq_producer_open(client, topic, NULL, &producer, &error));
  for (int i = from; i < to; i++) {
    char number[32];
    const memq_outgoing record = {.value = number, .value_size = (size_t)snprintf(number, sizeof(number), "%d", i), .partition = i % 4};
    WORKS(memq_producer_send(producer, &record, 30000, &error));
  }
  WORKS(memq_producer_close(producer, MEMQ_DEFAULT_TIMEOUT, &error));
}

static void group(const char *servers, const char *topic, const char *name) {
  memq_client *client = open_client(servers), *other = open_client(servers);
  bool seen[3000] = {false};
  memq_batch *batch;
  size_t count;
  send_numbers(client, topic, 0, 1000);
  memq_consumer *first = join(client, topic, name, 0);
  CHECK(memq_consumer_partitions(first, &count)[0] == 0 && count == 4);
  read_numbers(first, 1000, seen, 3000);
  WORKS(memq_consumer_commit(first, MEMQ_DEFAULT_TIMEOUT, &error));
  /* Handed out and not committed: the next member gets it again. */
  send_numbers(client, topic, 1000, 2000);
  bool again[3000] = {false};
  read_numbers(first, 1000, again, 3000);

  /* A second member gets two of the four partitions, when the first has polled again, and what it did not commit of them. */
  memq_consumer *second = join(other, topic, name, 100);
  size_t firsts = 4, seconds = 0;
  int handed = 0;
  int64_t patience = now_ms() + 60000;
  while (firsts != 2 || seconds != 2 || handed != 500) {
    CHECK(now_ms() < patience);
    WORKS(memq_consumer_poll(first, 20, &batch, &error));
    CHECK(batch == NULL);
    WORKS(memq_consumer_poll(second, 20, &batch, &error));
    if (batch != NULL) handed += take_numbers(batch, seen, 3000);
    memq_consumer_partitions(first, &firsts);
    memq_consumer_partitions(second, &seconds);
  }
  FAILS(MEMQ_ERROR_PARTITION_NOT_ASSIGNED,
        memq_consumer_commit_offset(first, memq_consumer_partitions(second, &count)[0], 0, MEMQ_DEFAULT_TIMEOUT, &error));
  WORKS(memq_consumer_close(first, MEMQ_DEFAULT_TIMEOUT, &error));
  read_numbers(second, 500, seen, 3000);
  CHECK(memq_consumer_partitions(second, &count)[3] == 3 && count == 4);
  CHECK(memcmp(seen + 1000, again + 1000, 1000) == 0);

  /* One leaves, the other takes over behind what was committed at the close. */
  WORKS(memq_consumer_close(second, MEMQ_DEFAULT_TIMEOUT, &error));
  send_numbers(client, topic, 2000, 3000);
  first = join(client, topic, name, 0);
  read_numbers(first, 1000, seen, 3000);
  for (int i = 0; i < 3000; i++) CHECK(seen[i]);
  WORKS(memq_consumer_poll(first, 0, &batch, &error));
  CHECK(batch == NULL);
  WORKS(memq_consumer_commit(first, MEMQ_DEFAULT_TIMEOUT, &error));
  WORKS(memq_consumer_commit_offset(first, 2, 5, MEMQ_DEFAULT_TIMEOUT, &error));
  /* The heartbeat keeps the member for longer than its session, without a poll. */
  int64_t end = now_ms() + 2500;
  while (now_ms() < end) WORKS(memq_consumer_poll(first, end - now_ms() > 0 ? end - now_ms() : 0, &batch, &error));
  WORKS(memq_consumer_commit_offset(first, 2, 6, MEMQ_DEFAULT_TIMEOUT, &error));
  WORKS(memq_consumer_close(first, 0, &error));
  memq_consumer *last = join(client, topic, name, 0);
  WORKS(memq_consumer_poll(last, 30000, &batch, &error));
  CHECK(batch != NULL && memq_batch_partition(batch) == 2 && memq_batch_record(batch, 0)->offset == 6);
  memq_batch_free(batch);
  WORKS(memq_consumer_close(last, MEMQ_DEFAULT_TIMEOUT, &error));
  memq_client_close(other);
  memq_client_close(client);
}

/* --- errors */

static void on_failure(void *user, const memq_delivery *delivery) { *(memq_code *)user = delivery->code; }

static void errors(const char *servers, const char *topic) {
  memq_client *client = open_client(servers);
  memq_producer *producer;
  memq_consumer *consumer;
  memq_file_info *info;
  FAILS(MEMQ_ERROR_TOPIC_NOT_FOUND, memq_producer_open(client, "nowhere", NULL, &producer, &error));
  CHECK(strncmp(text, "nowhere: ", 9) == 0);
  FAILS(MEMQ_ERROR_TOPIC_NOT_FOUND, memq_consumer_open(client, "nowhere", NULL, &consumer, &error));
  FAILS(MEMQ_ERROR_TOPIC_NOT_FOUND, memq_file_put(client, "nowhere", "name", "/etc/passwd", NULL, NULL, &error));
  FAILS(MEMQ_ERROR_FILE_NAME_INVALID, memq_file_put(client, topic, "a//b", "/etc/passwd", NULL, NULL, &error));
  FAILS(MEMQ_ERROR_LOCAL_FILE, memq_file_put(client, topic, "name", "/nowhere/at/all", NULL, NULL, &error));
  CHECK(strncmp(text, "/nowhere/at/all: ", 17) == 0);
  FAILS(MEMQ_ERROR_FILE_NOT_FOUND, memq_file_get(client, topic, "nothing", "/tmp/never", NULL, NULL, &error));
  FAILS(MEMQ_ERROR_LOCAL_FILE, memq_file_get(client, topic, "nothing", "/nowhere/at/all", NULL, NULL, &error));
  FAILS(MEMQ_ERROR_FILE_NOT_FOUND, memq_file_stat(client, topic, "nothing", 0, MEMQ_DEFAULT_TIMEOUT, &info, &error));

  /* Too large for the topic: those of the same batch arrive, halves at a time, the one fails with its numbers. */
  WORKS(memq_producer_open(client, topic, NULL, &producer, &error));
  static uint8_t large[2 << 20];
  memq_code codes[10];
  for (int i = 0; i < 10; i++) {
    codes[i] = (memq_code)-1;
    const memq_outgoing record = {
        .value = large, .value_size = i == 4 ? sizeof(large) : 200000, .partition = 0, .on_delivery = on_failure, .user = &codes[i]};
    WORKS(memq_producer_send(producer, &record, 30000, &error));
  }
  WORKS(memq_producer_flush(producer, MEMQ_DEFAULT_TIMEOUT, &error));
  for (int i = 0; i < 10; i++) CHECK(codes[i] == (i == 4 ? MEMQ_ERROR_RECORD_BATCH_TOO_LARGE : MEMQ_OK));
  /* Without a callback the flush tells, once. */
  WORKS(memq_producer_send_value(producer, large, sizeof(large), 0, &error));
  memq_error *error = NULL;
  int64_t limit = 0, actual = 0;
  CHECK(memq_producer_flush(producer, MEMQ_DEFAULT_TIMEOUT, &error) == MEMQ_ERROR_RECORD_BATCH_TOO_LARGE);
  CHECK(memq_error_limit(error, &limit) && limit == 1 << 20 && memq_error_actual(error, &actual) && actual > (int64_t)sizeof(large));
  CHECK(!memq_error_is_retriable(error) && memq_error_grpc_status(error) == 8);
  memq_error_free(error);
  WORKS(memq_producer_flush(producer, MEMQ_DEFAULT_TIMEOUT, &error));
  WORKS(memq_producer_send_value(producer, "after", 5, 0, &error));
  const memq_outgoing astray = {.value = "x", .value_size = 1, .partition = 1};
  FAILS(MEMQ_ERROR_PARTITION_NOT_FOUND, memq_producer_send(producer, &astray, 0, &error));
  void *huge = calloc(1, (8 << 20) + 1);
  CHECK(huge != NULL);
  FAILS(MEMQ_ERROR_RECORD_BATCH_TOO_LARGE, memq_producer_send_value(producer, huge, (8 << 20) + 1, 0, &error));
  free(huge);
  WORKS(memq_producer_close(producer, MEMQ_DEFAULT_TIMEOUT, &error));

  memq_producer_options options;
  memq_producer_options_init(&options);
  options.batch_bytes_max = 9 << 20;
  FAILS(MEMQ_ERROR_CONFIGURATION_INVALID, memq_producer_open(client, topic, &options, &producer, &error));
  CHECK(strncmp(text, "batch_bytes_max: ", 17) == 0);

  /* What waits for company leaves at the close, whatever the acks. */
  for (int acks = MEMQ_ACKS_NONE; acks <= MEMQ_ACKS_ALL; acks++) {
    memq_producer_options_init(&options);
    options.acks = (memq_acks)acks;
    options.idempotent = acks == MEMQ_ACKS_ALL;
    options.linger_ms = 60000;
    WORKS(memq_producer_open(client, topic, &options, &producer, &error));
    for (int i = 0; i < 100; i++) WORKS(memq_producer_send_value(producer, "lingering", 9, 0, &error));
    WORKS(memq_producer_close(producer, MEMQ_DEFAULT_TIMEOUT, &error));
  }

  /* The wrong offset, with and without a reset. */
  memq_consumer_options how;
  memq_batch *batch;
  memq_consumer_options_init(&how);
  how.reset = MEMQ_RESET_FAIL;
  WORKS(memq_consumer_open(client, topic, &how, &consumer, &error));
  WORKS(memq_consumer_seek(consumer, 0, 1000000, &error));
  FAILS(MEMQ_ERROR_OFFSET_OUT_OF_RANGE, memq_consumer_poll(consumer, 30000, &batch, &error));
  FAILS(MEMQ_ERROR_INVALID_ARGUMENT, memq_consumer_commit(consumer, 0, &error));
  WORKS(memq_consumer_close(consumer, 0, &error));
  how.reset = MEMQ_RESET_EARLIEST;
  how.start = MEMQ_START_LATEST;
  WORKS(memq_consumer_open(client, topic, &how, &consumer, &error));
  WORKS(memq_consumer_poll(consumer, 200, &batch, &error));
  CHECK(batch == NULL);
  WORKS(memq_consumer_seek(consumer, 0, 1000000, &error));
  int counted = 0;
  for (int64_t next = 0; next < 310; counted++) {
    WORKS(memq_consumer_poll(consumer, 30000, &batch, &error));
    CHECK(batch != NULL && (counted > 0 || memq_batch_record(batch, 0)->offset == 0));
    next = memq_batch_next_offset(batch);
    memq_batch_free(batch);
  }
  WORKS(memq_consumer_close(consumer, 0, &error));
  const int32_t none[] = {0, 7};
  memq_consumer_options_init(&how);
  how.partitions = none;
  how.partition_count = 2;
  FAILS(MEMQ_ERROR_PARTITION_NOT_FOUND, memq_consumer_open(client, topic, &how, &consumer, &error));
  memq_client_close(client);
}

/* --- a server that never answers: `servers` takes connections and says nothing */

static void deadlines(const char *silent) {
  memq_client_options options;
  memq_client *client;
  memq_client_options_init(&options);
  options.servers = silent;
  options.connect_timeout_ms = 300;
  int64_t begin = now_ms();
  FAILS(MEMQ_ERROR_DEADLINE_EXCEEDED, memq_client_open(&options, &client, &error));
  CHECK(now_ms() - begin >= 290);
  printf("%s\n", text);
}

/* The server stops answering while things are under way; told on standard output and input. */
static void stopped(const char *servers, const char *topic) {
  memq_client *client = open_client(servers);
  memq_producer *producer;
  memq_consumer *consumer, *member;
  memq_producer_options options;
  memq_producer_options_init(&options);
  options.delivery_timeout_ms = 600;
  options.request_timeout_ms = 300;
  options.buffer_bytes_max = 1 << 20;
  WORKS(memq_producer_open(client, topic, &options, &producer, &error));
  WORKS(memq_consumer_open(client, topic, NULL, &consumer, &error));
  WORKS(memq_producer_send_value(producer, "a", 1, 0, &error));
  WORKS(memq_producer_flush(producer, MEMQ_DEFAULT_TIMEOUT, &error));
  member = join(client, topic, "stopped", 50);
  puts("stop");
  fflush(stdout);
  getchar();
  int32_t count;
  memq_batch *batch;
  FAILS(MEMQ_ERROR_DEADLINE_EXCEEDED, memq_topic_partitions(client, topic, 200, &count, &error));
  static uint8_t block[300000];
  memq_code codes[4] = {(memq_code)-1, (memq_code)-1, (memq_code)-1, (memq_code)-1};
  for (int i = 0; i < 3; i++) {
    const memq_outgoing record = {.value = block, .value_size = sizeof(block), .partition = 0, .on_delivery = on_failure, .user = &codes[i]};
    WORKS(memq_producer_send(producer, &record, 0, &error));
  }
  /* The buffer is full: no room in time. */
  int64_t begin = now_ms();
  FAILS(MEMQ_ERROR_RESOURCE_EXHAUSTED, memq_producer_send_value(producer, block, sizeof(block), 100, &error));
  CHECK(now_ms() - begin >= 100);
  FAILS(MEMQ_ERROR_DEADLINE_EXCEEDED, memq_producer_flush(producer, 50, &error));
  WORKS(memq_consumer_poll(consumer, 100, &batch, &error));
  memq_batch_free(batch);
  memq_file_options file;
  memq_file_options_init(&file);
  file.timeout_ms = 200;
  FAILS(MEMQ_ERROR_DEADLINE_EXCEEDED, memq_file_put(client, topic, "name", "/etc/passwd", &file, NULL, &error));
  FAILS(MEMQ_ERROR_DEADLINE_EXCEEDED, memq_file_get(client, topic, "name", "/tmp/never-there", &file, NULL, &error));
  CHECK(access("/tmp/never-there", F_OK) != 0);
  /* Past the delivery timeout they fail: nobody knows what became of what was sent. */
  WORKS(memq_producer_flush(producer, MEMQ_DEFAULT_TIMEOUT, &error));
  for (int i = 0; i < 3; i++) CHECK(codes[i] == MEMQ_ERROR_OUTCOME_UNKNOWN || codes[i] == MEMQ_ERROR_DEADLINE_EXCEEDED);
  CHECK(memq_producer_close(producer, 0, NULL) == MEMQ_OK);
  CHECK(memq_consumer_close(consumer, 0, NULL) == MEMQ_OK);
  /* Its heartbeat has no answer either, and holds nobody up. */
  FAILS(MEMQ_ERROR_DEADLINE_EXCEEDED, memq_consumer_commit_offset(member, 0, 1, 100, &error));
  memq_consumer_close(member, 100, NULL);
  memq_client_close(client);
}

/* --- files */

typedef struct watched {
  /* Given up here; 0: never. */
  int64_t until;
} watched;

static bool on_progress(void *user, int64_t done, int64_t size) {
  const watched *watched = user;
  CHECK(done > 0 && done <= size);
  printf("%lld\n", (long long)done);
  fflush(stdout);
  return watched->until == 0 || done < watched->until;
}

static void parse_id(const char *hex, uint8_t id[MEMQ_UPLOAD_ID_BYTES]) {
  for (int i = 0; i < MEMQ_UPLOAD_ID_BYTES; i++) {
    unsigned byte;
    CHECK(sscanf(hex + 2 * i, "%2x", &byte) == 1);
    id[i] = (uint8_t)byte;
  }
}

static void put(const char *servers, const char *topic, const char *name, const char *path, const char *id, const char *until) {
  memq_client *client = open_client(servers);
  memq_file_options options;
  memq_file_info *info = NULL;
  uint8_t upload_id[MEMQ_UPLOAD_ID_BYTES];
  const memq_attribute attributes[] = {{"colour", "blue"}, {"empty", ""}};
  watched watched = {.until = until != NULL ? atoll(until) : 0};
  memq_file_options_init(&options);
  options.on_progress = on_progress;
  options.user = &watched;
  options.content_type = "application/x-test";
  options.attributes = attributes;
  options.attribute_count = 2;
  if (id != NULL) {
    parse_id(id, upload_id);
    options.upload_id = upload_id;
  }
  if (watched.until > 0) {
    FAILS(MEMQ_ERROR_CANCELLED, memq_file_put(client, topic, name, path, &options, &info, &error));
  } else {
    WORKS(memq_file_put(client, topic, name, path, &options, &info, &error));
    CHECK_TEXT(memq_file_info_name(info), name);
    CHECK_TEXT(memq_file_info_content_type(info), "application/x-test");
    CHECK_TEXT(memq_file_info_attribute(info, "colour"), "blue");
    CHECK_TEXT(memq_file_info_attribute(info, "empty"), "");
    CHECK(memq_file_info_attribute(info, "none") == NULL && memq_file_info_offset(info) >= 0 && memq_file_info_partition(info) >= 0);
    for (int i = 0; i < 32; i++) fprintf(stderr, "%02x", memq_file_info_sha256(info)[i]);
    fprintf(stderr, " %lld %lld\n", (long long)memq_file_info_size(info), (long long)memq_file_info_version(info));
    memq_file_info_free(info);
  }
  memq_client_close(client);
}

static void get(const char *servers, const char *topic, const char *name, const char *path) {
  memq_client *client = open_client(servers);
  memq_file_options options;
  watched watched = {0};
  memq_file_options_init(&options);
  options.on_progress = on_progress;
  options.user = &watched;
  WORKS(memq_file_get(client, topic, name, path, &options, NULL, &error));
  memq_client_close(client);
}

typedef struct memory {
  const uint8_t *source;
  uint8_t *target;
  int64_t size;
} memory;

static int64_t read_memory(void *user, int64_t offset, void *buffer, size_t size) {
  const memory *memory = user;
  /* Pieces of odd sizes. */
  size_t count = size > 100003 ? 100003 : size;
  memcpy(buffer, memory->source + offset, count);
  return (int64_t)count;
}

static bool write_memory(void *user, int64_t offset, const void *bytes, size_t size) {
  memory *memory = user;
  CHECK(offset + (int64_t)size <= memory->size);
  memcpy(memory->target + offset, bytes, size);
  return true;
}

static void files(const char *servers, const char *topic, int64_t size) {
  memq_client *client = open_client(servers);
  memory memory = {.size = size};
  uint8_t *source = malloc((size_t)size), *target = calloc(1, (size_t)size);
  CHECK(source != NULL && target != NULL);
  for (int64_t i = 0; i < size; i++) source[i] = (uint8_t)(i * i >> 7);
  memory.source = source;
  memory.target = target;
  memq_file_info *info;
  memq_file_options options;
  WORKS(memq_file_put_from(client, topic, "from/memory", size, read_memory, &memory, NULL, &info, &error));
  CHECK(memq_file_info_size(info) == size && memq_file_info_version(info) == 1);
  memq_file_info_free(info);
  WORKS(memq_file_get_to(client, topic, "from/memory", write_memory, &memory, NULL, NULL, &error));
  CHECK(memcmp(source, target, (size_t)size) == 0);
  memset(target, 0, (size_t)size);
  memq_file_options_init(&options);
  options.range_offset = size / 3;
  options.range_length = size / 4;
  WORKS(memq_file_get_to(client, topic, "from/memory", write_memory, &memory, &options, &info, &error));
  CHECK(memcmp(source + size / 3, target + size / 3, (size_t)(size / 4)) == 0 && target[size / 3 - 1] == 0 && target[size / 3 + size / 4] == 0);
  memq_file_info_free(info);
  options.range_offset = size + 1;
  FAILS(MEMQ_ERROR_RANGE_INVALID, memq_file_get_to(client, topic, "from/memory", write_memory, &memory, &options, &info, &error));
  /* Small ones ride in their record; an empty one is a file as well. */
  WORKS(memq_file_put_from(client, topic, "small", 1000, read_memory, &memory, NULL, NULL, &error));
  WORKS(memq_file_put_from(client, topic, "empty", 0, read_memory, &memory, NULL, NULL, &error));
  WORKS(memq_file_get_to(client, topic, "empty", write_memory, &memory, NULL, &info, &error));
  CHECK(memq_file_info_size(info) == 0);
  memq_file_info_free(info);
  WORKS(memq_file_put_from(client, topic, "small", 999, read_memory, &memory, NULL, NULL, &error));
  WORKS(memq_file_stat(client, topic, "small", 0, MEMQ_DEFAULT_TIMEOUT, &info, &error));
  CHECK(memq_file_info_version(info) == 2 && memq_file_info_size(info) == 999);
  memq_file_info_free(info);
  WORKS(memq_file_delete(client, topic, "small", MEMQ_DEFAULT_TIMEOUT, &error));
  FAILS(MEMQ_ERROR_FILE_NOT_FOUND, memq_file_stat(client, topic, "small", 0, MEMQ_DEFAULT_TIMEOUT, &info, &error));
  free(source);
  free(target);
  memq_client_close(client);
}

/* --- many threads on one producer, one consumer, one client */

enum { THREADS = 6 };

typedef struct crowd {
  memq_client *client;
  memq_producer *producer;
  memq_consumer *consumer;
  const char *topic;
  int count;
  atomic_int next, read;
  atomic_int seen[20000];
} crowd;

static void *send_some(void *argument) {
  crowd *crowd = argument;
  for (int number; (number = crowd->next++) < crowd->count;) {
    char value[32];
    WORKS(memq_producer_send_value(crowd->producer, value, (size_t)snprintf(value, sizeof(value), "%d", number), 30000, &error));
    if (number % 1000 == 0) WORKS(memq_producer_flush(crowd->producer, MEMQ_DEFAULT_TIMEOUT, &error));
  }
  return NULL;
}

static void *read_some(void *argument) {
  crowd *crowd = argument;
  int64_t end = now_ms() + 60000;
  while (crowd->read < crowd->count && now_ms() < end) {
    memq_batch *batch;
    int32_t count;
    WORKS(memq_consumer_poll(crowd->consumer, 50, &batch, &error));
    if (batch == NULL) continue;
    for (size_t i = 0; i < memq_batch_count(batch); i++) {
      const memq_record *record = memq_batch_record(batch, i);
      char value[32];
      snprintf(value, sizeof(value), "%.*s", (int)record->value_size, (const char *)record->value);
      crowd->seen[atoi(value)]++;
      crowd->read++;
    }
    memq_batch_free(batch);
    WORKS(memq_topic_partitions(crowd->client, crowd->topic, MEMQ_DEFAULT_TIMEOUT, &count, &error));
    WORKS(memq_consumer_commit(crowd->consumer, MEMQ_DEFAULT_TIMEOUT, &error));
  }
  return NULL;
}

static void threads(const char *servers, const char *topic, int count) {
  crowd *crowd = calloc(1, sizeof(*crowd));
  CHECK(crowd != NULL && count <= 20000);
  crowd->client = open_client(servers);
  crowd->topic = topic;
  crowd->count = count;
  WORKS(memq_producer_open(crowd->client, topic, NULL, &crowd->producer, &error));
  crowd->consumer = join(crowd->client, topic, topic, 100);
  pthread_t all[2 * THREADS];
  for (int i = 0; i < 2 * THREADS; i++) CHECK(pthread_create(&all[i], NULL, i % 2 == 0 ? send_some : read_some, crowd) == 0);
  for (int i = 0; i < 2 * THREADS; i++) pthread_join(all[i], NULL);
  for (int i = 0; i < count; i++) CHECK(crowd->seen[i] == 1);
  WORKS(memq_producer_close(crowd->producer, MEMQ_DEFAULT_TIMEOUT, &error));
  WORKS(memq_consumer_close(crowd->consumer, MEMQ_DEFAULT_TIMEOUT, &error));
  memq_client_close(crowd->client);
  free(crowd);
}

/* --- a flush while others send */

static atomic_bool is_enough;

static void *send_on(void *producer) {
  const memq_outgoing other = {.value = "other", .value_size = 5, .partition = 0};
  while (!is_enough) WORKS(memq_producer_send(producer, &other, MEMQ_DEFAULT_TIMEOUT, &error));
  return NULL;
}

static void flushes(const char *servers, const char *topic) {
  enum { ROUNDS = 200 };
  memq_client *client = open_client(servers);
  memq_producer *producer;
  expected told[ROUNDS];
  pthread_t thread;
  memq_producer_options options;
  memq_producer_options_init(&options);
  options.batch_bytes = options.batch_bytes_max = 16 << 10;
  options.buffer_bytes_max = 32 << 10;
  WORKS(memq_producer_open(client, topic, &options, &producer, &error));
  CHECK(pthread_create(&thread, NULL, send_on, producer) == 0);
  for (int i = 0; i < ROUNDS; i++) {
    const memq_outgoing own = {.value = "own", .value_size = 3, .partition = 1, .on_delivery = on_delivery, .user = &told[i]};
    WORKS(memq_producer_send(producer, &own, MEMQ_DEFAULT_TIMEOUT, &error));
    WORKS(memq_producer_flush(producer, MEMQ_DEFAULT_TIMEOUT, &error));
    CHECK(delivered == i + 1);
  }
  is_enough = true;
  pthread_join(thread, NULL);
  WORKS(memq_producer_close(producer, MEMQ_DEFAULT_TIMEOUT, &error));
  memq_client_close(client);
}

int main(int count, char **arguments) {
  CHECK(count >= 3);
  const char *name = arguments[1], *servers = arguments[2];
  char **rest = arguments + 3;
  int rest_count = count - 3;
  if (strcmp(name, "round-trip") == 0 && rest_count == 4) {
    round_trip(servers, rest[0], atoi(rest[1]), (size_t)atoll(rest[2]), atoi(rest[3]));
  } else if (strcmp(name, "numbers") == 0 && rest_count == 1) {
    numbers(servers, rest[0]);
  } else if (strcmp(name, "group") == 0 && rest_count == 2) {
    group(servers, rest[0], rest[1]);
  } else if (strcmp(name, "errors") == 0 && rest_count == 1) {
    errors(servers, rest[0]);
  } else if (strcmp(name, "deadlines") == 0 && rest_count == 0) {
    deadlines(servers);
  } else if (strcmp(name, "stopped") == 0 && rest_count == 1) {
    stopped(servers, rest[0]);
  } else if (strcmp(name, "put") == 0 && rest_count >= 3) {
    put(servers, rest[0], rest[1], rest[2], rest_count > 3 ? rest[3] : NULL, rest_count > 4 ? rest[4] : NULL);
  } else if (strcmp(name, "get") == 0 && rest_count == 3) {
    get(servers, rest[0], rest[1], rest[2]);
  } else if (strcmp(name, "files") == 0 && rest_count == 2) {
    files(servers, rest[0], atoll(rest[1]));
  } else if (strcmp(name, "flushes") == 0 && rest_count == 1) {
    flushes(servers, rest[0]);
  } else if (strcmp(name, "threads") == 0 && rest_count == 2) {
    threads(servers, rest[0], atoi(rest[1]));
  } else {
    fprintf(stderr, "no such case: %s\n", name);
    return 2;
  }
  return 0;
}
