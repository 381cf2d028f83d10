/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/* A client: its addresses, the one in use, the connections to it, and calls of one message each way. */
#include "internal.h"

#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memq/v1/metadata.pb-c.h"

enum {
  ADDRESSES_MAX = 100,
  /* Of one attempt. */
  CONNECT_ATTEMPT_MS = 5000,
  /* Of the only attempt at an address. */
  ONCE_ATTEMPT_MS = 1000,
  /* Where there is another server to turn to, a call that may be repeated leaves time for it, but has so much itself. */
  SHARE_MS_MIN = 1000,
};

/* Servers end connections that ask for signs of life more often. */
int64_t mq_keepalive_ms_min = 10000;

typedef struct server_place {
  mq_connection_settings settings;
  mq_connection *connections[MQ_LANE_COUNT];
} server_place;

/* Connections that were replaced, until their threads are joined. */
typedef struct retired {
  struct retired *next;
  mq_connection *connection;
} retired;

struct memq_client {
  atomic_int references;
  char *client_id;
  char *tls_server_name;
  int64_t request_timeout_ms;
  SSL_CTX *tls;
  BIO_METHOD *tls_method;
  pthread_mutex_t lock;
  /* Under the lock. */
  int current;
  retired *retired;
  int place_count;
  server_place places[];
};

void memq_client_options_init_sized(memq_client_options *options, size_t size) {
  static const memq_client_options defaults = {
      .servers = "127.0.0.1:7460",
      .client_id = "memq-c",
      .connect_timeout_ms = 5000,
      .request_timeout_ms = 30000,
      .keepalive_ms = 30000,
      .message_bytes_max = 64 << 20,
  };
  MQ_INIT(options, size, defaults);
}

/* --- life */

static void destroy(memq_client *client) {
  for (int i = 0; i < client->place_count; i++) {
    for (int lane = 0; lane < MQ_LANE_COUNT; lane++) {
      if (client->places[i].connections[lane] != NULL) mq_connection_stop(client->places[i].connections[lane]);
    }
  }
  for (retired *old = client->retired; old != NULL; old = old->next) mq_connection_stop(old->connection);
  for (int i = 0; i < client->place_count; i++) {
    for (int lane = 0; lane < MQ_LANE_COUNT; lane++) {
      if (client->places[i].connections[lane] != NULL) mq_connection_join(client->places[i].connections[lane]);
    }
    mq_address_free(&client->places[i].settings.address);
  }
  while (client->retired != NULL) {
    retired *old = client->retired;
    client->retired = old->next;
    mq_connection_join(old->connection);
    free(old);
  }
  SSL_CTX_free(client->tls);
  BIO_meth_free(client->tls_method);
  free(client->client_id);
  free(client->tls_server_name);
  pthread_mutex_destroy(&client->lock);
  free(client);
}

void mq_client_retain(memq_client *client) { atomic_fetch_add(&client->references, 1); }

void mq_client_release(memq_client *client) {
  if (atomic_fetch_sub(&client->references, 1) == 1) destroy(client);
}

void memq_client_close(memq_client *client) {
  if (client != NULL) mq_client_release(client);
}

static memq_code check_options(const memq_client_options *options, memq_error *error) {
  if (options->servers == NULL || options->servers[0] == 0)
    return mq_fail(error, MEMQ_ERROR_INVALID_ARGUMENT, "servers", "a client needs a server's address");
  if (options->connect_timeout_ms < 0 || options->request_timeout_ms <= 0)
    return mq_fail(error, MEMQ_ERROR_CONFIGURATION_INVALID, "timeouts", "must be positive");
  if (options->keepalive_ms != 0 && options->keepalive_ms < mq_keepalive_ms_min)
    return mq_fail(error, MEMQ_ERROR_CONFIGURATION_INVALID, "keepalive_ms", "must be 0 or at least %lld", (long long)mq_keepalive_ms_min);
  if (options->message_bytes_max < 1 << 20 || options->message_bytes_max > UINT32_MAX)
    return mq_fail(error, MEMQ_ERROR_CONFIGURATION_INVALID, "message_bytes_max", "must be from 1 MiB to 4 GiB");
  return MEMQ_OK;
}

static memq_code make(const memq_client_options *options, memq_client **out, memq_error *error) {
  size_t count = 1;
  for (const char *at = options->servers; *at != 0; at++) count += *at == ',';
  if (count > ADDRESSES_MAX)
    return mq_fail(error, MEMQ_ERROR_INVALID_ARGUMENT, "servers", "at most %d addresses", (int)ADDRESSES_MAX);
  memq_client *client = calloc(1, sizeof(*client) + count * sizeof(server_place));
  if (client == NULL || mq_mutex_init(&client->lock) != 0) {
    free(client);
    return mq_fail_memory(error);
  }
  atomic_init(&client->references, 1);
  client->request_timeout_ms = options->request_timeout_ms;
  client->client_id = strdup(options->client_id != NULL ? options->client_id : "memq-c");
  memq_code code = client->client_id != NULL ? MEMQ_OK : mq_fail_memory(error);
  if (code == MEMQ_OK && options->tls_server_name != NULL) {
    client->tls_server_name = strdup(options->tls_server_name);
    if (client->tls_server_name == NULL) code = mq_fail_memory(error);
  }
  if (code == MEMQ_OK && options->tls) code = mq_tls_context(options, &client->tls, &client->tls_method, error);
  const char *at = options->servers;
  while (code == MEMQ_OK) {
    const char *end = strchrnul(at, ',');
    size_t size = (size_t)(end - at);
    while (size > 0 && *at == ' ') at++, size--;
    while (size > 0 && at[size - 1] == ' ') size--;
    mq_connection_settings *settings = &client->places[client->place_count].settings;
    if (!mq_address_parse(&settings->address, at, size, error)) {
      code = error->code;
      break;
    }
    client->place_count++;
    settings->tls = client->tls;
    settings->tls_method = client->tls_method;
    settings->tls_server_name = client->tls_server_name;
    settings->connect_timeout_ms = CONNECT_ATTEMPT_MS;
    settings->keepalive_ms = options->keepalive_ms;
    settings->message_bytes_max = options->message_bytes_max;
    if (*end == 0) break;
    at = end + 1;
  }
  if (code == MEMQ_OK) {
    *out = client;
  } else {
    destroy(client);
  }
  return code;
}

/* --- connections */

static void reap(memq_client *client) {
  for (retired **at = &client->retired; *at != NULL;) {
    retired *old = *at;
    if (mq_connection_is_finished(old->connection)) {
      *at = old->next;
      mq_connection_join(old->connection);
      free(old);
    } else {
      at = &old->next;
    }
  }
}

/* An open connection of a lane to a place; a new one where there is none. Under the lock. */
static mq_connection *connection_to(memq_client *client, int at, mq_lane lane, memq_error *error) {
  server_place *place = &client->places[at];
  mq_connection *connection = place->connections[lane];
  if (connection != NULL && mq_connection_is_open(connection)) return connection;
  reap(client);
  if (connection != NULL) {
    retired *old = malloc(sizeof(*old));
    if (old == NULL) {
      mq_fail_memory(error);
      return NULL;
    }
    *old = (retired){.next = client->retired, .connection = connection};
    client->retired = old;
    place->connections[lane] = NULL;
  }
  return place->connections[lane] = mq_connection_start(&place->settings, error);
}

mq_call *mq_client_call(memq_client *client, mq_lane lane, const char *path, int64_t deadline, mq_waker *waker, int *server, memq_error *error) {
  mq_call *call = NULL;
  pthread_mutex_lock(&client->lock);
  *server = client->current;
  /* Twice: a connection may close between the question and the call. */
  for (int attempt = 0; attempt < 2 && call == NULL; attempt++) {
    mq_connection *connection = connection_to(client, *server, lane, error);
    if (connection == NULL) break;
    call = mq_call_start(connection, path, deadline, waker, error);
  }
  pthread_mutex_unlock(&client->lock);
  return call;
}

void mq_client_failed(memq_client *client, int server) {
  pthread_mutex_lock(&client->lock);
  if (client->current == server) client->current = (client->current + 1) % client->place_count;
  pthread_mutex_unlock(&client->lock);
}

void mq_client_name_error(const memq_client *client, int server, memq_error *error) {
  if (error->subject[0] == 0 && (mq_is_absence(error) || error->code == MEMQ_ERROR_INTERNAL_ERROR))
    mq_set_subject(error, client->places[server].settings.address.name);
}

int64_t mq_client_request_timeout_ms(const memq_client *client) { return client->request_timeout_ms; }

const char *mq_client_id(const memq_client *client) { return client->client_id; }

int64_t mq_client_deadline(const memq_client *client, int64_t timeout_ms) {
  return mq_after_ms(mq_now(), timeout_ms < 0 ? client->request_timeout_ms : timeout_ms);
}

/* --- unary calls */

static bool is_stopped(mq_stop *stop) { return stop != NULL && stop->is_set; }

/* Hears a call to its end: the last message, which is the only one. */
static void hear(mq_call *call, mq_waker *waker, int64_t deadline, mq_stop *stop, mq_msg **answer, memq_error *error) {
  while (true) {
    mq_msg *message;
    mq_next next = mq_call_next(call, &message, error);
    if (next == MQ_NEXT_MESSAGE) {
      free(*answer);
      *answer = message;
    } else if (next == MQ_NEXT_END) {
      break;
    } else if (is_stopped(stop)) {
      mq_fail(error, MEMQ_ERROR_CANCELLED, NULL, "closed meanwhile");
      break;
    } else if (mq_now() >= deadline) {
      mq_fail(error, MEMQ_ERROR_DEADLINE_EXCEEDED, NULL, "no answer in time");
      break;
    } else {
      mq_waker_wait(waker, deadline);
    }
  }
  if (error->code == MEMQ_OK && *answer == NULL) mq_fail(error, MEMQ_ERROR_INTERNAL_ERROR, NULL, "the server ended the call without an answer");
}

/* One attempt; the answer's bytes. */
static memq_code attempt(memq_client *client, mq_lane lane, const char *path, const ProtobufCMessage *request, int64_t deadline, mq_waker *waker,
                         mq_stop *stop, mq_msg **answer, int *server, memq_error *error) {
  *answer = NULL;
  mq_call *call = mq_client_call(client, lane, path, deadline, waker, server, error);
  if (call == NULL) return error->code;
  mq_msg *message = request != NULL ? mq_msg_pack(request) : mq_msg_make(0);
  if (message == NULL) {
    mq_fail_memory(error);
  } else {
    mq_call_send(call, message);
    mq_call_half_close(call);
    hear(call, waker, deadline, stop, answer, error);
  }
  mq_call_free(call);
  if (error->code == MEMQ_OK) return MEMQ_OK;
  free(*answer);
  *answer = NULL;
  return error->code;
}

static void pause_until(mq_waker *waker, int64_t at, mq_stop *stop) {
  while (mq_now() < at && !is_stopped(stop)) mq_waker_wait(waker, at);
}

static memq_code repeat(memq_client *client, mq_lane lane, const char *path, const ProtobufCMessage *request,
                        const ProtobufCMessageDescriptor *response_type, int64_t deadline, mq_retry retry, mq_waker *waker, mq_stop *stop,
                        ProtobufCMessage **response, memq_error *error) {
  mq_backoff backoff = {0};
  memq_error before = {0};
  for (int count = 0;; count++) {
    int server;
    mq_msg *answer;
    int64_t end = deadline;
    if (retry == MQ_RETRY_UNTIL_DEADLINE && client->place_count > 1) {
      int64_t begin = mq_now();
      end = mq_min(deadline, begin + mq_max((deadline - begin) / 2, SHARE_MS_MIN * MQ_MS));
    }
    if (attempt(client, lane, path, request, end, waker, stop, &answer, &server, error) == MEMQ_OK) {
      ProtobufCMessage *unpacked = protobuf_c_message_unpack(response_type, NULL, answer->size, answer->data);
      free(answer);
      if (unpacked == NULL) return mq_fail(error, MEMQ_ERROR_CORRUPT_MESSAGE, path, "the server's answer cannot be read");
      if (response != NULL) {
        *response = unpacked;
      } else {
        protobuf_c_message_free_unpacked(unpacked, NULL);
      }
      return MEMQ_OK;
    }
    mq_client_name_error(client, server, error);
    if (mq_is_absence(error)) mq_client_failed(client, server);
    int64_t now = mq_now();
    if (now >= deadline) {
      /* Why it did not work out says more than that time is over. */
      if (error->code == MEMQ_ERROR_DEADLINE_EXCEEDED && before.code != MEMQ_OK && before.code != MEMQ_ERROR_DEADLINE_EXCEEDED) *error = before;
      return error->code;
    }
    before = *error;
    /* Memory is the application's business. */
    if (error->code == MEMQ_ERROR_OUT_OF_MEMORY) return error->code;
    bool is_again = (retry == MQ_RETRY_UNTIL_DEADLINE && error->is_retriable) || (error->is_unprocessed && error->is_retriable && count < 2);
    if (!is_again) return error->code;
    int64_t at = now + mq_backoff_step(&backoff);
    if (at >= deadline) return error->code;
    pause_until(waker, at, stop);
    if (is_stopped(stop)) return error->code;
  }
}

memq_code mq_client_unary(memq_client *client, mq_lane lane, const char *path, const ProtobufCMessage *request,
                          const ProtobufCMessageDescriptor *response_type, int64_t deadline, mq_retry retry, mq_stop *stop,
                          ProtobufCMessage **response, memq_error *error) {
  if (stop != NULL) return repeat(client, lane, path, request, response_type, deadline, retry, stop->waker, stop, response, error);
  mq_waker waker;
  if (mq_waker_init(&waker) != 0) return mq_fail_memory(error);
  memq_code code = repeat(client, lane, path, request, response_type, deadline, retry, &waker, NULL, response, error);
  mq_waker_destroy(&waker);
  return code;
}

memq_code mq_client_describe_topic(memq_client *client, const char *topic, int64_t deadline, Memq__V1__DescribeTopicResponse **response,
                                   memq_error *error) {
  if (topic == NULL) return mq_fail(error, MEMQ_ERROR_INVALID_ARGUMENT, "topic", "a topic's name is wanted");
  Memq__V1__DescribeTopicRequest request = MEMQ__V1__DESCRIBE_TOPIC_REQUEST__INIT;
  request.name = (char *)(uintptr_t)topic;
  ProtobufCMessage *answer;
  memq_code code = mq_client_unary(client, MQ_LANE_CONTROL, "/memq.v1.MetadataService/DescribeTopic", &request.base,
                                   &memq__v1__describe_topic_response__descriptor, deadline, MQ_RETRY_UNTIL_DEADLINE, NULL, &answer, error);
  if (code != MEMQ_OK) return code;
  Memq__V1__DescribeTopicResponse *described = (Memq__V1__DescribeTopicResponse *)answer;
  if (described->topic == NULL || described->topic->partition_count <= 0 || described->topic->topic_id.len != 16) {
    memq__v1__describe_topic_response__free_unpacked(described, NULL);
    return mq_fail(error, MEMQ_ERROR_CORRUPT_MESSAGE, topic, "the server's description of the topic cannot be read");
  }
  *response = described;
  return MEMQ_OK;
}

memq_code memq_topic_partitions(memq_client *client, const char *topic, int64_t timeout_ms, int32_t *count, memq_error **out) {
  memq_error error = {0};
  Memq__V1__DescribeTopicResponse *described;
  if (mq_client_describe_topic(client, topic, mq_client_deadline(client, timeout_ms), &described, &error) != MEMQ_OK)
    return mq_publish(out, &error);
  *count = described->topic->partition_count;
  memq__v1__describe_topic_response__free_unpacked(described, NULL);
  return MEMQ_OK;
}

/* --- the first contact */

/* grpc.health.v1.HealthCheckResponse { ServingStatus status = 1; }, 1: SERVING. */
static bool says_serving(const mq_msg *answer) { return answer->size >= 2 && answer->data[0] == 0x08 && answer->data[1] == 1; }

/* Waits for a server that answers and serves. */
static memq_code reach(memq_client *client, int64_t timeout_ms, mq_waker *waker, memq_error *error) {
  int64_t deadline = mq_after_ms(mq_now(), timeout_ms);
  mq_backoff backoff = {0};
  int refused_count = 0;
  memq_error cause = {0};
  /* One that takes connections and says nothing leaves time for the others. Without a timeout each address is asked once. */
  bool is_timed = timeout_ms > 0;
  int64_t attempt_ms = is_timed ? mq_max(mq_min(timeout_ms / client->place_count, CONNECT_ATTEMPT_MS), 1) : ONCE_ATTEMPT_MS;
  for (int count = 1;; count++) {
    int server;
    mq_msg *answer;
    int64_t end = mq_after_ms(mq_now(), attempt_ms);
    if (is_timed) end = mq_min(end, deadline);
    memq_code code = attempt(client, MQ_LANE_CONTROL, "/grpc.health.v1.Health/Check", NULL, end, waker, NULL, &answer, &server, error);
    bool is_serving = code == MEMQ_OK && says_serving(answer);
    free(answer);
    bool is_over = is_timed ? mq_now() >= deadline : count >= client->place_count;
    if (code == MEMQ_OK && (is_serving || is_over)) return MEMQ_OK;
    if (code != MEMQ_OK) {
      mq_client_name_error(client, server, error);
      /* It answers; that it has no health service does not matter. */
      if (!mq_is_absence(error)) return error->code == MEMQ_ERROR_OUT_OF_MEMORY ? error->code : MEMQ_OK;
      /* A certificate does not get better by waiting. */
      refused_count = error->code == MEMQ_ERROR_TLS ? refused_count + 1 : 0;
      mq_client_failed(client, server);
      if (error->code != MEMQ_ERROR_DEADLINE_EXCEEDED) cause = *error;
      if (is_over || refused_count >= client->place_count) {
        /* Why it did not work out says more than that time is over. */
        if (cause.code != MEMQ_OK) *error = cause;
        return error->code;
      }
    }
    /* Each address once without a pause. */
    if (count >= client->place_count) pause_until(waker, mq_min(mq_now() + mq_backoff_step(&backoff), deadline), NULL);
  }
}

memq_code memq_client_open(const memq_client_options *given, memq_client **out, memq_error **error_out) {
  memq_error error = {0};
  memq_client_options options;
  MQ_OPTIONS(memq_client_options, options, given);
  memq_client *client = NULL;
  memq_code code = check_options(&options, &error);
  if (code == MEMQ_OK) code = make(&options, &client, &error);
  mq_waker waker;
  if (code == MEMQ_OK && mq_waker_init(&waker) != 0) code = mq_fail_memory(&error);
  if (code == MEMQ_OK) {
    code = reach(client, options.connect_timeout_ms, &waker, &error);
    mq_waker_destroy(&waker);
  }
  if (code == MEMQ_OK) {
    *out = client;
    return MEMQ_OK;
  }
  memq_client_close(client);
  return mq_publish(error_out, &error);
}
