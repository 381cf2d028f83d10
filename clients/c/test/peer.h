/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/* A server on nghttp2 that behaves as a test tells it to, mostly badly. */
#ifndef PEER_H
#define PEER_H

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "check.h"

typedef enum peer_manner {
  ANSWERS,
  /* The first call is refused, the next one answered. */
  REFUSES_ONCE,
  /* The first call meets a GOAWAY that leaves it out. */
  LEAVES_ONCE,
  NEVER_ANSWERS,
  ANSWERS_BYTE_BY_BYTE,
  HAS_DETAILS,
  HAS_STATUS,
  IS_NO_GRPC,
  COMPRESSES,
  ANNOUNCES_TOO_MUCH,
  ENDS_WITHIN,
  FORGETS_STATUS,
  CLOSES,
  RESETS,
  /* Reads and writes no more. */
  GOES_SILENT,
  /* A message larger than every window. */
  ANSWERS_AT_LENGTH,
  SPEAKS_HTTP_1,
} peer_manner;

typedef struct fake_server {
  int listener;
  char address[120];
  peer_manner manner;
  /* NULL: a port of loopback. */
  const char *path;
  /* What DescribeTopic answers. */
  const uint8_t *answer;
  size_t answer_size;
  const char *details;
  atomic_int connections, calls, cancelled;
  atomic_bool is_over;
  pthread_t thread;
} fake_server;

typedef struct peer_link {
  fake_server *peer;
  int fd;
  bool is_closed, is_silent;
  pthread_t thread;
} peer_link;

typedef struct peer_stream {
  char path[128];
  char timeout[16];
  bool has_te;
  uint8_t body[4096];
  size_t size, sent;
  /* Zeros behind the body. */
  size_t filler;
  bool has_trailers;
  peer_manner manner;
} peer_stream;

static nghttp2_nv peer_header(const char *name, const char *value) {
  return (nghttp2_nv){(uint8_t *)(uintptr_t)name, (uint8_t *)(uintptr_t)value, strlen(name), strlen(value), NGHTTP2_NV_FLAG_NONE};
}

static ssize_t peer_body(nghttp2_session *session, int32_t stream, uint8_t *buffer, size_t size, uint32_t *flags, nghttp2_data_source *source,
                         void *user) {
  const peer_link *link = user;
  peer_stream *state = source->ptr;
  size_t count = state->size - state->sent;
  if (count > size) count = size;
  if (count > 1 && state->manner == ANSWERS_BYTE_BY_BYTE) count = 1;
  memcpy(buffer, state->body + state->sent, count);
  state->sent += count;
  if (state->sent < state->size) return (ssize_t)count;
  if (count < size && state->filler > 0) {
    size_t zeros = state->filler < size - count ? state->filler : size - count;
    memset(buffer + count, 0, zeros);
    state->filler -= zeros;
    count += zeros;
  }
  if (state->filler > 0) return (ssize_t)count;
  *flags |= NGHTTP2_DATA_FLAG_EOF;
  if (state->manner == FORGETS_STATUS) return (ssize_t)count;
  *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
  nghttp2_nv trailers[3];
  size_t trailer_count = 0;
  if (state->manner == HAS_DETAILS) {
    trailers[trailer_count++] = peer_header("grpc-status", "5");
    trailers[trailer_count++] = peer_header("grpc-message", "no%20such%20topic");
    trailers[trailer_count++] = peer_header("grpc-status-details-bin", link->peer->details);
  } else if (state->manner == HAS_STATUS) {
    trailers[trailer_count++] = peer_header("grpc-status", "16");
    trailers[trailer_count++] = peer_header("grpc-message", "who are you%3F %e2%82%ac%zz");
  } else {
    trailers[trailer_count++] = peer_header("grpc-status", "0");
  }
  CHECK(nghttp2_submit_trailer(session, stream, trailers, trailer_count) == 0);
  return (ssize_t)count;
}

static void peer_frame(peer_stream *state, uint8_t flag, size_t announced, const void *bytes, size_t size) {
  uint8_t *at = state->body;
  *at++ = flag;
  for (int i = 0; i < 4; i++) *at++ = (uint8_t)(announced >> (24 - 8 * i));
  if (size > 0) memcpy(at, bytes, size);
  state->size = 5 + size;
}

static void peer_answer(nghttp2_session *session, peer_link *link, int32_t stream, peer_stream *state) {
  static const uint8_t serving[] = {0x08, 1};
  fake_server *peer = link->peer;
  bool is_health = strcmp(state->path, "/grpc.health.v1.Health/Check") == 0;
  int number = is_health ? 0 : ++peer->calls;
  state->manner = is_health ? ANSWERS : peer->manner;
  CHECK(state->has_te && state->timeout[0] != 0);
  switch (state->manner) {
    case REFUSES_ONCE:
      if (number > 1) break;
      nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, stream, NGHTTP2_REFUSED_STREAM);
      return;
    case LEAVES_ONCE:
      if (number > 1) break;
      nghttp2_submit_goaway(session, NGHTTP2_FLAG_NONE, stream - 2, NGHTTP2_NO_ERROR, NULL, 0);
      return;
    case NEVER_ANSWERS: return;
    case CLOSES: link->is_closed = true; return;
    case GOES_SILENT: link->is_silent = true; return;
    case RESETS: nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, stream, NGHTTP2_INTERNAL_ERROR); return;
    default: break;
  }
  if (is_health) {
    peer_frame(state, 0, sizeof(serving), serving, sizeof(serving));
  } else if (state->manner == ANSWERS_AT_LENGTH) {
    /* The answer, and a field 1,000 that nobody knows. */
    static const uint8_t unknown[] = {0xC2, 0x3E, 0x80, 0x80, 0x80, 0x0A};
    uint8_t body[1024];
    memcpy(body, peer->answer, peer->answer_size);
    memcpy(body + peer->answer_size, unknown, sizeof(unknown));
    state->filler = 20 << 20;
    peer_frame(state, 0, peer->answer_size + sizeof(unknown) + state->filler, body, peer->answer_size + sizeof(unknown));
  } else if (state->manner == COMPRESSES) {
    peer_frame(state, 1, peer->answer_size, peer->answer, peer->answer_size);
  } else if (state->manner == ANNOUNCES_TOO_MUCH) {
    peer_frame(state, 0, 0x7FFFFFFF, peer->answer, peer->answer_size);
  } else if (state->manner == ENDS_WITHIN) {
    peer_frame(state, 0, peer->answer_size + 1, peer->answer, peer->answer_size);
  } else if (state->manner != HAS_DETAILS && state->manner != HAS_STATUS) {
    peer_frame(state, 0, peer->answer_size, peer->answer, peer->answer_size);
  }
  const nghttp2_nv good[] = {peer_header(":status", "200"), peer_header("content-type", "application/grpc+proto")};
  const nghttp2_nv bad[] = {peer_header(":status", "503"), peer_header("content-type", "text/html")};
  nghttp2_data_provider provider = {.source = {.ptr = state}, .read_callback = peer_body};
  if (state->manner == IS_NO_GRPC) state->manner = FORGETS_STATUS;
  CHECK(nghttp2_submit_response(session, stream, peer->manner == IS_NO_GRPC && !is_health ? bad : good, 2, &provider) == 0);
}

static int peer_on_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
  (void)user;
  if (frame->hd.type != NGHTTP2_HEADERS) return 0;
  peer_stream *state = calloc(1, sizeof(*state));
  CHECK(state != NULL);
  return nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, state);
}

static int peer_on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size, const uint8_t *value,
                          size_t size, uint8_t flags, void *user) {
  (void)name_size;
  (void)flags;
  (void)user;
  peer_stream *state = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
  const char *text = (const char *)name;
  if (strcmp(text, ":path") == 0) snprintf(state->path, sizeof(state->path), "%.*s", (int)size, (const char *)value);
  if (strcmp(text, "grpc-timeout") == 0) snprintf(state->timeout, sizeof(state->timeout), "%.*s", (int)size, (const char *)value);
  if (strcmp(text, "te") == 0) state->has_te = true;
  return 0;
}

static int peer_on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
  peer_link *link = user;
  if (frame->hd.type == NGHTTP2_RST_STREAM && frame->rst_stream.error_code == NGHTTP2_CANCEL) link->peer->cancelled++;
  if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0) return 0;
  if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) return 0;
  peer_stream *state = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
  if (state != NULL) peer_answer(session, link, frame->hd.stream_id, state);
  return 0;
}

static int peer_on_close(nghttp2_session *session, int32_t stream, uint32_t reason, void *user) {
  (void)reason;
  (void)user;
  free(nghttp2_session_get_stream_user_data(session, stream));
  return nghttp2_session_set_stream_user_data(session, stream, NULL);
}

static bool peer_pull(nghttp2_session *session, int fd) {
  const uint8_t *bytes;
  ssize_t size;
  while ((size = nghttp2_session_mem_send(session, &bytes)) > 0) {
    for (ssize_t at = 0; at < size;) {
      ssize_t count = send(fd, bytes + at, (size_t)(size - at), MSG_NOSIGNAL);
      if (count <= 0) return false;
      at += count;
    }
  }
  return true;
}

/* Threads of a test's own always get memory. */
static _Thread_local bool has_memory;

static void *peer_serve(void *argument) {
  peer_link *link = argument;
  has_memory = true;
  nghttp2_session_callbacks *callbacks;
  nghttp2_session *session;
  CHECK(nghttp2_session_callbacks_new(&callbacks) == 0);
  nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, peer_on_headers);
  nghttp2_session_callbacks_set_on_header_callback(callbacks, peer_on_header);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, peer_on_frame);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, peer_on_close);
  CHECK(nghttp2_session_server_new(&session, callbacks, link) == 0);
  nghttp2_session_callbacks_del(callbacks);
  CHECK(nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, NULL, 0) == 0);
  if (link->peer->manner == SPEAKS_HTTP_1) {
    static const char page[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    CHECK(send(link->fd, page, sizeof(page) - 1, MSG_NOSIGNAL) == sizeof(page) - 1);
    link->is_silent = true;
  }
  uint8_t buffer[4096];
  while (!link->is_closed && !link->peer->is_over && (link->is_silent || peer_pull(session, link->fd))) {
    struct pollfd polls = {.fd = link->fd, .events = POLLIN};
    if (poll(&polls, link->is_silent ? 0 : 1, 20) <= 0) continue;
    ssize_t size = recv(link->fd, buffer, sizeof(buffer), 0);
    if (size <= 0 || nghttp2_session_mem_recv(session, buffer, (size_t)size) < 0) break;
  }
  /* What is open is not closed by the session's end. */
  for (int32_t stream = 1; stream < 2000; stream += 2) {
    if (nghttp2_session_find_stream(session, stream) != NULL) free(nghttp2_session_get_stream_user_data(session, stream));
  }
  nghttp2_session_del(session);
  close(link->fd);
  return NULL;
}

static void *peer_run(void *argument) {
  has_memory = true;
  fake_server *peer = argument;
  peer_link links[128];
  int count = 0;
  while (!peer->is_over) {
    struct pollfd polls = {.fd = peer->listener, .events = POLLIN};
    if (poll(&polls, 1, 20) <= 0) continue;
    int fd = accept(peer->listener, NULL, NULL);
    if (fd < 0) continue;
    CHECK(count < 128);
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    peer->connections++;
    links[count] = (peer_link){.peer = peer, .fd = fd};
    CHECK(pthread_create(&links[count].thread, NULL, peer_serve, &links[count]) == 0);
    count++;
  }
  for (int i = 0; i < count; i++) pthread_join(links[i].thread, NULL);
  return NULL;
}

static void peer_listen_at_path(fake_server *peer) {
  struct sockaddr_un at = {.sun_family = AF_UNIX};
  snprintf(at.sun_path, sizeof(at.sun_path), "%s", peer->path);
  peer->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(peer->listener >= 0 && bind(peer->listener, (struct sockaddr *)&at, sizeof(at)) == 0 && listen(peer->listener, 64) == 0);
  snprintf(peer->address, sizeof(peer->address), "unix:%s", peer->path);
}

static void peer_listen(fake_server *peer) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof(at);
  peer->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(peer->listener >= 0 && bind(peer->listener, (struct sockaddr *)&at, size) == 0 && listen(peer->listener, 64) == 0);
  CHECK(getsockname(peer->listener, (struct sockaddr *)&at, &size) == 0);
  snprintf(peer->address, sizeof(peer->address), "127.0.0.1:%d", ntohs(at.sin_port));
}

static void peer_start(fake_server *peer) {
  if (peer->path != NULL) {
    peer_listen_at_path(peer);
  } else {
    peer_listen(peer);
  }
  CHECK(pthread_create(&peer->thread, NULL, peer_run, peer) == 0);
}

static void peer_stop(fake_server *peer) {
  peer->is_over = true;
  pthread_join(peer->thread, NULL);
  close(peer->listener);
}

#endif
