/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection: a thread, a socket, an nghttp2 session, and the gRPC calls on it.
 *
 * Everything stands under the connection's lock. Only the connection's thread touches the session; others leave what they want in their
 * call, put the call on the list of those to be looked at, and wake the thread. A connection that is lost stays lost: whoever wants another
 * one starts it.
 */
#include "internal.h"

#include <errno.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
  STREAM_WINDOW_BYTES = 8 << 20,
  CONNECTION_WINDOW_BYTES = 16 << 20,
  FRAME_BYTES_MAX = 256 << 10,
  HEADER_LIST_BYTES_MAX = 16 << 10,
  READ_BYTES = 256 << 10,
  /* Taken from the session before it is written out. */
  WRITE_BYTES = 512 << 10,
  /* Messages of one call that wait to be sent: beyond, there is no room. */
  CALL_OUT_BYTES = 1 << 20,
  /* Messages of one call that wait to be taken, whatever they hold: empty ones need no credit. */
  CALL_IN_MESSAGES_MAX = 262144,
};

enum {
  /* Or as long as the silence before, where that is shorter. */
  PING_ANSWER_MS_MAX = 10000,
};

typedef enum phase { CONNECTING, OPEN, DRAINING, LOST } phase;

struct mq_call {
  mq_connection *connection;
  mq_call *previous, *next;
  /* On the list of calls to be looked at. */
  mq_call *next_dirty;
  bool is_dirty;
  mq_waker *waker;
  const char *path;
  int64_t deadline;
  int32_t stream;
  /* The application has let it go. */
  bool is_abandoned;
  bool is_ended;
  bool is_cancelled;
  bool is_half_closed;
  /* The end of what is sent was handed to the session. */
  bool sent_end;
  /* The session waits for bytes. */
  bool is_deferred;
  bool was_refused;
  mq_msg *out_first, *out_last;
  size_t out_bytes;
  /* Sent of the first one. */
  size_t out_sent;
  mq_msg *in_first, *in_last;
  size_t in_count;
  /* Bytes that were taken and whose credit is not given back yet. */
  size_t credit;
  mq_deframer deframer;
  size_t partial_credited;
  size_t header_bytes;
  int http_status;
  bool is_grpc;
  bool has_status;
  int grpc_status;
  char *status_message;
  uint8_t *details;
  size_t details_size;
  bool has_limit, has_actual;
  int64_t limit, actual;
  /* Why a call is ended from within, before the peer hears of it. */
  bool has_failed;
  memq_error error;
};

struct mq_connection {
  const mq_connection_settings *settings;
  pthread_t thread;
  pthread_mutex_t lock;
  int wake_fd;
  /* Under the lock. */
  int references;
  phase phase;
  bool is_stopped, is_finished, is_wake_pending;
  mq_call *calls;
  mq_call *dirty;
  int64_t busy_since;
  /* The thread's own. */
  nghttp2_session *session;
  mq_transport transport;
  mq_buf out;
  size_t out_sent;
  uint8_t *in;
  int64_t heard_at;
  int64_t pinged_at;
  memq_error error;
};

/* --- references, waking */

static void release(mq_connection *connection) {
  pthread_mutex_lock(&connection->lock);
  bool is_last = --connection->references == 0;
  pthread_mutex_unlock(&connection->lock);
  if (!is_last) return;
  close(connection->wake_fd);
  pthread_mutex_destroy(&connection->lock);
  free(connection);
}

static void wake(mq_connection *connection) {
  if (connection->is_wake_pending) return;
  connection->is_wake_pending = true;
  uint64_t one = 1;
  ssize_t count = write(connection->wake_fd, &one, sizeof(one));
  /* It fails only where the counter is at its end: then the thread is awake. */
  (void)count;
}

static void look_at(mq_call *call) {
  mq_connection *connection = call->connection;
  if (!call->is_dirty) {
    call->is_dirty = true;
    call->next_dirty = connection->dirty;
    connection->dirty = call;
  }
  wake(connection);
}

static void tell(mq_call *call) {
  if (call->waker != NULL) mq_waker_signal(call->waker);
}

/* --- the end of a call, under the lock */

static void destroy(mq_call *call) {
  mq_msg_free_all(call->out_first);
  mq_msg_free_all(call->in_first);
  free(call->deframer.partial);
  free(call->status_message);
  free(call->details);
  free(call);
}

static void unlink_dirty(mq_call *call) {
  if (!call->is_dirty) return;
  mq_call **at = &call->connection->dirty;
  while (*at != call) at = &(*at)->next_dirty;
  *at = call->next_dirty;
  call->is_dirty = false;
}

/* The call is over as its `error` says. Off the connection's lists; freed when nobody holds it. */
static void end_call(mq_call *call) {
  if (call->is_ended) return;
  mq_connection *connection = call->connection;
  call->is_ended = true;
  if (call->previous != NULL) {
    call->previous->next = call->next;
  } else {
    connection->calls = call->next;
  }
  if (call->next != NULL) call->next->previous = call->previous;
  unlink_dirty(call);
  mq_msg_free_all(call->out_first);
  call->out_first = call->out_last = NULL;
  call->out_bytes = 0;
  if (connection->session != NULL && call->stream > 0) nghttp2_session_set_stream_user_data(connection->session, call->stream, NULL);
  if (call->is_abandoned) {
    destroy(call);
    connection->references--;
  } else {
    tell(call);
  }
}

static void fail_call(mq_call *call, const memq_error *error) {
  if (call->is_ended) return;
  call->error = *error;
  end_call(call);
}

/* Ends the stream, too. */
static void reset_call(mq_call *call) {
  if (call->stream > 0) nghttp2_submit_rst_stream(call->connection->session, NGHTTP2_FLAG_NONE, call->stream, NGHTTP2_CANCEL);
  end_call(call);
}

/* What headers and trailers said. */
static void judge(mq_call *call) {
  memq_error *error = &call->error;
  if (call->has_failed) return;
  if (call->http_status != 200 || !call->is_grpc) {
    static const struct {
      int http;
      memq_code code;
    } codes[] = {{400, MEMQ_ERROR_INTERNAL_ERROR},    {401, MEMQ_ERROR_UNAUTHENTICATED}, {403, MEMQ_ERROR_PERMISSION_DENIED},
                 {404, MEMQ_ERROR_UNIMPLEMENTED},     {429, MEMQ_ERROR_UNAVAILABLE},     {502, MEMQ_ERROR_UNAVAILABLE},
                 {503, MEMQ_ERROR_UNAVAILABLE},       {504, MEMQ_ERROR_UNAVAILABLE}};
    memq_code code = MEMQ_ERROR_INTERNAL_ERROR;
    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
      if (codes[i].http == call->http_status) code = codes[i].code;
    }
    if (!call->has_status) {
      mq_fail(error, code, NULL, "the server does not answer as gRPC does: HTTP status %d", call->http_status);
      return;
    }
  }
  if (!call->has_status) {
    mq_fail(error, MEMQ_ERROR_INTERNAL_ERROR, NULL, "the server ended the call without a status");
    return;
  }
  if (call->grpc_status == 0) {
    if (!mq_deframer_is_between(&call->deframer)) {
      mq_fail(error, MEMQ_ERROR_INTERNAL_ERROR, NULL, "the server ended the call within a message");
    } else {
      error->code = MEMQ_OK;
    }
    return;
  }
  if (call->details != NULL && mq_fail_details(error, call->details, call->details_size)) {
    error->grpc_status = call->grpc_status;
    return;
  }
  memq_code code = mq_code_of_status(call->grpc_status);
  if (code == MEMQ_ERROR_RESOURCE_EXHAUSTED && call->has_limit) code = MEMQ_ERROR_MESSAGE_TOO_LARGE;
  const char *text = call->status_message != NULL && call->status_message[0] != 0 ? call->status_message : memq_code_name(code);
  mq_fail(error, code, NULL, "%s", "");
  mq_copy_text(error->message, text, strlen(text));
  error->grpc_status = call->grpc_status;
  error->has_limit = call->has_limit;
  error->limit = call->limit;
  error->has_actual = call->has_actual;
  error->actual = call->actual;
}

/* --- nghttp2's callbacks: on the thread, under the lock */

static mq_call *call_of(nghttp2_session *session, int32_t stream) {
  mq_call *call = nghttp2_session_get_stream_user_data(session, stream);
  return call != NULL && !call->is_ended ? call : NULL;
}

/* Ends a call from within a callback: the stream is reset, and its close finds nobody. */
static void fail_within(mq_call *call, const memq_error *error) {
  call->error = *error;
  call->has_failed = true;
  reset_call(call);
}

static bool is_named(const uint8_t *name, size_t size, const char *wanted) {
  return size == strlen(wanted) && memcmp(name, wanted, size) == 0;
}

static bool parse_number(const uint8_t *text, size_t size, int64_t *number) {
  int64_t value = 0;
  if (size == 0 || size > 18) return false;
  for (size_t i = 0; i < size; i++) {
    if (text[i] < '0' || text[i] > '9') return false;
    value = value * 10 + (text[i] - '0');
  }
  *number = value;
  return true;
}

static void take_header(mq_call *call, const uint8_t *name, size_t name_size, const uint8_t *value, size_t size) {
  int64_t number;
  if (is_named(name, name_size, ":status")) {
    call->http_status = parse_number(value, size, &number) && number < 1000 ? (int)number : 0;
  } else if (is_named(name, name_size, "content-type")) {
    call->is_grpc = size >= 16 && strncasecmp((const char *)value, "application/grpc", 16) == 0;
  } else if (is_named(name, name_size, "grpc-status")) {
    call->has_status = true;
    call->grpc_status = parse_number(value, size, &number) && number <= 16 ? (int)number : 2;
  } else if (is_named(name, name_size, "grpc-message") && call->status_message == NULL) {
    char *text = malloc(size + 1);
    if (text == NULL) return;
    memcpy(text, value, size);
    text[mq_percent_decode(text, size)] = 0;
    call->status_message = text;
  } else if (is_named(name, name_size, "grpc-status-details-bin") && call->details == NULL) {
    uint8_t *details = malloc(size / 4 * 3 + 3);
    if (details == NULL) return;
    if (mq_base64_decode((const char *)value, size, details, &call->details_size)) {
      call->details = details;
    } else {
      free(details);
    }
  } else if (is_named(name, name_size, "memq-limit")) {
    call->has_limit = parse_number(value, size, &call->limit);
  } else if (is_named(name, name_size, "memq-actual")) {
    call->has_actual = parse_number(value, size, &call->actual);
  }
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size, const uint8_t *value,
                     size_t size, uint8_t flags, void *user) {
  (void)flags;
  (void)user;
  mq_call *call = call_of(session, frame->hd.stream_id);
  if (call == NULL) return 0;
  /* nghttp2 does not keep the limit it announces. */
  call->header_bytes += name_size + size + 32;
  if (call->header_bytes > HEADER_LIST_BYTES_MAX * 2) {
    memq_error error;
    mq_fail(&error, MEMQ_ERROR_RESOURCE_EXHAUSTED, NULL, "the server's headers are too large");
    error.is_retriable = false;
    fail_within(call, &error);
    return 0;
  }
  take_header(call, name, name_size, value, size);
  return 0;
}

static void give_credit(mq_connection *connection, mq_call *call, size_t bytes) {
  if (bytes > 0 && call->stream > 0) nghttp2_session_consume_stream(connection->session, call->stream, bytes);
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data, size_t size, void *user) {
  (void)flags;
  mq_connection *connection = user;
  nghttp2_session_consume_connection(session, size);
  mq_call *call = call_of(session, stream);
  if (call == NULL || call->is_abandoned) {
    nghttp2_session_consume_stream(session, stream, size);
    return 0;
  }
  memq_error error;
  if (call->http_status != 200 || !call->is_grpc) {
    /* The body of something that is not gRPC. */
    nghttp2_session_consume_stream(session, stream, size);
    return 0;
  }
  bool has_message = false;
  for (size_t at = 0; at < size;) {
    mq_msg *whole;
    ssize_t used = mq_deframe(&call->deframer, data + at, size - at, &whole, &error);
    if (used < 0) {
      fail_within(call, &error);
      return 0;
    }
    at += (size_t)used;
    if (whole == NULL) continue;
    if (++call->in_count > CALL_IN_MESSAGES_MAX) {
      free(whole);
      mq_fail(&error, MEMQ_ERROR_RESOURCE_EXHAUSTED, NULL, "the server sends more messages than are taken");
      fail_within(call, &error);
      return 0;
    }
    whole->credited = call->partial_credited;
    call->partial_credited = 0;
    if (call->in_last != NULL) {
      call->in_last->next = whole;
    } else {
      call->in_first = whole;
    }
    call->in_last = whole;
    has_message = true;
  }
  /* A message larger than the window: credit while it arrives, when nothing else waits. */
  if (call->in_first == NULL) {
    size_t arrived = call->deframer.prefix_count + call->deframer.partial_count;
    give_credit(connection, call, arrived - call->partial_credited);
    call->partial_credited = arrived;
  }
  if (has_message) tell(call);
  return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
  mq_connection *connection = user;
  if (frame->hd.type == NGHTTP2_GOAWAY && connection->phase == OPEN) connection->phase = DRAINING;
  if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) return 0;
  mq_call *call = call_of(session, frame->hd.stream_id);
  if (call == NULL || call->has_failed) return 0;
  /* 1xx: the real ones follow. */
  if (frame->hd.type == NGHTTP2_HEADERS && call->http_status >= 100 && call->http_status < 200) call->http_status = 0;
  if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0) return 0;
  judge(call);
  /* The server needs nothing more of us. */
  if (!call->sent_end) {
    reset_call(call);
  } else {
    end_call(call);
  }
  return 0;
}

static int on_close(nghttp2_session *session, int32_t stream, uint32_t reason, void *user) {
  mq_connection *connection = user;
  mq_call *call = call_of(session, stream);
  if (call == NULL) {
    for (call = connection->calls; call != NULL && call->stream != stream; call = call->next) continue;
    if (call == NULL) return 0;
  }
  memq_error *error = &call->error;
  if (call->has_status) {
    judge(call);
  } else if (call->was_refused || reason == NGHTTP2_REFUSED_STREAM) {
    mq_fail(error, MEMQ_ERROR_UNAVAILABLE, NULL, "the server takes no more calls on this connection");
    error->is_unprocessed = true;
  } else if (reason == NGHTTP2_CANCEL) {
    mq_fail(error, MEMQ_ERROR_CANCELLED, NULL, "the server cancelled the call");
  } else if (reason == NGHTTP2_ENHANCE_YOUR_CALM) {
    mq_fail(error, MEMQ_ERROR_RESOURCE_EXHAUSTED, NULL, "the server asks for less");
  } else {
    mq_fail(error, MEMQ_ERROR_UNAVAILABLE, NULL, "the server reset the call: %s", nghttp2_http2_strerror(reason));
  }
  end_call(call);
  return 0;
}

static int on_frame_not_sent(nghttp2_session *session, const nghttp2_frame *frame, int reason, void *user) {
  (void)session;
  (void)reason;
  mq_connection *connection = user;
  if (frame->hd.type != NGHTTP2_HEADERS) return 0;
  for (mq_call *call = connection->calls; call != NULL; call = call->next) {
    if (call->stream == frame->hd.stream_id) call->was_refused = true;
  }
  return 0;
}

static ssize_t read_body(nghttp2_session *session, int32_t stream, uint8_t *buffer, size_t size, uint32_t *flags, nghttp2_data_source *source,
                         void *user) {
  (void)source;
  (void)user;
  mq_call *call = call_of(session, stream);
  if (call == NULL) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  bool had_room = call->out_bytes < CALL_OUT_BYTES;
  size_t count = 0;
  while (call->out_first != NULL && count < size) {
    mq_msg *first = call->out_first;
    size_t left = first->size - call->out_sent;
    size_t piece = left < size - count ? left : size - count;
    memcpy(buffer + count, first->data + call->out_sent, piece);
    count += piece;
    call->out_sent += piece;
    if (call->out_sent < first->size) break;
    call->out_bytes -= first->size;
    call->out_sent = 0;
    call->out_first = first->next;
    if (call->out_first == NULL) call->out_last = NULL;
    free(first);
  }
  if (!had_room && call->out_bytes < CALL_OUT_BYTES) tell(call);
  if (call->out_first == NULL && call->is_half_closed) {
    *flags |= NGHTTP2_DATA_FLAG_EOF;
    call->sent_end = true;
  } else if (count == 0) {
    call->is_deferred = true;
    return NGHTTP2_ERR_DEFERRED;
  }
  return (ssize_t)count;
}

static ssize_t body_frame_size(nghttp2_session *session, uint8_t type, int32_t stream, int32_t session_window, int32_t stream_window,
                               uint32_t frame_max, void *user) {
  (void)session;
  (void)type;
  (void)stream;
  (void)user;
  int64_t size = FRAME_BYTES_MAX;
  size = mq_min(size, mq_min(frame_max, mq_min(session_window, stream_window)));
  return (ssize_t)size;
}

/* --- the thread */

static bool make_session(mq_connection *connection) {
  nghttp2_session_callbacks *callbacks = NULL;
  nghttp2_option *option = NULL;
  bool is_made = false;
  if (nghttp2_session_callbacks_new(&callbacks) == 0 && nghttp2_option_new(&option) == 0) {
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    nghttp2_session_callbacks_set_on_frame_not_send_callback(callbacks, on_frame_not_sent);
    nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, body_frame_size);
    nghttp2_option_set_no_auto_window_update(option, 1);
    is_made = nghttp2_session_client_new2(&connection->session, callbacks, connection, option) == 0;
  }
  nghttp2_option_del(option);
  nghttp2_session_callbacks_del(callbacks);
  if (!is_made) return false;
  const nghttp2_settings_entry settings[] = {
      {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES},
      {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, FRAME_BYTES_MAX},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, HEADER_LIST_BYTES_MAX},
  };
  return nghttp2_submit_settings(connection->session, NGHTTP2_FLAG_NONE, settings, sizeof(settings) / sizeof(settings[0])) == 0 &&
         nghttp2_session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW_BYTES) == 0;
}

static nghttp2_nv header(const char *name, const char *value) {
  return (nghttp2_nv){
      .name = (uint8_t *)(uintptr_t)name,
      .namelen = strlen(name),
      .value = (uint8_t *)(uintptr_t)value,
      .valuelen = strlen(value),
      .flags = NGHTTP2_NV_FLAG_NONE,
  };
}

/* Opens the stream. False: the call is ended. */
static bool begin_call(mq_connection *connection, mq_call *call) {
  char timeout[12];
  const mq_address *address = &connection->settings->address;
  nghttp2_nv headers[10];
  size_t count = 0;
  headers[count++] = header(":method", "POST");
  headers[count++] = header(":scheme", connection->settings->tls != NULL ? "https" : "http");
  headers[count++] = header(":path", call->path);
  headers[count++] = header(":authority", address->path != NULL ? "localhost" : address->name);
  headers[count++] = header("te", "trailers");
  headers[count++] = header("content-type", "application/grpc");
  headers[count++] = header("user-agent", "memq-c/" MEMQ_VERSION);
  headers[count++] = header("grpc-accept-encoding", "identity");
  if (call->deadline != MQ_NEVER) {
    mq_grpc_timeout(timeout, call->deadline - mq_now());
    headers[count++] = header("grpc-timeout", timeout);
  }
  nghttp2_data_provider provider = {.read_callback = read_body};
  int32_t stream = nghttp2_submit_request(connection->session, NULL, headers, count, &provider, call);
  if (stream > 0) {
    call->stream = stream;
    return true;
  }
  memq_error error;
  if (stream == NGHTTP2_ERR_NOMEM) {
    mq_fail_memory(&error);
  } else {
    mq_fail(&error, MEMQ_ERROR_UNAVAILABLE, NULL, "no new call on this connection: %s", nghttp2_strerror(stream));
    error.is_unprocessed = true;
    if (connection->phase == OPEN) connection->phase = DRAINING;
  }
  fail_call(call, &error);
  return false;
}

/* What callers have left since the last time. */
static void look(mq_connection *connection) {
  while (connection->dirty != NULL) {
    mq_call *call = connection->dirty;
    connection->dirty = call->next_dirty;
    call->is_dirty = false;
    if (call->is_cancelled) {
      reset_call(call);
      continue;
    }
    if (call->stream == 0) {
      if (connection->phase != OPEN) {
        memq_error error;
        mq_fail(&error, MEMQ_ERROR_UNAVAILABLE, NULL, "the server takes no more calls on this connection");
        error.is_unprocessed = true;
        fail_call(call, &error);
        continue;
      }
      if (!begin_call(connection, call)) continue;
    } else if (call->is_deferred && (call->out_first != NULL || call->is_half_closed)) {
      call->is_deferred = false;
      nghttp2_session_resume_data(connection->session, call->stream);
    }
    size_t credit = call->credit;
    call->credit = 0;
    /* The message that arrives is the next to be taken: its bytes do not wait for anything. */
    if (call->in_first == NULL) {
      size_t arrived = call->deframer.prefix_count + call->deframer.partial_count;
      credit += arrived - call->partial_credited;
      call->partial_credited = arrived;
    }
    give_credit(connection, call, credit);
  }
}

/* Takes from the session what it has to send. -1: `error`. */
static int pull(mq_connection *connection) {
  while (connection->out.length < WRITE_BYTES) {
    const uint8_t *bytes;
    ssize_t count = nghttp2_session_mem_send(connection->session, &bytes);
    if (count == 0) return 0;
    if (count < 0) {
      mq_fail(&connection->error, MEMQ_ERROR_INTERNAL_ERROR, NULL, "HTTP/2: %s", nghttp2_strerror((int)count));
      return -1;
    }
    if (!mq_buf_append(&connection->out, bytes, (size_t)count)) {
      mq_fail_memory(&connection->error);
      return -1;
    }
  }
  return 0;
}

/* Writes what was pulled as far as the socket takes it. */
static int flush(mq_connection *connection) {
  mq_buf *out = &connection->out;
  while (connection->out_sent < out->length) {
    ssize_t count =
        mq_transport_write(&connection->transport, out->data + connection->out_sent, out->length - connection->out_sent, &connection->error);
    if (count < 0) return -1;
    if (count == 0) return 0;
    connection->out_sent += (size_t)count;
  }
  out->length = connection->out_sent = 0;
  return 0;
}

/* Reads once and hands it to the session. */
static int receive(mq_connection *connection) {
  ssize_t count = mq_transport_read(&connection->transport, connection->in, READ_BYTES, &connection->error);
  if (count <= 0) return (int)count;
  pthread_mutex_lock(&connection->lock);
  connection->heard_at = mq_now();
  connection->pinged_at = 0;
  ssize_t used = nghttp2_session_mem_recv(connection->session, connection->in, (size_t)count);
  int pulled = used == count ? pull(connection) : 0;
  pthread_mutex_unlock(&connection->lock);
  if (used == count) return pulled;
  mq_fail(&connection->error, MEMQ_ERROR_UNAVAILABLE, NULL, "the server does not speak HTTP/2: %s", nghttp2_strerror((int)used));
  return -1;
}

/* How long may be waited for the socket, ms; -1: for ever; -2: the connection is broken. Asks for a sign of life where it is time. */
static int patience(mq_connection *connection) {
  if (connection->calls == NULL || connection->settings->keepalive_ms == 0) return -1;
  int64_t now = mq_now();
  int64_t at;
  if (connection->pinged_at != 0) {
    at = mq_after_ms(connection->pinged_at, mq_min(connection->settings->keepalive_ms, PING_ANSWER_MS_MAX));
    if (now >= at) {
      mq_fail(&connection->error, MEMQ_ERROR_UNAVAILABLE, NULL, "the server gives no sign of life");
      return -2;
    }
  } else {
    at = mq_after_ms(mq_max(connection->heard_at, connection->busy_since), connection->settings->keepalive_ms);
    if (now >= at) {
      connection->pinged_at = now;
      nghttp2_submit_ping(connection->session, NGHTTP2_FLAG_NONE, NULL);
      return 0;
    }
  }
  int64_t ms = (at - now) / MQ_MS + 1;
  return ms > 3600000 ? 3600000 : (int)ms;
}

/* One turn: what there is to send, then wait, then what has come. False: the connection is over, as `error` says. */
static bool turn(mq_connection *connection) {
  pthread_mutex_lock(&connection->lock);
  connection->is_wake_pending = false;
  /* After an offence against HTTP/2 the session says a last word, pulled where it was received, and nothing more; after a GOAWAY with its last
     stream. */
  bool is_dead = nghttp2_session_want_read(connection->session) == 0;
  if (!is_dead) look(connection);
  bool is_draining = connection->phase == DRAINING;
  bool is_over = connection->is_stopped;
  /* Drained: nobody is left. */
  if (is_draining && connection->calls == NULL) is_over = true;
  int wait_ms = 0;
  bool is_broken = pull(connection) < 0;
  if (!is_over && !is_broken) {
    wait_ms = patience(connection);
    is_broken = wait_ms == -2 || (wait_ms == 0 && pull(connection) < 0);
  }
  bool wants_more = connection->out.length >= WRITE_BYTES;
  pthread_mutex_unlock(&connection->lock);
  if (is_broken || flush(connection) < 0) return false;
  if (is_over) {
    mq_fail(&connection->error, MEMQ_ERROR_CANCELLED, NULL, "the client was closed");
    return false;
  }
  bool is_flushed = connection->out.length == 0;
  if (is_dead) {
    mq_fail(&connection->error, MEMQ_ERROR_UNAVAILABLE, NULL, "%s",
            is_draining ? "the server takes no more calls on this connection" : "the server does not speak HTTP/2");
    return false;
  }
  struct pollfd polls[2] = {{.fd = connection->transport.fd, .events = POLLIN}, {.fd = connection->wake_fd, .events = POLLIN}};
  if (connection->transport.wants_write || (!is_flushed && !connection->transport.wants_read)) polls[0].events |= POLLOUT;
  bool is_pending = mq_transport_has_pending(&connection->transport);
  if (is_pending || (is_flushed && wants_more)) wait_ms = 0;
  if (poll(polls, 2, wait_ms) < 0 && errno != EINTR) {
    mq_fail(&connection->error, MEMQ_ERROR_INTERNAL_ERROR, NULL, "poll: %s", strerror(errno));
    return false;
  }
  if (polls[1].revents != 0) {
    uint64_t count;
    ssize_t size = read(connection->wake_fd, &count, sizeof(count));
    (void)size;
  }
  return (polls[0].revents == 0 && !is_pending) || receive(connection) == 0;
}

static bool is_stopped(void *argument) {
  mq_connection *connection = argument;
  pthread_mutex_lock(&connection->lock);
  bool result = connection->is_stopped;
  pthread_mutex_unlock(&connection->lock);
  return result;
}

static void *run(void *argument) {
  mq_connection *connection = argument;
  const mq_connection_settings *settings = connection->settings;
  const mq_interrupt interrupt = {.fd = connection->wake_fd, .is_over = is_stopped, .argument = connection};
  memq_error *error = &connection->error;
  bool is_up = mq_transport_open(&connection->transport, &settings->address, settings->tls, settings->tls_method, settings->tls_server_name,
                                 settings->connect_timeout_ms, &interrupt, error) == MEMQ_OK;
  if (is_up) {
    pthread_mutex_lock(&connection->lock);
    connection->in = malloc(READ_BYTES);
    is_up = connection->in != NULL && make_session(connection);
    if (is_up) {
      connection->phase = OPEN;
      connection->heard_at = mq_now();
    } else {
      mq_fail_memory(error);
    }
    pthread_mutex_unlock(&connection->lock);
  }
  bool was_up = is_up;
  while (is_up) is_up = turn(connection);

  pthread_mutex_lock(&connection->lock);
  connection->phase = LOST;
  if (error->subject[0] == 0) mq_set_subject(error, settings->address.name);
  while (connection->calls != NULL) {
    memq_error of_call = *error;
    of_call.is_unprocessed = !was_up || connection->calls->stream == 0;
    fail_call(connection->calls, &of_call);
  }
  if (connection->session != NULL) {
    if (connection->is_stopped && nghttp2_session_terminate_session(connection->session, NGHTTP2_NO_ERROR) == 0 && pull(connection) == 0)
      flush(connection);
    nghttp2_session_del(connection->session);
    connection->session = NULL;
  }
  mq_transport_close(&connection->transport);
  mq_buf_free(&connection->out);
  free(connection->in);
  connection->in = NULL;
  connection->is_finished = true;
  pthread_mutex_unlock(&connection->lock);
  return NULL;
}

mq_connection *mq_connection_start(const mq_connection_settings *settings, memq_error *error) {
  mq_connection *connection = calloc(1, sizeof(*connection));
  if (connection == NULL) {
    mq_fail_memory(error);
    return NULL;
  }
  connection->settings = settings;
  connection->references = 1;
  connection->transport.fd = -1;
  connection->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  int number = connection->wake_fd < 0 ? errno : mq_mutex_init(&connection->lock);
  if (number == 0) {
    number = mq_thread_start(&connection->thread, run, connection);
    if (number == 0) return connection;
    pthread_mutex_destroy(&connection->lock);
  }
  mq_fail(error, MEMQ_ERROR_RESOURCE_EXHAUSTED, settings->address.name, "no thread for a connection: %s", strerror(number));
  if (connection->wake_fd >= 0) close(connection->wake_fd);
  free(connection);
  return NULL;
}

bool mq_connection_is_open(mq_connection *connection) {
  pthread_mutex_lock(&connection->lock);
  bool result = connection->phase <= OPEN && !connection->is_stopped;
  pthread_mutex_unlock(&connection->lock);
  return result;
}

bool mq_connection_is_finished(mq_connection *connection) {
  pthread_mutex_lock(&connection->lock);
  bool result = connection->is_finished;
  pthread_mutex_unlock(&connection->lock);
  return result;
}

void mq_connection_stop(mq_connection *connection) {
  pthread_mutex_lock(&connection->lock);
  connection->is_stopped = true;
  /* Also when it was woken before: while it connects it looks at nothing else. */
  connection->is_wake_pending = false;
  wake(connection);
  pthread_mutex_unlock(&connection->lock);
}

void mq_connection_join(mq_connection *connection) {
  pthread_join(connection->thread, NULL);
  release(connection);
}

/* --- calls, from any thread */

mq_call *mq_call_start(mq_connection *connection, const char *path, int64_t deadline, mq_waker *waker, memq_error *error) {
  mq_call *call = calloc(1, sizeof(*call));
  if (call == NULL) {
    mq_fail_memory(error);
    return NULL;
  }
  call->connection = connection;
  call->path = path;
  call->deadline = deadline;
  call->waker = waker;
  call->deframer.size_max = connection->settings->message_bytes_max;
  pthread_mutex_lock(&connection->lock);
  if (connection->phase > OPEN || connection->is_stopped) {
    if (connection->phase == LOST) {
      *error = connection->error;
    } else {
      mq_fail(error, MEMQ_ERROR_UNAVAILABLE, connection->settings->address.name, "the server takes no more calls on this connection");
    }
    error->is_unprocessed = true;
    pthread_mutex_unlock(&connection->lock);
    free(call);
    return NULL;
  }
  if (connection->calls == NULL) {
    connection->busy_since = mq_now();
  } else {
    connection->calls->previous = call;
  }
  call->next = connection->calls;
  connection->calls = call;
  connection->references++;
  look_at(call);
  pthread_mutex_unlock(&connection->lock);
  return call;
}

bool mq_call_send(mq_call *call, mq_msg *message) {
  mq_connection *connection = call->connection;
  pthread_mutex_lock(&connection->lock);
  bool is_open = !call->is_ended && !call->is_half_closed;
  if (is_open) {
    if (call->out_last != NULL) {
      call->out_last->next = message;
    } else {
      call->out_first = message;
    }
    call->out_last = message;
    call->out_bytes += message->size;
    look_at(call);
  } else {
    free(message);
  }
  pthread_mutex_unlock(&connection->lock);
  return is_open;
}

void mq_call_half_close(mq_call *call) {
  mq_connection *connection = call->connection;
  pthread_mutex_lock(&connection->lock);
  if (!call->is_ended && !call->is_half_closed) {
    call->is_half_closed = true;
    look_at(call);
  }
  pthread_mutex_unlock(&connection->lock);
}

bool mq_call_has_room(mq_call *call) {
  mq_connection *connection = call->connection;
  pthread_mutex_lock(&connection->lock);
  bool result = call->out_bytes < CALL_OUT_BYTES;
  pthread_mutex_unlock(&connection->lock);
  return result;
}

mq_next mq_call_next(mq_call *call, mq_msg **message, memq_error *error) {
  mq_connection *connection = call->connection;
  mq_next result = MQ_NEXT_NOTHING;
  *message = NULL;
  pthread_mutex_lock(&connection->lock);
  if (call->in_first != NULL) {
    *message = call->in_first;
    call->in_first = (*message)->next;
    if (call->in_first == NULL) call->in_last = NULL;
    (*message)->next = NULL;
    call->in_count--;
    if (!call->is_ended) {
      call->credit += MQ_PREFIX_BYTES + (*message)->size - (*message)->credited;
      /* A quarter of the window at a time, and what is left when nothing waits: each wakes the thread. */
      if (call->credit >= STREAM_WINDOW_BYTES / 4 || (call->in_first == NULL && call->deframer.prefix_count > 0)) look_at(call);
    }
    result = MQ_NEXT_MESSAGE;
  } else if (call->is_ended) {
    *error = call->error;
    result = MQ_NEXT_END;
  }
  pthread_mutex_unlock(&connection->lock);
  return result;
}

mq_next mq_call_wait(mq_call *call, mq_waker *waker, int64_t deadline, mq_msg **message, memq_error *error) {
  while (true) {
    mq_next next = mq_call_next(call, message, error);
    if (next != MQ_NEXT_NOTHING) return next;
    if (!mq_waker_wait(waker, deadline) && mq_now() >= deadline) {
      /* What came in the last moment counts. */
      next = mq_call_next(call, message, error);
      if (next != MQ_NEXT_NOTHING) return next;
      mq_fail(error, MEMQ_ERROR_DEADLINE_EXCEEDED, NULL, "no answer in time");
      return MQ_NEXT_END;
    }
  }
}

void mq_call_free(mq_call *call) {
  if (call == NULL) return;
  mq_connection *connection = call->connection;
  pthread_mutex_lock(&connection->lock);
  call->waker = NULL;
  if (call->is_ended) {
    destroy(call);
  } else {
    call->is_abandoned = true;
    call->is_cancelled = true;
    look_at(call);
    /* The thread frees it; the connection lives at least as long as its thread. */
    call = NULL;
  }
  pthread_mutex_unlock(&connection->lock);
  if (call != NULL) release(connection);
}
