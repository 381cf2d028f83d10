/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/* What the files of the library share. Names begin with mq_; nothing here is exported. */
#ifndef MEMQ_INTERNAL_H
#define MEMQ_INTERNAL_H

#include <memq.h>

#include <protobuf-c/protobuf-c.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include <openssl/bio.h>
#include <openssl/types.h>

/* --- errors (error.c) */

enum {
  /* A file's name fits; servers cut at 1,024, too. */
  MQ_TEXT_MAX = 1024,
};

struct memq_error {
  memq_code code;
  int grpc_status;
  bool is_retriable;
  /* No server can have acted on the call: it may be sent again whatever it does. */
  bool is_unprocessed;
  bool has_limit, has_actual;
  int64_t limit, actual;
  char subject[MQ_TEXT_MAX + 1];
  char message[MQ_TEXT_MAX + 1];
};

/* Fills in an error and returns its code. */
memq_code mq_fail(memq_error *error, memq_code code, const char *subject, const char *format, ...) __attribute__((format(printf, 4, 5)));
memq_code mq_fail_memory(memq_error *error);
/* Hands an error to the application. */
memq_code mq_publish(memq_error **out, const memq_error *error);
void mq_set_subject(memq_error *error, const char *subject);
/* Copies up to `size` bytes of a text into a field of MQ_TEXT_MAX + 1 bytes, never cutting a character in two. */
void mq_copy_text(char *field, const void *text, size_t size);
/* The reason for a gRPC status that names none, and the other way round. */
memq_code mq_code_of_status(int grpc_status);
bool mq_code_is_retriable(memq_code code);
struct Memq__V1__ErrorDetail;
memq_code mq_fail_detail(memq_error *error, const struct Memq__V1__ErrorDetail *detail);
/* google.rpc.Status with an ErrorDetail among its details. False: there is none. */
bool mq_fail_details(memq_error *error, const uint8_t *status, size_t size);
/* The server is not there, or about to leave: another one may be. */
bool mq_is_absence(const memq_error *error);

/* --- time, threads, bytes (util.c) */

#define MQ_NEVER INT64_MAX
#define MQ_MS INT64_C(1000000)
#define MQ_SECOND INT64_C(1000000000)

/* Monotonic, nanoseconds. */
int64_t mq_now(void);
/* Milliseconds since 1970. */
int64_t mq_wall_ms(void);
/* now + ms without overflow. */
int64_t mq_after_ms(int64_t now, int64_t ms);
int64_t mq_min(int64_t a, int64_t b);
int64_t mq_max(int64_t a, int64_t b);
uint64_t mq_random(void);
bool mq_random_bytes(void *bytes, size_t size);

int mq_mutex_init(pthread_mutex_t *mutex);
/* A condition variable on the monotonic clock. */
int mq_cond_init(pthread_cond_t *cond);
/* False: the deadline passed. */
bool mq_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t deadline);
/* A joinable thread that gets no signals. */
int mq_thread_start(pthread_t *thread, void *(*body)(void *), void *argument);

/* An event for one waiting thread: signals before the wait count. Its lock is the innermost of all. */
typedef struct mq_waker {
  pthread_mutex_t mutex;
  pthread_cond_t cond;
  bool is_set;
} mq_waker;
int mq_waker_init(mq_waker *waker);
void mq_waker_destroy(mq_waker *waker);
void mq_waker_signal(mq_waker *waker);
/* False: the deadline passed. */
bool mq_waker_wait(mq_waker *waker, int64_t deadline);

/* Jittered waits between attempts: 20 ms at first, twice as long each time up to 500 ms, +- 20 %. */
typedef struct mq_backoff {
  int64_t next;
} mq_backoff;
void mq_backoff_reset(mq_backoff *backoff);
int64_t mq_backoff_step(mq_backoff *backoff);

typedef struct mq_buf {
  uint8_t *data;
  size_t length, capacity;
} mq_buf;
/* Room for `more` bytes behind the end. */
bool mq_buf_reserve(mq_buf *buf, size_t more);
bool mq_buf_append(mq_buf *buf, const void *bytes, size_t size);
void mq_buf_free(mq_buf *buf);

/* CRC-32C; begin with 0. */
uint32_t mq_crc32c(uint32_t crc, const void *bytes, size_t size);
/* Without the processor's instruction for it; for tests. */
uint32_t mq_crc32c_portable(uint32_t crc, const void *bytes, size_t size);
/* MurmurHash2, 32 bits, Kafka's seed. */
uint32_t mq_murmur2(const void *key, size_t size);
int32_t mq_partition_of_key(const void *key, size_t size, int32_t partitions);
/* Undoes grpc-message's percent-encoding, in place; what is malformed stays. The new length. */
size_t mq_percent_decode(char *text, size_t size);
/* Base64 with or without padding. False: malformed. `out` has room for size / 4 * 3 + 3 bytes. */
bool mq_base64_decode(const char *text, size_t size, uint8_t *out, size_t *out_size);
/* "1500m" for grpc-timeout: at most eight digits, never shorter than told. */
void mq_grpc_timeout(char text[12], int64_t ns);
size_t mq_varint_size(uint64_t value);
size_t mq_varint_put(uint8_t *out, uint64_t value);

/* --- a message on its way */

typedef struct mq_msg {
  struct mq_msg *next;
  size_t size;
  /* Incoming: bytes whose credit was given back while it arrived. */
  size_t credited;
  uint8_t data[];
} mq_msg;

enum {
  /* Compressed flag and length. */
  MQ_PREFIX_BYTES = 5,
};

/* A framed outgoing message with room for `size` bytes behind the prefix. */
mq_msg *mq_msg_make(size_t size);
mq_msg *mq_msg_pack(const ProtobufCMessage *message);
void mq_msg_free_all(mq_msg *first);

/* Takes gRPC messages apart. */
typedef struct mq_deframer {
  uint8_t prefix[MQ_PREFIX_BYTES];
  unsigned prefix_count;
  mq_msg *partial;
  size_t partial_count;
  size_t size_max;
} mq_deframer;
/* Takes bytes in; a message that is whole is stored in `*whole`. Bytes used, fewer than size only when `*whole` is set; -1: see `error`. */
ssize_t mq_deframe(mq_deframer *deframer, const uint8_t *bytes, size_t size, mq_msg **whole, memq_error *error);
bool mq_deframer_is_between(const mq_deframer *deframer);

/* --- sockets and TLS (transport.c) */

typedef struct mq_address {
  /* As given, for people and :authority. */
  char *name;
  /* NULL for unix. */
  char *host;
  char *port;
  /* NULL for TCP. */
  char *path;
} mq_address;
/* False: not an address. */
bool mq_address_parse(mq_address *address, const char *text, size_t size, memq_error *error);
void mq_address_free(mq_address *address);

/* TLS contexts and files of certificates, one per client. */
memq_code mq_tls_context(const memq_client_options *options, SSL_CTX **context, BIO_METHOD **method, memq_error *error);

typedef struct mq_transport {
  int fd;
  /* NULL: plain. */
  SSL *ssl;
  bool wants_write, wants_read;
  /* The server asked for a client's certificate, and there is none. */
  bool lacks_certificate;
  bool has_heard;
} mq_transport;

/* Something that ends a wait: an eventfd that another thread writes to, and whether it means the end. */
typedef struct mq_interrupt {
  int fd;
  bool (*is_over)(void *);
  void *argument;
} mq_interrupt;

/* The timeout begins when the address is known. */
memq_code mq_transport_open(mq_transport *transport, const mq_address *address, SSL_CTX *tls, BIO_METHOD *method, const char *server_name,
                            int64_t timeout_ms, const mq_interrupt *interrupt, memq_error *error);
/* Bytes; 0: later; -1: `error`. The end of the peer's bytes is an error, too. */
ssize_t mq_transport_read(mq_transport *transport, void *buffer, size_t size, memq_error *error);
ssize_t mq_transport_write(mq_transport *transport, const void *bytes, size_t size, memq_error *error);
bool mq_transport_has_pending(const mq_transport *transport);
void mq_transport_close(mq_transport *transport);

/* --- connections and calls (connection.c) */

typedef struct mq_connection mq_connection;
typedef struct mq_call mq_call;

typedef struct mq_connection_settings {
  mq_address address;
  SSL_CTX *tls;
  BIO_METHOD *tls_method;
  char *tls_server_name;
  int64_t connect_timeout_ms;
  int64_t keepalive_ms;
  size_t message_bytes_max;
} mq_connection_settings;

/* Begins to connect, on a thread of its own. `settings` must outlive it. */
mq_connection *mq_connection_start(const mq_connection_settings *settings, memq_error *error);
/* Whether it takes new calls. */
bool mq_connection_is_open(mq_connection *connection);
bool mq_connection_is_finished(mq_connection *connection);
/* Asks it to end; calls fail. */
void mq_connection_stop(mq_connection *connection);
/* Waits for its thread and gives back the starter's reference. */
void mq_connection_join(mq_connection *connection);

typedef enum mq_next { MQ_NEXT_NOTHING, MQ_NEXT_MESSAGE, MQ_NEXT_END } mq_next;

/* Begins a call. `waker` is signalled whenever mq_call_next or mq_call_has_room may say something new. NULL: `error`. */
mq_call *mq_call_start(mq_connection *connection, const char *path, int64_t deadline, mq_waker *waker, memq_error *error);
/* Takes the message. False: the call is over; mq_call_next tells. */
bool mq_call_send(mq_call *call, mq_msg *message);
void mq_call_half_close(mq_call *call);
bool mq_call_has_room(mq_call *call);
/* At the end `error` has code MEMQ_OK or why. Takes no notice of deadlines. */
mq_next mq_call_next(mq_call *call, mq_msg **message, memq_error *error);
/* The next message, or the end; waits until `deadline`, then cancels the call and tells MEMQ_ERROR_DEADLINE_EXCEEDED. */
mq_next mq_call_wait(mq_call *call, mq_waker *waker, int64_t deadline, mq_msg **message, memq_error *error);
/* Cancels what is not over, and frees. */
void mq_call_free(mq_call *call);

/* --- client (client.c) */

/* Kinds of traffic, each with a connection of its own so that none waits behind another's bytes. */
typedef enum mq_lane { MQ_LANE_CONTROL, MQ_LANE_PRODUCE, MQ_LANE_FETCH, MQ_LANE_BODIES, MQ_LANE_COUNT } mq_lane;

/* The least `keepalive_ms` but 0; a test lowers it. */
extern int64_t mq_keepalive_ms_min;

void mq_client_retain(memq_client *client);
void mq_client_release(memq_client *client);
int64_t mq_client_request_timeout_ms(const memq_client *client);
const char *mq_client_id(const memq_client *client);
/* A call to the server in use; its number goes to mq_client_failed when it is not there. */
mq_call *mq_client_call(memq_client *client, mq_lane lane, const char *path, int64_t deadline, mq_waker *waker, int *server, memq_error *error);
/* The next server is used from now on, unless somebody has moved on already. */
void mq_client_failed(memq_client *client, int server);
/* Says where nobody answered. */
void mq_client_name_error(const memq_client *client, int server, memq_error *error);
/* The deadline of a public function. */
int64_t mq_client_deadline(const memq_client *client, int64_t timeout_ms);

typedef enum mq_retry {
  /* One attempt, and another one when the first was never processed. */
  MQ_RETRY_NEVER,
  /* Again while it fails with a retriable error, until the deadline. */
  MQ_RETRY_UNTIL_DEADLINE,
} mq_retry;

/* Cuts calls short, from another thread: set it, then signal the waker. Whoever makes the call owns the waker's wait. */
typedef struct mq_stop {
  mq_waker *waker;
  atomic_bool is_set;
} mq_stop;

/* `stop` NULL: only the deadline ends it. `response` NULL: not wanted. */
memq_code mq_client_unary(memq_client *client, mq_lane lane, const char *path, const ProtobufCMessage *request,
                          const ProtobufCMessageDescriptor *response_type, int64_t deadline, mq_retry retry, mq_stop *stop,
                          ProtobufCMessage **response, memq_error *error);

struct Memq__V1__DescribeTopicResponse;
memq_code mq_client_describe_topic(memq_client *client, const char *topic, int64_t deadline, struct Memq__V1__DescribeTopicResponse **response,
                                   memq_error *error);

/* Options as the application gave them over the defaults of this version. */
#define MQ_OPTIONS(type, full, given)                                                                                                    \
  do {                                                                                                                                   \
    type##_init_sized(&(full), sizeof(full));                                                                                            \
    if ((given) != NULL) {                                                                                                               \
      memcpy(&(full), (given), (given)->struct_size < sizeof(full) ? (given)->struct_size : sizeof(full));                               \
      (full).struct_size = sizeof(full);                                                                                                 \
    }                                                                                                                                    \
  } while (0)

/* For `_init_sized`: as much of the defaults as the application's struct has room for. */
#define MQ_INIT(options, size, defaults)                                                                                                 \
  do {                                                                                                                                   \
    memset((options), 0, (size));                                                                                                        \
    memcpy((options), &(defaults), (size) < sizeof(defaults) ? (size) : sizeof(defaults));                                               \
    (options)->struct_size = (size);                                                                                                     \
  } while (0)

#endif
