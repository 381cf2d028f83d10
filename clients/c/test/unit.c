/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/* What needs no server of MemQ: encodings, checksums, errors, options, and how a client stands servers that behave badly. */
#include "internal.h"

#include "memq/v1/errors.pb-c.h"
#include "memq/v1/metadata.pb-c.h"
#include "peer.h"

#include <sys/stat.h>

static char text[4096];

/* --- encodings */

static void texts_are_percent_decoded(void) {
  static const char *cases[][2] = {
      {"", ""},          {"plain", "plain"}, {"a%20b", "a b"}, {"%e2%82%ac", "\xe2\x82\xac"}, {"100%", "100%"},
      {"%4", "%4"},      {"%zz", "%zz"},     {"%41%", "A%"},   {"%25%32%30", "%20"},          {"%%41", "%A"},
  };
  for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
    char copy[64];
    snprintf(copy, sizeof(copy), "%s", cases[i][0]);
    copy[mq_percent_decode(copy, strlen(copy))] = 0;
    CHECK_TEXT(copy, cases[i][1]);
  }
}

static void base64_is_decoded_with_and_without_padding(void) {
  static const struct {
    const char *encoded, *decoded;
  } cases[] = {{"", ""}, {"Zg==", "f"}, {"Zg", "f"}, {"Zm8=", "fo"}, {"Zm8", "fo"}, {"Zm9v", "foo"}, {"Zm9vYmE", "fooba"}, {"+/-_", "\xfb\xff\xbf"}};
  for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
    size_t size, length = strlen(cases[i].encoded);
    uint8_t *out = malloc(length / 4 * 3 + 3);
    CHECK(out != NULL && mq_base64_decode(cases[i].encoded, length, out, &size));
    CHECK(size == strlen(cases[i].decoded) && memcmp(out, cases[i].decoded, size) == 0);
    free(out);
  }
  uint8_t out[16];
  size_t size;
  CHECK(!mq_base64_decode("Zm9vY", 5, out, &size));
  CHECK(!mq_base64_decode("Zm9\n", 4, out, &size));
}

static void checksums_are_castagnoli_s(void) {
  CHECK(mq_crc32c(0, "123456789", 9) == 0xE3069283);
  CHECK(mq_crc32c_portable(0, "123456789", 9) == 0xE3069283);
  uint8_t bytes[1000];
  CHECK(mq_random_bytes(bytes, 250));
  for (size_t i = 250; i < sizeof(bytes); i++) bytes[i] = (uint8_t)(bytes[i - 250] * 7 + i);
  for (size_t from = 0; from < 9; from++) {
    for (size_t size = 0; size < 40; size++) {
      uint32_t want = mq_crc32c_portable(0, bytes + from, size);
      CHECK(mq_crc32c(0, bytes + from, size) == want);
      CHECK(mq_crc32c(mq_crc32c(0, bytes + from, size / 3), bytes + from + size / 3, size - size / 3) == want);
    }
  }
  CHECK(mq_crc32c(0, bytes, sizeof(bytes)) == mq_crc32c_portable(0, bytes, sizeof(bytes)));
}

static void keys_go_where_kafka_s_go(void) {
  static const struct {
    const char *key;
    int32_t hash;
  } cases[] = {{"21", -973932308},
               {"foobar", -790332482},
               {"a-little-bit-long-string", -985981536},
               {"a-little-bit-longer-string", -1486304829},
               {"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971},
               {"abc", 479470107}};
  for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
    size_t size = strlen(cases[i].key);
    CHECK((int32_t)mq_murmur2(cases[i].key, size) == cases[i].hash);
    CHECK(mq_partition_of_key(cases[i].key, size, 7) == (cases[i].hash & 0x7FFFFFFF) % 7);
  }
}

static void timeouts_have_eight_digits_at_most_and_are_never_shorter(void) {
  static const struct {
    int64_t ns;
    const char *text;
  } cases[] = {{-5, "1u"},
               {1, "1u"},
               {1500, "2u"},
               {99999999000, "99999999u"},
               {99999999001, "100000m"},
               {30 * MQ_SECOND, "30000000u"},
               {INT64_C(200000) * MQ_SECOND + 1, "200001S"},
               {INT64_C(4000000000) * MQ_SECOND, "66666667M"}};
  char out[12];
  for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
    mq_grpc_timeout(out, cases[i].ns);
    CHECK_TEXT(out, cases[i].text);
  }
  for (int64_t ns = 1; ns < MQ_NEVER / 11; ns *= 11) {
    mq_grpc_timeout(out, ns);
    size_t size = strlen(out);
    CHECK(size >= 2 && size <= 9);
  }
}

static void messages_are_taken_apart_wherever_they_are_cut(void) {
  static const uint8_t wire[] = {0, 0, 0, 0, 3, 'a', 'b', 'c', 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 'd'};
  static const char *wanted[] = {"abc", "", "d"};
  for (size_t cut = 1; cut <= sizeof(wire); cut++) {
    mq_deframer deframer = {.size_max = 3};
    memq_error error;
    size_t count = 0;
    for (size_t from = 0; from < sizeof(wire); from += cut) {
      size_t end = from + cut < sizeof(wire) ? from + cut : sizeof(wire);
      for (size_t at = from; at < end;) {
        mq_msg *whole;
        ssize_t used = mq_deframe(&deframer, wire + at, end - at, &whole, &error);
        CHECK(used > 0);
        at += (size_t)used;
        if (whole == NULL) continue;
        CHECK(whole->size == strlen(wanted[count]) && memcmp(whole->data, wanted[count], whole->size) == 0);
        count++;
        free(whole);
      }
    }
    CHECK(count == 3 && mq_deframer_is_between(&deframer));
  }
  mq_deframer deframer = {.size_max = 2};
  memq_error error;
  mq_msg *whole;
  CHECK(mq_deframe(&deframer, wire, sizeof(wire), &whole, &error) == -1);
  CHECK(error.code == MEMQ_ERROR_MESSAGE_TOO_LARGE && error.limit == 2 && error.actual == 3);
}

static void waits_grow_and_stay_bounded(void) {
  mq_backoff backoff = {0};
  int64_t middle = 20 * MQ_MS;
  for (int i = 0; i < 20; i++) {
    int64_t wait = mq_backoff_step(&backoff);
    CHECK(wait >= middle * 8 / 10 - 1000 && wait <= middle * 12 / 10 + 1000);
    middle = mq_min(middle * 2, 500 * MQ_MS);
  }
  CHECK(mq_after_ms(mq_now(), INT64_MAX) == MQ_NEVER);
}

static void addresses_are_told_from_what_is_none(void) {
  static const char *good[] = {"localhost:7460", "127.0.0.1:1", "[::1]:65535", "unix:/tmp/s"};
  static const char *bad[] = {"", "localhost", ":1", "localhost:", "localhost:0", "localhost:65536", "localhost:7x", "::1:7460", "[]:1", "unix:"};
  memq_error error;
  mq_address address;
  for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
    CHECK(mq_address_parse(&address, good[i], strlen(good[i]), &error));
    mq_address_free(&address);
  }
  for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
    CHECK(!mq_address_parse(&address, bad[i], strlen(bad[i]), &error));
    CHECK(error.code == MEMQ_ERROR_INVALID_ARGUMENT);
  }
  CHECK(mq_address_parse(&address, "[::1]:80", 8, &error));
  CHECK_TEXT(address.host, "::1");
  mq_address_free(&address);
}

/* --- errors and options */

static size_t pack_status(uint8_t *out, const uint8_t *detail, size_t size) {
  static const char type[] = "type.googleapis.com/memq.v1.ErrorDetail";
  uint8_t any[1024];
  size_t any_size = 0, at = 0;
  any[any_size++] = 0x0A;
  any_size += mq_varint_put(any + any_size, sizeof(type) - 1);
  memcpy(any + any_size, type, sizeof(type) - 1);
  any_size += sizeof(type) - 1;
  any[any_size++] = 0x12;
  any_size += mq_varint_put(any + any_size, size);
  memcpy(any + any_size, detail, size);
  any_size += size;
  out[at++] = 0x08;
  out[at++] = 5;
  out[at++] = 0x12;
  out[at++] = 1;
  out[at++] = 'x';
  out[at++] = 0x1A;
  at += mq_varint_put(out + at, any_size);
  memcpy(out + at, any, any_size);
  return at + any_size;
}

static size_t make_details(uint8_t *out) {
  Memq__V1__ErrorDetail detail = MEMQ__V1__ERROR_DETAIL__INIT;
  uint8_t packed[256];
  detail.code = MEMQ__V1__ERROR_CODE__ERROR_CODE_TOPIC_NOT_FOUND;
  detail.message = "no such topic";
  detail.subject = "nowhere";
  detail.limit_is_case = MEMQ__V1__ERROR_DETAIL__LIMIT_IS_LIMIT;
  detail.limit = -7;
  detail.retriable = true;
  return pack_status(out, packed, memq__v1__error_detail__pack(&detail, packed));
}

static void details_become_typed_errors(void) {
  uint8_t status[1024];
  size_t size = make_details(status);
  memq_error error = {0};
  CHECK(mq_fail_details(&error, status, size));
  CHECK(error.code == MEMQ_ERROR_TOPIC_NOT_FOUND && error.is_retriable && error.has_limit && error.limit == -7 && !error.has_actual);
  CHECK_TEXT(error.subject, "nowhere");
  memq_error *published = NULL;
  int64_t number = 1;
  mq_publish(&published, &error);
  CHECK(memq_error_limit(published, &number) && number == -7 && !memq_error_actual(published, &number));
  memq_error_free(published);
  /* Cut and damaged ones harm nobody. */
  for (size_t cut = 0; cut < size; cut++) {
    uint8_t *copy = malloc(cut > 0 ? cut : 1);
    CHECK(copy != NULL);
    memcpy(copy, status, cut);
    mq_fail_details(&error, copy, cut);
    for (size_t i = 0; i < cut; i++) {
      copy[i] ^= (uint8_t)(1 << (i % 8));
      mq_fail_details(&error, copy, cut);
    }
    free(copy);
  }
  CHECK_TEXT(memq_code_name(MEMQ_ERROR_GROUP_MEMBER_FENCED), "GROUP_MEMBER_FENCED");
  CHECK_TEXT(memq_code_name(MEMQ_ERROR_TLS), "TLS");
  CHECK_TEXT(memq_code_name((memq_code)98765), "UNKNOWN_CODE");
  CHECK(memq_error_code(NULL) == MEMQ_OK);
}

static void long_texts_are_cut_between_characters(void) {
  char field[MQ_TEXT_MAX + 1], long_text[MQ_TEXT_MAX + 10];
  for (size_t shift = 0; shift < 3; shift++) {
    memset(long_text, 'a', shift);
    for (size_t i = shift; i + 3 <= sizeof(long_text); i += 3) memcpy(long_text + i, "\xe2\x82\xac", 3);
    mq_copy_text(field, long_text, sizeof(long_text) - 3);
    CHECK((strlen(field) - shift) % 3 == 0 && strlen(field) > MQ_TEXT_MAX - 3);
  }
}

/* An application built against a version whose struct ended earlier. */
static void older_options_keep_the_defaults_of_what_they_lack(void) {
  struct {
    memq_producer_options options;
    uint8_t behind[8];
  } old;
  memset(&old, 0x55, sizeof(old));
  size_t size = offsetof(memq_producer_options, buffer_bytes_max);
  memq_producer_options_init_sized(&old.options, size);
  CHECK(old.options.struct_size == size && old.options.linger_ms == 5);
  CHECK(((const uint8_t *)&old.options)[size] == 0x55);
  old.options.linger_ms = 77;
  memq_producer_options full;
  MQ_OPTIONS(memq_producer_options, full, &old.options);
  CHECK(full.linger_ms == 77 && full.buffer_bytes_max == 32 << 20);
}

static void calls_without_sense_are_refused(void) {
  memq_client_options options;
  memq_client *client;
  memq_client_options_init(&options);
  options.servers = "a:1,,b:2";
  FAILS(MEMQ_ERROR_INVALID_ARGUMENT, memq_client_open(&options, &client, &error));
  options.servers = "a:1";
  options.keepalive_ms = 9999;
  FAILS(MEMQ_ERROR_CONFIGURATION_INVALID, memq_client_open(&options, &client, &error));
  memq_client_options_init(&options);
  options.tls = true;
  options.tls_key_file = "/nowhere";
  FAILS(MEMQ_ERROR_INVALID_ARGUMENT, memq_client_open(&options, &client, &error));
  options.tls_key_file = NULL;
  options.tls_ca_file = "/nowhere";
  FAILS(MEMQ_ERROR_LOCAL_FILE, memq_client_open(&options, &client, &error));
  CHECK(strncmp(text, "/nowhere: ", 10) == 0);
  memq_client_close(NULL);
  memq_error_free(NULL);
  memq_batch_free(NULL);
  memq_file_info_free(NULL);
}

/* --- memory that is not to be had: the library's own calls come here */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *block, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *block, size_t size);

/* Allocations until one fails; below 0: none does. */
static atomic_int until_failure = -1;
static atomic_bool fails_from_then_on;

static bool is_refused(void) {
  if (has_memory || until_failure < 0) return false;
  if (until_failure == 0) return true;
  if (atomic_fetch_sub(&until_failure, 1) > 1) return false;
  if (!fails_from_then_on) until_failure = -1;
  return true;
}

void *__wrap_malloc(size_t size) { return is_refused() ? NULL : __real_malloc(size); }

void *__wrap_calloc(size_t count, size_t size) { return is_refused() ? NULL : __real_calloc(count, size); }

void *__wrap_realloc(void *block, size_t size) { return is_refused() ? NULL : __real_realloc(block, size); }

/* --- peers */

static uint8_t answer[256];
static size_t answer_size;

static void peer_open(fake_server *peer, peer_manner manner, memq_client **client) {
  *peer = (fake_server){.manner = manner, .answer = answer, .answer_size = answer_size};
  peer_start(peer);
  memq_client_options options;
  memq_client_options_init(&options);
  options.servers = peer->address;
  int64_t usual = mq_keepalive_ms_min;
  if (manner == GOES_SILENT) options.keepalive_ms = mq_keepalive_ms_min = 50;
  WORKS(memq_client_open(&options, client, &error));
  mq_keepalive_ms_min = usual;
}

static void a_peer_s_manners_become_typed_errors(void) {
  static const struct {
    peer_manner manner;
    memq_code code;
    const char *text;
  } cases[] = {
      {ANSWERS, MEMQ_OK, NULL},
      {ANSWERS_BYTE_BY_BYTE, MEMQ_OK, NULL},
      {ANSWERS_AT_LENGTH, MEMQ_OK, NULL},
      {REFUSES_ONCE, MEMQ_OK, NULL},
      {LEAVES_ONCE, MEMQ_OK, NULL},
      {HAS_STATUS, MEMQ_ERROR_UNAUTHENTICATED, "who are you? \xe2\x82\xac%zz"},
      {COMPRESSES, MEMQ_ERROR_INTERNAL_ERROR, "compressed"},
      {ANNOUNCES_TOO_MUCH, MEMQ_ERROR_MESSAGE_TOO_LARGE, "message_bytes_max"},
      {ENDS_WITHIN, MEMQ_ERROR_INTERNAL_ERROR, "within a message"},
      {FORGETS_STATUS, MEMQ_ERROR_INTERNAL_ERROR, "without a status"},
      {IS_NO_GRPC, MEMQ_ERROR_UNAVAILABLE, "HTTP status 503"},
      {CLOSES, MEMQ_ERROR_UNAVAILABLE, "the connection broke"},
      {RESETS, MEMQ_ERROR_UNAVAILABLE, "reset the call"},
      {GOES_SILENT, MEMQ_ERROR_UNAVAILABLE, "no sign of life"},
  };
  for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
    fake_server peer;
    memq_client *client;
    int32_t count = 0;
    peer_open(&peer, cases[i].manner, &client);
    if (cases[i].code == MEMQ_OK) {
      WORKS(memq_topic_partitions(client, "topic", 5000, &count, &error));
      CHECK(count == 3);
      /* What was never processed was sent again, after a GOAWAY on another connection. */
      bool is_again = cases[i].manner == REFUSES_ONCE || cases[i].manner == LEAVES_ONCE;
      CHECK(peer.calls == (is_again ? 2 : 1) && peer.connections == (cases[i].manner == LEAVES_ONCE ? 2 : 1));
    } else {
      /* Retriable ones are tried until the deadline, and tell why, not that time is over. */
      FAILS(cases[i].code, memq_topic_partitions(client, "topic", 200, &count, &error));
      if (strstr(text, cases[i].text) == NULL) fprintf(stderr, "%s\n", text);
      CHECK(strstr(text, cases[i].text) != NULL);
    }
    memq_client_close(client);
    peer_stop(&peer);
  }
}

static void details_come_with_a_status(void) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  uint8_t status[1024];
  char encoded[2048];
  size_t size = make_details(status), at = 0;
  for (size_t i = 0; i < size; i += 3) {
    uint32_t bits = (uint32_t)status[i] << 16 | (i + 1 < size ? (uint32_t)status[i + 1] << 8 : 0) | (i + 2 < size ? status[i + 2] : 0);
    for (size_t j = 0; j < (size - i < 3 ? size - i + 1 : 4); j++) encoded[at++] = digits[bits >> (18 - 6 * j) & 63];
  }
  encoded[at] = 0;
  fake_server peer;
  memq_client *client;
  int32_t count;
  peer_open(&peer, HAS_DETAILS, &client);
  peer.details = encoded;
  FAILS(MEMQ_ERROR_TOPIC_NOT_FOUND, memq_topic_partitions(client, "topic", 100, &count, &error));
  CHECK_TEXT(text, "nowhere: no such topic");
  memq_client_close(client);
  peer_stop(&peer);
}

static void a_deadline_cancels_the_call(void) {
  fake_server peer;
  memq_client *client;
  int32_t count;
  peer_open(&peer, NEVER_ANSWERS, &client);
  int64_t begin = mq_now();
  FAILS(MEMQ_ERROR_DEADLINE_EXCEEDED, memq_topic_partitions(client, "topic", 300, &count, &error));
  CHECK(mq_now() - begin >= 300 * MQ_MS);
  /* The server hears of it. */
  for (int i = 0; peer.cancelled == 0 && i < 1000; i++) usleep(10000);
  CHECK(peer.cancelled == 1 && peer.calls == 1);
  memq_client_close(client);
  peer_stop(&peer);
}

static void a_dead_server_is_passed_over(void) {
  fake_server peer = {.manner = ANSWERS, .answer = answer, .answer_size = answer_size};
  peer_start(&peer);
  /* A port that nobody listens on: bound, and never listened on. */
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof(at);
  int taken = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(taken >= 0 && bind(taken, (struct sockaddr *)&at, size) == 0 && getsockname(taken, (struct sockaddr *)&at, &size) == 0);
  char servers[200];
  snprintf(servers, sizeof(servers), "127.0.0.1:%d, unix:/nowhere/socket, %s", ntohs(at.sin_port), peer.address);
  memq_client_options options;
  memq_client_options_init(&options);
  options.servers = servers;
  memq_client *client;
  int32_t count;
  WORKS(memq_client_open(&options, &client, &error));
  WORKS(memq_topic_partitions(client, "topic", 5000, &count, &error));
  memq_client_close(client);
  snprintf(servers, sizeof(servers), "127.0.0.1:%d", ntohs(at.sin_port));
  options.connect_timeout_ms = 0;
  FAILS(MEMQ_ERROR_UNAVAILABLE, memq_client_open(&options, &client, &error));
  CHECK(strncmp(text, servers, strlen(servers)) == 0 && strstr(text, "refused") != NULL);
  close(taken);
  peer_stop(&peer);
}

static int listen_silently(char *servers, size_t size) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
  socklen_t at_size = sizeof(at);
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&at, at_size) == 0 && listen(fd, 64) == 0);
  CHECK(getsockname(fd, (struct sockaddr *)&at, &at_size) == 0);
  size_t length = strlen(servers);
  snprintf(servers + length, size - length, "%s127.0.0.1:%d", length > 0 ? "," : "", ntohs(at.sin_port));
  return fd;
}

static void files_are_checked_before_they_are_put(void) {
  char folder[] = "/tmp/memq-unit-XXXXXX", path[100];
  CHECK(mkdtemp(folder) != NULL);
  snprintf(path, sizeof(path), "%s/pipe", folder);
  CHECK(mkfifo(path, 0600) == 0);
  fake_server peer;
  memq_client *client;
  memq_file_options options;
  peer_open(&peer, ANSWERS, &client);
  FAILS(MEMQ_ERROR_LOCAL_FILE, memq_file_put(client, "topic", "name", path, NULL, NULL, &error));
  int64_t *const times[] = {&options.timeout_ms, &options.resume_timeout_ms, &options.stall_timeout_ms, &options.publish_timeout_ms};
  for (size_t i = 0; i < 4; i++) {
    for (int sign = -1; sign <= 1; sign += 2) {
      memq_file_options_init(&options);
      *times[i] = sign < 0 ? -1 : INT64_MAX;
      FAILS(MEMQ_ERROR_CONFIGURATION_INVALID, memq_file_get(client, "topic", "name", "/tmp/never-there", &options, NULL, &error));
    }
  }
  CHECK(peer.calls == 0);
  memq_client_close(client);
  peer_stop(&peer);
  unlink(path);
  rmdir(folder);
}

static void silent_servers_take_no_longer_than_the_timeout(void) {
  char servers[300] = "";
  int listeners[3];
  for (size_t i = 0; i < 3; i++) listeners[i] = listen_silently(servers, sizeof(servers));
  memq_client_options options;
  memq_client_options_init(&options);
  options.servers = servers;
  options.connect_timeout_ms = 200;
  memq_client *client;
  FAILS(MEMQ_ERROR_DEADLINE_EXCEEDED, memq_client_open(&options, &client, &error));
  for (size_t i = 0; i < 3; i++) close(listeners[i]);
}

static void a_call_turns_from_a_hung_server_to_the_next(void) {
  fake_server hung = {.manner = NEVER_ANSWERS}, good = {.manner = ANSWERS, .answer = answer, .answer_size = answer_size};
  peer_start(&hung);
  peer_start(&good);
  char servers[300];
  snprintf(servers, sizeof(servers), "%s,%s", hung.address, good.address);
  memq_client_options options;
  memq_client_options_init(&options);
  options.servers = servers;
  memq_client *client;
  int32_t count = 0;
  WORKS(memq_client_open(&options, &client, &error));
  WORKS(memq_topic_partitions(client, "topic", 3000, &count, &error));
  CHECK(count == 3 && hung.calls == 1 && good.calls == 1);
  memq_client_close(client);
  peer_stop(&hung);
  peer_stop(&good);
}

static void every_allocation_may_fail(void) {
  fake_server peer = {.manner = ANSWERS, .answer = answer, .answer_size = answer_size};
  peer_start(&peer);
  memq_client_options options;
  memq_client_options_init(&options);
  options.servers = peer.address;
  options.connect_timeout_ms = 0;
  int failures = 0;
  for (int mode = 0; mode < 2; mode++) {
    for (int nth = 1; nth <= 25; nth++) {
      memq_client *client = NULL;
      memq_error *error = NULL;
      int32_t count = 0;
      fails_from_then_on = mode == 1;
      until_failure = nth;
      memq_code code = memq_client_open(&options, &client, &error);
      if (code == MEMQ_OK) code = memq_topic_partitions(client, "topic", 5000, &count, &error);
      until_failure = -1;
      CHECK(code == MEMQ_OK || code == MEMQ_ERROR_OUT_OF_MEMORY);
      CHECK((code == MEMQ_OK ? count == 3 : true) && (code == MEMQ_OK) == (error == NULL) && memq_error_code(error) == code);
      failures += code != MEMQ_OK;
      memq_error_free(error);
      memq_client_close(client);
    }
  }
  CHECK(failures > 20);
  peer_stop(&peer);
}

static void a_server_may_be_at_a_path(void) {
  char folder[] = "/tmp/memq-unit-XXXXXX", path[100];
  CHECK(mkdtemp(folder) != NULL);
  snprintf(path, sizeof(path), "%s/socket", folder);
  fake_server peer = {.manner = ANSWERS, .path = path, .answer = answer, .answer_size = answer_size};
  peer_start(&peer);
  memq_client_options options;
  memq_client_options_init(&options);
  options.servers = peer.address;
  memq_client *client;
  int32_t count;
  WORKS(memq_client_open(&options, &client, &error));
  WORKS(memq_topic_partitions(client, "topic", 5000, &count, &error));
  memq_client_close(client);
  peer_stop(&peer);
  unlink(path);
  rmdir(folder);
}

static void a_server_of_another_protocol_is_told(void) {
  fake_server peer = {.manner = SPEAKS_HTTP_1};
  peer_start(&peer);
  memq_client_options options;
  memq_client_options_init(&options);
  options.servers = peer.address;
  options.connect_timeout_ms = 0;
  memq_client *client;
  FAILS(MEMQ_ERROR_UNAVAILABLE, memq_client_open(&options, &client, &error));
  if (strstr(text, "does not speak HTTP/2") == NULL) fprintf(stderr, "%s\n", text);
  CHECK(strstr(text, "does not speak HTTP/2") != NULL);
  peer_stop(&peer);
}

/* Many threads, one client, calls that are answered, cancelled and refused. */
static memq_client *shared;

static void *call_often(void *argument) {
  bool is_impatient = argument != NULL;
  for (int i = 0; i < 30; i++) {
    int32_t count;
    memq_error *error = NULL;
    memq_code code = memq_topic_partitions(shared, "topic", is_impatient ? 0 : 10000, &count, &error);
    CHECK(code == MEMQ_OK || (is_impatient && code == MEMQ_ERROR_DEADLINE_EXCEEDED));
    memq_error_free(error);
  }
  return NULL;
}

static void threads_share_a_client(void) {
  fake_server peer;
  pthread_t threads[8];
  peer_open(&peer, REFUSES_ONCE, &shared);
  for (size_t i = 0; i < 8; i++) CHECK(pthread_create(&threads[i], NULL, call_often, i % 2 == 0 ? NULL : &shared) == 0);
  for (size_t i = 0; i < 8; i++) pthread_join(threads[i], NULL);
  CHECK(peer.connections == 1);
  memq_client_close(shared);
  peer_stop(&peer);
}

int main(void) {
  Memq__V1__Topic topic = MEMQ__V1__TOPIC__INIT;
  Memq__V1__DescribeTopicResponse described = MEMQ__V1__DESCRIBE_TOPIC_RESPONSE__INIT;
  uint8_t id[16] = {1};
  topic.topic_id = (ProtobufCBinaryData){.len = sizeof(id), .data = id};
  topic.name = "topic";
  topic.partition_count = 3;
  described.topic = &topic;
  answer_size = memq__v1__describe_topic_response__pack(&described, answer);

  texts_are_percent_decoded();
  base64_is_decoded_with_and_without_padding();
  checksums_are_castagnoli_s();
  keys_go_where_kafka_s_go();
  timeouts_have_eight_digits_at_most_and_are_never_shorter();
  messages_are_taken_apart_wherever_they_are_cut();
  waits_grow_and_stay_bounded();
  addresses_are_told_from_what_is_none();
  details_become_typed_errors();
  long_texts_are_cut_between_characters();
  older_options_keep_the_defaults_of_what_they_lack();
  calls_without_sense_are_refused();
  a_peer_s_manners_become_typed_errors();
  details_come_with_a_status();
  a_deadline_cancels_the_call();
  a_dead_server_is_passed_over();
  a_server_may_be_at_a_path();
  a_server_of_another_protocol_is_told();
  files_are_checked_before_they_are_put();
  silent_servers_take_no_longer_than_the_timeout();
  a_call_turns_from_a_hung_server_to_the_next();
  every_allocation_may_fail();
  threads_share_a_client();
  puts("unit tests passed");
  return 0;
}
