/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/**
 * @file memq.h
 * libmemq: MemQ for everything that can call C.
 *
 * Speaks MemQ's own gRPC (HTTP/2 and protobuf) to any ingest of a cluster: produce, consume, put and get files.
 *
 * Threads. Every handle (memq_client, memq_producer, memq_consumer) may be used by any number of threads at once; only its
 * `_close` function must be the last call that is made with it. A client runs one thread per connection, up to four connections per
 * server in use; a producer runs one thread more, a consumer with a group one more. They block all signals. There is no global state: no
 * initialisation, no shut-down, and two clients know nothing of each other. Handles do not survive fork().
 *
 * Ownership. What a function hands out through a pointer to a pointer belongs to the caller and is given back with the `_free` or
 * `_close` function of its type. What an accessor returns belongs to the object and lives as long. What is passed in is copied before
 * the function returns, unless it says otherwise. `_free` and `_close` take NULL and do nothing then.
 *
 * Units. Times are milliseconds; a point in time is milliseconds since 1970 UTC. Sizes are bytes. Texts are UTF-8, ended by NUL.
 *
 * Deadlines. Every function that may wait takes a `timeout_ms`: MEMQ_DEFAULT_TIMEOUT is the client's `request_timeout_ms`, 0 does not
 * wait at all where that makes sense, otherwise fails. It is kept to within some 10 ms, whatever the server does; the server is told it, too.
 *
 * Errors. A function that can fail returns MEMQ_OK or the reason, and when `error` is not NULL stores there an object that tells more.
 * `*error` is written only on failure. Free it with memq_error_free().
 *
 * Growth. Structs of options begin with their own size, set by their `_init` macro; use it always. Later versions add members at
 * the end. Structs that the library hands out (memq_record and the like) may grow at their end, too: never copy them by value into arrays of
 * your own over versions.
 *
 * The library never raises SIGPIPE, never prints, never exits, and returns MEMQ_ERROR_OUT_OF_MEMORY where memory is not to be had.
 */
#ifndef MEMQ_H
#define MEMQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MEMQ_API __attribute__((visibility("default")))
#define MEMQ_MUST_CHECK __attribute__((warn_unused_result))
#else
#define MEMQ_API
#define MEMQ_MUST_CHECK
#endif

/** For `timeout_ms`: the client's `request_timeout_ms`. */
#define MEMQ_DEFAULT_TIMEOUT (-1)

/** A connection to a cluster, shared by producers and consumers. */
typedef struct memq_client memq_client;
/** Sends records to one topic. */
typedef struct memq_producer memq_producer;
/** Reads records of one topic. */
typedef struct memq_consumer memq_consumer;
/** What went wrong. */
typedef struct memq_error memq_error;
/** Consumed records of one partition. */
typedef struct memq_batch memq_batch;
/** A published file. */
typedef struct memq_file_info memq_file_info;

/** "0.1.0": the version of the library that is loaded. */
MEMQ_API const char *memq_version(void);

/* ---------------------------------------------------------------------------------------------------------------- Errors */

/** Reasons. Numbers below 10,000 are those of memq.v1.ErrorCode; a newer server may send ones that are not listed here. */
typedef enum memq_code {
  /** It worked. */
  MEMQ_OK = 0,
  /** A defect of the server. Not for retry. */
  MEMQ_ERROR_INTERNAL_ERROR = 1,
  /** A field has a value that can never be right; the message names it. */
  MEMQ_ERROR_INVALID_ARGUMENT = 2,
  /** The service or its peer is not there at the moment. */
  MEMQ_ERROR_UNAVAILABLE = 3,
  /** The call did not finish in time; whether it took effect is unknown. */
  MEMQ_ERROR_DEADLINE_EXCEEDED = 4,
  /** The caller gave up. */
  MEMQ_ERROR_CANCELLED = 5,
  /** A bounded queue is full: slow down. */
  MEMQ_ERROR_RESOURCE_EXHAUSTED = 6,
  /** This server does not know the call. */
  MEMQ_ERROR_UNIMPLEMENTED = 7,
  /** Bytes that are not what they should be. */
  MEMQ_ERROR_CORRUPT_MESSAGE = 8,
  /** A gRPC message over the limit; limit and actual in bytes. */
  MEMQ_ERROR_MESSAGE_TOO_LARGE = 9,
  /** The server drains; go to another one. */
  MEMQ_ERROR_SHUTTING_DOWN = 10,
  /** The request may or may not have taken effect; an idempotent retry tells. */
  MEMQ_ERROR_OUTCOME_UNKNOWN = 11,
  /** A configuration key is unknown or its value is out of range. */
  MEMQ_ERROR_CONFIGURATION_INVALID = 12,
  /** Another process holds the data folder. */
  MEMQ_ERROR_DATA_FOLDER_IN_USE = 13,
  /** The data belongs to another cluster. */
  MEMQ_ERROR_WRONG_CLUSTER = 14,
  /** The listen address is taken. */
  MEMQ_ERROR_ADDRESS_IN_USE = 15,
  /** A legal wish that this version does not offer. */
  MEMQ_ERROR_FEATURE = 16,
  /** No topic of that name or id. */
  MEMQ_ERROR_TOPIC_NOT_FOUND = 100,
  /** A topic of that name exists. */
  MEMQ_ERROR_TOPIC_EXISTS = 101,
  /** Names: 1-249 bytes of a-z A-Z 0-9 . _ -; not "." or "..". */
  MEMQ_ERROR_TOPIC_NAME_INVALID = 102,
  /** The topic has fewer partitions. */
  MEMQ_ERROR_PARTITION_NOT_FOUND = 103,
  /** Partitions: 1-10,000; they can only grow. */
  MEMQ_ERROR_PARTITION_COUNT_INVALID = 104,
  /** At least 1 and at most the number of replication nodes. */
  MEMQ_ERROR_REPLICATION_FACTOR_INVALID = 105,
  /** No such topic setting. */
  MEMQ_ERROR_TOPIC_SETTING_UNKNOWN = 106,
  /** The setting has a value out of its range. */
  MEMQ_ERROR_TOPIC_SETTING_INVALID = 107,
  /** The settings exclude each other. */
  MEMQ_ERROR_TOPIC_COMBINATION_REFUSED = 108,
  /** The topic was deleted meanwhile. */
  MEMQ_ERROR_TOPIC_DELETED = 109,
  /** Another node leads the partition; refresh and go there. */
  MEMQ_ERROR_NOT_LEADER = 200,
  /** The partition has no leader at the moment. */
  MEMQ_ERROR_LEADER_NOT_AVAILABLE = 201,
  /** The request carries an older leader epoch. */
  MEMQ_ERROR_FENCED_LEADER_EPOCH = 202,
  /** The request carries a newer leader epoch than the node knows. */
  MEMQ_ERROR_UNKNOWN_LEADER_EPOCH = 203,
  /** The request comes from an earlier life of a node. */
  MEMQ_ERROR_STALE_NODE_EPOCH = 204,
  /** Fewer in-sync replicas than min.insync.replicas; nothing was appended. */
  MEMQ_ERROR_NOT_ENOUGH_REPLICAS = 205,
  /** Appended, but not committed in time; it may still commit. */
  MEMQ_ERROR_NOT_ENOUGH_REPLICAS_AFTER_APPEND = 206,
  /** Below the log start or above the high watermark; limit is the nearest legal offset. */
  MEMQ_ERROR_OFFSET_OUT_OF_RANGE = 207,
  /** Over the topic's max.message.bytes; limit and actual in bytes. */
  MEMQ_ERROR_RECORD_BATCH_TOO_LARGE = 208,
  /** Not a record batch v2, or its counts do not fit. */
  MEMQ_ERROR_RECORD_BATCH_INVALID = 209,
  /** The CRC-32C of the batch is wrong: damaged on its way. */
  MEMQ_ERROR_RECORD_BATCH_CHECKSUM_MISMATCH = 210,
  /** Already appended; the offset may be unknown. */
  MEMQ_ERROR_DUPLICATE_SEQUENCE = 211,
  /** A gap in the producer's sequence; limit is the next expected one. */
  MEMQ_ERROR_OUT_OF_ORDER_SEQUENCE = 212,
  /** Partly appended already; limit is the last appended sequence: cut there and send the rest. */
  MEMQ_ERROR_SEQUENCE_STRADDLES = 213,
  /** A newer epoch of the producer id exists. */
  MEMQ_ERROR_PRODUCER_FENCED = 214,
  /** The producer id is not known any more; begin anew. */
  MEMQ_ERROR_UNKNOWN_PRODUCER = 215,
  /** The disk failed; another replica takes over. */
  MEMQ_ERROR_VOLUME_FAILED = 216,
  /** The disk is at its reserve; it heals when uploads or retention free space. */
  MEMQ_ERROR_VOLUME_FULL = 217,
  /** Damage in the log; the message names the place. */
  MEMQ_ERROR_LOG_CORRUPT = 218,
  /** The partition is at its hard cap on this disk. */
  MEMQ_ERROR_PARTITION_QUOTA_EXCEEDED = 219,
  /** The log lost records that were read; limit is the offset to go on at, what lies behind it is another history. */
  MEMQ_ERROR_LOG_TRUNCATED = 220,
  /** Somebody else changed it first; read again. */
  MEMQ_ERROR_REVISION_CONFLICT = 300,
  /** The node is not registered. */
  MEMQ_ERROR_NODE_UNKNOWN = 301,
  /** The node's session ended; it must register again. */
  MEMQ_ERROR_NODE_FENCED = 302,
  /** The lease is held by another or ran out. */
  MEMQ_ERROR_LEASE_LOST = 303,
  /** More than 128 operations in one transaction. */
  MEMQ_ERROR_TRANSACTION_TOO_LARGE = 304,
  /** The watch asks for a revision that is gone; take a snapshot. */
  MEMQ_ERROR_REVISION_COMPACTED = 305,
  /** The metadata is older than what the node has seen. */
  MEMQ_ERROR_STALE_IMAGE = 306,
  /** A named limit of the cluster is reached. */
  MEMQ_ERROR_LIMIT_REACHED = 307,
  /** The partition's replicas are being changed already; wait or cancel. */
  MEMQ_ERROR_REASSIGNMENT_IN_PROGRESS = 308,
  /** The partition's replicas are not being changed. */
  MEMQ_ERROR_REASSIGNMENT_NOT_FOUND = 309,
  /** No consumer group of that name. */
  MEMQ_ERROR_GROUP_NOT_FOUND = 400,
  /** Another member has joined under the same instance id: this one is over. */
  MEMQ_ERROR_GROUP_MEMBER_FENCED = 401,
  /** A live member reads the partition, or belongs to the group. */
  MEMQ_ERROR_GROUP_NOT_EMPTY = 402,
  /** Names: 1-255 bytes of printable characters. */
  MEMQ_ERROR_GROUP_NAME_INVALID = 403,
  /** The group has no committed offset there. */
  MEMQ_ERROR_OFFSET_MISSING = 404,
  /** The commit is from before the member got the partition. */
  MEMQ_ERROR_STALE_MEMBER_EPOCH = 405,
  /** The member does not have that partition. */
  MEMQ_ERROR_PARTITION_NOT_ASSIGNED = 406,
  /** The member has left or fell silent; its next poll joins again. */
  MEMQ_ERROR_GROUP_MEMBER_UNKNOWN = 407,
  /** No published file of that name in the topic. */
  MEMQ_ERROR_FILE_NOT_FOUND = 500,
  /** Names: 1-1,024 bytes of UTF-8 without NUL; no empty, "." or ".." part; not starting with "/". */
  MEMQ_ERROR_FILE_NAME_INVALID = 501,
  /** Over the limit; limit and actual in bytes. */
  MEMQ_ERROR_FILE_TOO_LARGE = 502,
  /** No such upload, or it has expired. */
  MEMQ_ERROR_UPLOAD_NOT_FOUND = 503,
  /** The put does not go on where the upload stands; limit is the acknowledged offset. */
  MEMQ_ERROR_UPLOAD_OFFSET_MISMATCH = 504,
  /** Another stream writes this upload. */
  MEMQ_ERROR_UPLOAD_IN_PROGRESS = 505,
  /** The bytes do not have the digest that was declared; nothing was published. */
  MEMQ_ERROR_DIGEST_MISMATCH = 506,
  /** The put ended before its declared size. */
  MEMQ_ERROR_FILE_INCOMPLETE = 507,
  /** The range lies outside the file. */
  MEMQ_ERROR_RANGE_INVALID = 508,
  /** The object is not in the store. */
  MEMQ_ERROR_OBJECT_NOT_FOUND = 509,
  /** The object's checksum or layout is wrong. */
  MEMQ_ERROR_OBJECT_CORRUPT = 510,
  /** The object id was barred by the collector. */
  MEMQ_ERROR_OBJECT_BARRED = 511,
  /** The CRC-32C of a chunk is wrong: damaged on its way. */
  MEMQ_ERROR_CHUNK_CHECKSUM_MISMATCH = 512,
  /** The object store does not answer. */
  MEMQ_ERROR_OBJECT_STORE_UNAVAILABLE = 513,
  /** The upload was given up or refused; begin a new one. */
  MEMQ_ERROR_UPLOAD_ABANDONED = 514,
  /** Malware was found; the message names the signature. */
  MEMQ_ERROR_INFECTED = 600,
  /** The scanner could not judge it and the topic's policy refuses that. */
  MEMQ_ERROR_NOT_SCANNED = 601,
  /** Held until a scanner has judged it; it is published by itself then. */
  MEMQ_ERROR_SCAN_HELD = 602,
  /** No such entry. */
  MEMQ_ERROR_QUARANTINE_ENTRY_NOT_FOUND = 603,
  /** A scan rule does not compile. */
  MEMQ_ERROR_RULES_INVALID = 604,
  /** No such plan. */
  MEMQ_ERROR_PLAN_NOT_FOUND = 700,
  /** A plan runs already. */
  MEMQ_ERROR_PLAN_RUNNING = 701,
  /** No memory. */
  MEMQ_ERROR_OUT_OF_MEMORY = 10000,
  /** No TLS session: a certificate that is expired, of another name, of an unknown authority, missing; the message tells. */
  MEMQ_ERROR_TLS = 10001,
  /** A local file cannot be read or written; the message holds the system's reason, the subject the path. */
  MEMQ_ERROR_LOCAL_FILE = 10002,
  /** The server does not know who calls (gRPC's UNAUTHENTICATED without a reason of MemQ's). */
  MEMQ_ERROR_UNAUTHENTICATED = 10003,
  /** The caller may not do this (gRPC's PERMISSION_DENIED without a reason of MemQ's). */
  MEMQ_ERROR_PERMISSION_DENIED = 10004
} memq_code;

/** The code's name as in the protocol, "TOPIC_NOT_FOUND"; "UNKNOWN_CODE" for numbers this version does not know. */
MEMQ_API const char *memq_code_name(memq_code code);

/** The reason. MEMQ_OK for NULL. */
MEMQ_API memq_code memq_error_code(const memq_error *error);
/** One sentence for a person. Never NULL. */
MEMQ_API const char *memq_error_message(const memq_error *error);
/** The thing concerned: a topic, "topic/partition", a file, an address. May be empty; never NULL. */
MEMQ_API const char *memq_error_subject(const memq_error *error);
/** True when the same request may succeed later without being changed. */
MEMQ_API bool memq_error_is_retriable(const memq_error *error);
/** The limit that was passed, in the unit the message names. False: there is none, and `*limit` is left alone. */
MEMQ_API bool memq_error_limit(const memq_error *error, int64_t *limit);
/** The value that passed it. False: there is none, and `*actual` is left alone. */
MEMQ_API bool memq_error_actual(const memq_error *error, int64_t *actual);
/** The status gRPC gave (0-16), for failures that came from a server; otherwise the class it would have. */
MEMQ_API int memq_error_grpc_status(const memq_error *error);
/** Gives an error back. */
MEMQ_API void memq_error_free(memq_error *error);

/* ---------------------------------------------------------------------------------------------------------------- Client */

/** How to reach a cluster. */
typedef struct memq_client_options {
  /** Set by memq_client_options_init(). */
  size_t struct_size;
  /**
   * Addresses of ingests, separated by commas: "host:port", "[ipv6]:port" or "unix:/path". One is in use at a time, the first that
   * answers in the order given; when it goes away the next one takes its place, by itself. Default: "127.0.0.1:7460".
   */
  const char *servers;
  /** The client's name for itself, shown in group descriptions. Default: "memq-c". */
  const char *client_id;
  /** How long memq_client_open() looks for a server that answers. 0: every address once. Default: 5,000. */
  int64_t connect_timeout_ms;
  /** Deadline of a control call, repetitions included. Default: 30,000. */
  int64_t request_timeout_ms;
  /**
   * With calls open and nothing heard for so long the server is asked for a sign of life; without one for so long again, at most 10 s, the
   * connection counts as broken. 0: never; 10,000 at least otherwise, for servers end connections that ask more often. Default: 30,000.
   */
  int64_t keepalive_ms;
  /** The largest message that is taken from a server. Default: 64 MiB. */
  size_t message_bytes_max;
  /** Speak TLS (1.2 at least, 1.3 where the server can). Default: false. The members below count only with it. */
  bool tls;
  /** File of trusted authorities, PEM. NULL: the system's. */
  const char *tls_ca_file;
  /** For mutual TLS: file of the client's certificate and its chain, PEM, and of its key. NULL: none. One needs the other. */
  const char *tls_certificate_file;
  const char *tls_key_file;
  /** Name (or IP address) the server's certificate must have. NULL: the host of the address. */
  const char *tls_server_name;
} memq_client_options;

MEMQ_API void memq_client_options_init_sized(memq_client_options *options, size_t size);
/** Fills in the defaults. */
#define memq_client_options_init(options) memq_client_options_init_sized((options), sizeof *(options))

/**
 * Makes a client and waits until a server answers.
 *
 * @param options NULL: the defaults.
 * @param[out] client the client; close it with memq_client_close().
 * @return MEMQ_ERROR_UNAVAILABLE when nobody answers for `connect_timeout_ms`, MEMQ_ERROR_DEADLINE_EXCEEDED when somebody takes the connection and
 *   says nothing; MEMQ_ERROR_TLS; MEMQ_ERROR_INVALID_ARGUMENT for an address
 *   that is none; MEMQ_ERROR_LOCAL_FILE for a certificate that cannot be read.
 */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_client_open(const memq_client_options *options, memq_client **client, memq_error **error);

/**
 * Closes it. Close its producers and consumers first: until the last of them is closed the connections stay. Waits for
 * its threads; a name lookup under way can hold it up for as long as the resolver takes.
 */
MEMQ_API void memq_client_close(memq_client *client);

/**
 * The number of partitions of a topic.
 *
 * @return MEMQ_ERROR_TOPIC_NOT_FOUND.
 */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_topic_partitions(memq_client *client, const char *topic, int64_t timeout_ms, int32_t *count, memq_error **error);

/* --------------------------------------------------------------------------------------------------------------- Records */

/** One header of a record. */
typedef struct memq_header {
  const char *name;
  /** NULL: null. */
  const void *value;
  size_t value_size;
} memq_header;

/** A record as it was consumed. Bytes are not ended by NUL. */
typedef struct memq_record {
  int32_t partition;
  int64_t offset;
  /** When it was made, as its producer or the server said. */
  int64_t timestamp_ms;
  /** NULL: null; with size 0 and not NULL: empty. */
  const void *key;
  size_t key_size;
  /** NULL: null; with size 0 and not NULL: empty. */
  const void *value;
  size_t value_size;
  const memq_header *headers;
  size_t header_count;
} memq_record;

/* -------------------------------------------------------------------------------------------------------------- Producer */

/** When a record counts as acknowledged. */
typedef enum memq_acks {
  /** As soon as it is handed to the connection. Nothing is known of it afterwards. */
  MEMQ_ACKS_NONE = 1,
  /** When it is durable on the partition's leader. */
  MEMQ_ACKS_LEADER = 2,
  /** When it is durable on every in-sync replica, and visible. */
  MEMQ_ACKS_ALL = 3
} memq_acks;

/** How to produce. */
typedef struct memq_producer_options {
  /** Set by memq_producer_options_init(). */
  size_t struct_size;
  /** Default: MEMQ_ACKS_ALL. */
  memq_acks acks;
  /**
   * A retry is never appended twice, and up to five batches per partition are in flight in order. Has no effect with MEMQ_ACKS_NONE. Without
   * it one batch per partition is in flight, and a retry may append twice. Default: true.
   */
  bool idempotent;
  /** A batch waits so long for company. Default: 5. */
  int64_t linger_ms;
  /** A batch of this size waits no longer. Default: 64 KiB. */
  size_t batch_bytes;
  /** While a partition has its fill of batches in flight the next one grows up to here, at most 8 MiB. Default: 1 MiB. */
  size_t batch_bytes_max;
  /** Records not acknowledged yet, in bytes. At it memq_producer_send() waits. At least `batch_bytes_max`. Default: 32 MiB. */
  size_t buffer_bytes_max;
  /** From the send to the acknowledgement, over all repetitions; a record fails past it. Default: 120,000. */
  int64_t delivery_timeout_ms;
  /** Deadline the server gets for one batch; past it the batch is sent again. At most `delivery_timeout_ms`. Default: 30,000. */
  int64_t request_timeout_ms;
} memq_producer_options;

MEMQ_API void memq_producer_options_init_sized(memq_producer_options *options, size_t size);
/** Fills in the defaults. */
#define memq_producer_options_init(options) memq_producer_options_init_sized((options), sizeof *(options))

/** What became of one record. */
typedef struct memq_delivery {
  /** MEMQ_OK: acknowledged. */
  memq_code code;
  int32_t partition;
  /** -1: not known, as with MEMQ_ACKS_NONE, after a failure, or for a duplicate the server has forgotten. */
  int64_t offset;
  /** NULL when it was acknowledged; lives until the callback returns. */
  const memq_error *error;
} memq_delivery;

/**
 * Hears what became of a record: exactly once for each record that was taken. Called on the producer's thread: it must not block, nor flush
 * or close the producer; it may send, with timeout 0.
 */
typedef void (*memq_delivery_callback)(void *user, const memq_delivery *delivery);

/** A record to be sent. Zero-initialise it and set `partition`, or use memq_producer_send_value(). */
typedef struct memq_outgoing {
  /** NULL: none. Records with equal keys go to one partition (murmur2, as Kafka's). */
  const void *key;
  size_t key_size;
  /** NULL: null, a tombstone. */
  const void *value;
  size_t value_size;
  const memq_header *headers;
  size_t header_count;
  /** -1: by the key's hash; without a key any. */
  int32_t partition;
  /** 0: now. */
  int64_t timestamp_ms;
  /** NULL: a failure is told by the next memq_producer_flush(). */
  memq_delivery_callback on_delivery;
  /** Passed to it. */
  void *user;
} memq_outgoing;

/**
 * Makes a producer for one topic. It sends to the partitions there are now; those that are added later are for later producers.
 *
 * @param options NULL: the defaults.
 * @return MEMQ_ERROR_TOPIC_NOT_FOUND; MEMQ_ERROR_CONFIGURATION_INVALID, the subject names the option; MEMQ_ERROR_UNAVAILABLE.
 */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_producer_open(memq_client *client, const char *topic, const memq_producer_options *options,
                                                      memq_producer **producer, memq_error **error);

/**
 * Takes a record into the buffer; it leaves by itself. Waits only while the buffer is full. Records of a partition keep the order in which
 * they were sent, with an idempotent producer also over retries, reconnects and restarts of servers.
 *
 * @param timeout_ms how long to wait for room.
 * @return MEMQ_ERROR_RESOURCE_EXHAUSTED when there was no room in time (limit: `buffer_bytes_max`);
 *   MEMQ_ERROR_RECORD_BATCH_TOO_LARGE for a record above 8 MiB; MEMQ_ERROR_PARTITION_NOT_FOUND; MEMQ_ERROR_PRODUCER_FENCED and the like when
 *   nothing will succeed any more. A record that was not taken is not reported to its callback.
 */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_producer_send(memq_producer *producer, const memq_outgoing *record, int64_t timeout_ms, memq_error **error);

/** Sends a value without key, headers and callback. As memq_producer_send(). */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_producer_send_value(memq_producer *producer, const void *value, size_t size, int64_t timeout_ms,
                                                            memq_error **error);

/**
 * Waits until everything sent before is acknowledged or has failed, and its callbacks have returned.
 *
 * @param timeout_ms MEMQ_DEFAULT_TIMEOUT: as long as it takes, which the delivery timeout bounds.
 * @return the first failure of a record without a callback since the last flush; MEMQ_ERROR_DEADLINE_EXCEEDED: not done in time, and goes on.
 */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_producer_flush(memq_producer *producer, int64_t timeout_ms, memq_error **error);

/**
 * Flushes and closes. After it, also after a failure, the producer is gone; records that were not done fail with MEMQ_ERROR_CANCELLED, and
 * their callbacks have been called.
 *
 * @param timeout_ms as for memq_producer_flush(); 0: gives up at once what is not acknowledged.
 * @return as memq_producer_flush(); with MEMQ_ACKS_NONE also why the stream broke, for records may be lost then.
 */
MEMQ_API memq_code memq_producer_close(memq_producer *producer, int64_t timeout_ms, memq_error **error);

/* -------------------------------------------------------------------------------------------------------------- Consumer */

/** Where to begin a partition for which the group has no committed offset, or without a group. */
typedef enum memq_start {
  MEMQ_START_EARLIEST = 1,
  /** Only what comes from now on. */
  MEMQ_START_LATEST = 2,
  /** At the first record of `start_timestamp_ms` or later; the end when there is none. */
  MEMQ_START_TIMESTAMP = 3
} memq_start;

/** What to do when an offset does not exist (any more). */
typedef enum memq_reset {
  /** Go on at the nearest one that does. */
  MEMQ_RESET_NEAREST = 0,
  MEMQ_RESET_EARLIEST = 1,
  MEMQ_RESET_LATEST = 2,
  /** memq_consumer_poll() fails with MEMQ_ERROR_OFFSET_OUT_OF_RANGE, or with MEMQ_ERROR_LOG_TRUNCATED. */
  MEMQ_RESET_FAIL = 3
} memq_reset;

/** How to consume. */
typedef struct memq_consumer_options {
  /** Set by memq_consumer_options_init(). */
  size_t struct_size;
  /** The partitions to read; with a group its members share these. NULL: those the group assigns; without a group all. */
  const int32_t *partitions;
  size_t partition_count;
  /** Shares the topic with the other members of this group, commits offsets under its name and begins at those that are there. NULL: no group. */
  const char *group;
  /** Default: MEMQ_START_EARLIEST. */
  memq_start start;
  int64_t start_timestamp_ms;
  /** Default: MEMQ_RESET_NEAREST. */
  memq_reset reset;
  /** One fetch brings at most so many bytes, but at least one batch. Default: 4 MiB, at most 64 MiB. */
  size_t fetch_bytes_max;
  /** How long the server holds a fetch that finds nothing. Default: 5,000, at most 60,000. */
  int64_t fetch_wait_ms;
  /**
   * With a group: how often what was handed out by earlier polls is committed in the background, and at the close. 0: only
   * memq_consumer_commit() does. Default: 5,000.
   */
  int64_t commit_interval_ms;
  /** Silence after which the group gives this member up, 1,000-600,000. Default: 45,000. */
  int64_t session_timeout_ms;
  /** How long to look for a server again before a poll fails. Default: 120,000. */
  int64_t reconnect_timeout_ms;
} memq_consumer_options;

MEMQ_API void memq_consumer_options_init_sized(memq_consumer_options *options, size_t size);
/** Fills in the defaults. */
#define memq_consumer_options_init(options) memq_consumer_options_init_sized((options), sizeof *(options))

/**
 * Makes a consumer of one topic; with a group it joins it, and the members share the partitions: a poll follows what the group gives and takes.
 * What is taken counts as processed when the next poll begins, is committed (with `commit_interval_ms` above 0), and then goes to another
 * member; who does not poll for 60 s meanwhile is taken out. A member that was taken out joins again with its next poll. Without a group partitions that are
 * added later are for later consumers.
 *
 * @param options NULL: the defaults.
 * @return MEMQ_ERROR_TOPIC_NOT_FOUND, MEMQ_ERROR_PARTITION_NOT_FOUND, MEMQ_ERROR_GROUP_NAME_INVALID, MEMQ_ERROR_UNAVAILABLE.
 */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_consumer_open(memq_client *client, const char *topic, const memq_consumer_options *options,
                                                      memq_consumer **consumer, memq_error **error);

/**
 * The next records of some partition, in the order of their offsets, each once, over reconnects and restarts of servers. Several threads that
 * poll take turns.
 *
 * @param timeout_ms how long to wait for records; 0: only what is there. When the group gives other partitions it may take up to 10 s longer.
 * @param[out] batch the records, to be freed with memq_batch_free(); NULL when there were none in time, which is no error.
 * @return MEMQ_ERROR_OFFSET_OUT_OF_RANGE and MEMQ_ERROR_LOG_TRUNCATED with MEMQ_RESET_FAIL; MEMQ_ERROR_TOPIC_NOT_FOUND when the topic is gone;
 *   MEMQ_ERROR_UNAVAILABLE when no server was found for `reconnect_timeout_ms`. Such a failure is final: later polls repeat it.
 */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_consumer_poll(memq_consumer *consumer, int64_t timeout_ms, memq_batch **batch, memq_error **error);

/** Number of records, at least 1. */
MEMQ_API size_t memq_batch_count(const memq_batch *batch);
/** A record by its place, from 0; NULL beyond the last. Lives as long as the batch. */
MEMQ_API const memq_record *memq_batch_record(const memq_batch *batch, size_t index);
/** The partition they are of. */
MEMQ_API int32_t memq_batch_partition(const memq_batch *batch);
/** Where the partition goes on. */
MEMQ_API int64_t memq_batch_next_offset(const memq_batch *batch);
/** Committed below it, as of this fetch. */
MEMQ_API int64_t memq_batch_high_watermark(const memq_batch *batch);
/** Gives it back. */
MEMQ_API void memq_batch_free(memq_batch *batch);

/**
 * Commits everything that polls have handed out: say so when it is processed. Durable at the return.
 *
 * @return MEMQ_ERROR_GROUP_MEMBER_UNKNOWN or MEMQ_ERROR_PARTITION_NOT_ASSIGNED when another member has what was not committed in time; polls go on.
 *   MEMQ_ERROR_INVALID_ARGUMENT without a group.
 */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_consumer_commit(memq_consumer *consumer, int64_t timeout_ms, memq_error **error);

/** Commits one partition's offset: the next one to read. As memq_consumer_commit(). */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_consumer_commit_offset(memq_consumer *consumer, int32_t partition, int64_t offset, int64_t timeout_ms,
                                                               memq_error **error);

/** Goes on elsewhere in a partition that it reads. What was fetched and not polled is dropped. */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_consumer_seek(memq_consumer *consumer, int32_t partition, int64_t offset, memq_error **error);

/**
 * How often the log lost records that had been handed out (an unclean election) and polls went on, as `reset` says, at the end of what is still
 * the same: offsets go back, and other records stand there.
 */
MEMQ_API int64_t memq_consumer_truncations(memq_consumer *consumer);

/** The partitions it reads, ascending. With a group they stand until the next poll. */
MEMQ_API const int32_t *memq_consumer_partitions(const memq_consumer *consumer, size_t *count);

/**
 * Commits what was handed out (with `commit_interval_ms` above 0), leaves the group and closes. After it, also after a failure, the
 * consumer is gone.
 *
 * @return as memq_consumer_commit().
 */
MEMQ_API memq_code memq_consumer_close(memq_consumer *consumer, int64_t timeout_ms, memq_error **error);

/* ----------------------------------------------------------------------------------------------------------------- Files */

/** Size of an upload id. */
#define MEMQ_UPLOAD_ID_BYTES 16

/** Hears how far a put or get is. Called on the calling thread. False gives up: MEMQ_ERROR_CANCELLED. */
typedef bool (*memq_progress_callback)(void *user, int64_t done_bytes, int64_t size_bytes);

/**
 * Reads a piece of what is put, as pread() does: up to `size` bytes from `offset` into `buffer`. Called in order, but after a broken
 * connection from an earlier place again, and at first from 0 when a put is resumed.
 *
 * @return bytes read; 0 or less: it cannot be read, MEMQ_ERROR_LOCAL_FILE.
 */
typedef int64_t (*memq_read_callback)(void *user, int64_t offset, void *buffer, size_t size);

/** Takes a piece of what is got, in order, without gaps. False gives up: MEMQ_ERROR_CANCELLED. */
typedef bool (*memq_write_callback)(void *user, int64_t offset, const void *bytes, size_t size);

/** One attribute of a file. */
typedef struct memq_attribute {
  const char *name;
  const char *value;
} memq_attribute;

/** How to put and get files. */
typedef struct memq_file_options {
  /** Set by memq_file_options_init(). */
  size_t struct_size;
  /** For the whole. 0: none. Default: 0. */
  int64_t timeout_ms;
  /** How long to go on without a byte becoming durable (put) or coming (get), over broken connections. Default: 120,000. */
  int64_t resume_timeout_ms;
  /** How long to wait for a server that says nothing before another connection is tried. Default: 30,000. */
  int64_t stall_timeout_ms;
  /** Hears how far it is. NULL: nobody. */
  memq_progress_callback on_progress;
  /** Passed to it. */
  void *user;

  /**
   * Put: MEMQ_UPLOAD_ID_BYTES bytes, unique to this put (memq_upload_id_make()). Whoever puts under the same id within 24 h, this process or
   * another, goes on at the last durable byte. NULL: one of its own; then only this call resumes.
   */
  const uint8_t *upload_id;
  /** Put: media type. NULL: none. */
  const char *content_type;
  /** Put: up to 64 attributes of up to 1,024 bytes. */
  const memq_attribute *attributes;
  size_t attribute_count;
  /** Put: how long to wait for the verdict and the publication after the last byte. Default: 60,000. */
  int64_t publish_timeout_ms;

  /** Get: version; 0: the latest. */
  int64_t version;
  /** Get: first byte, and how many; 0: to the end. A part of a file is checked by CRC-32C only. */
  int64_t range_offset;
  int64_t range_length;
} memq_file_options;

MEMQ_API void memq_file_options_init_sized(memq_file_options *options, size_t size);
/** Fills in the defaults. */
#define memq_file_options_init(options) memq_file_options_init_sized((options), sizeof *(options))

/** Fills in a new upload id. False: the system has no randomness. */
MEMQ_API MEMQ_MUST_CHECK bool memq_upload_id_make(uint8_t id[MEMQ_UPLOAD_ID_BYTES]);

/**
 * Puts a file under `name`; a broken connection is mended and the put goes on where it was durable. Returns when the file is published.
 *
 * @param path a regular file that nobody changes meanwhile: a change of its size is noticed, other changes fail by the digest.
 * @param name 1-1,024 bytes; "/" separates folders.
 * @param options NULL: the defaults.
 * @param[out] info the published file, to be freed with memq_file_info_free(); NULL: not wanted.
 * @return MEMQ_ERROR_LOCAL_FILE, MEMQ_ERROR_TOPIC_NOT_FOUND, MEMQ_ERROR_FILE_NAME_INVALID, MEMQ_ERROR_FILE_TOO_LARGE, MEMQ_ERROR_DIGEST_MISMATCH,
 *   MEMQ_ERROR_INFECTED (the message names the signature), MEMQ_ERROR_SCAN_HELD (published later by itself), MEMQ_ERROR_UNAVAILABLE and
 *   the like after `resume_timeout_ms`, MEMQ_ERROR_DEADLINE_EXCEEDED, MEMQ_ERROR_CANCELLED.
 */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_file_put(memq_client *client, const char *topic, const char *name, const char *path,
                                                 const memq_file_options *options, memq_file_info **info, memq_error **error);

/** As memq_file_put(), of `size` bytes that `read` gives. */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_file_put_from(memq_client *client, const char *topic, const char *name, int64_t size,
                                                      memq_read_callback read, void *read_user, const memq_file_options *options,
                                                      memq_file_info **info, memq_error **error);

/**
 * Gets a file. Under `path` it stands whole and checked (CRC-32C of each piece, SHA-256 of the whole), or not at all; what was there
 * before is replaced. A broken connection is mended and the get goes on where it was, on the same version.
 *
 * @return MEMQ_ERROR_FILE_NOT_FOUND, MEMQ_ERROR_TOPIC_NOT_FOUND, MEMQ_ERROR_RANGE_INVALID, MEMQ_ERROR_DIGEST_MISMATCH, MEMQ_ERROR_LOCAL_FILE, and
 *   as memq_file_put().
 */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_file_get(memq_client *client, const char *topic, const char *name, const char *path,
                                                 const memq_file_options *options, memq_file_info **info, memq_error **error);

/** As memq_file_get(), into `write`. What was written counts only when this returns MEMQ_OK: the digest is checked at the end. */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_file_get_to(memq_client *client, const char *topic, const char *name, memq_write_callback write,
                                                    void *write_user, const memq_file_options *options, memq_file_info **info,
                                                    memq_error **error);

/** One published file. `version` 0: the latest. Errors: MEMQ_ERROR_FILE_NOT_FOUND, MEMQ_ERROR_TOPIC_NOT_FOUND. */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_file_stat(memq_client *client, const char *topic, const char *name, int64_t version, int64_t timeout_ms,
                                                  memq_file_info **info, memq_error **error);

/** Deletes all versions of a file. Errors: MEMQ_ERROR_FILE_NOT_FOUND, MEMQ_ERROR_TOPIC_NOT_FOUND. */
MEMQ_API MEMQ_MUST_CHECK memq_code memq_file_delete(memq_client *client, const char *topic, const char *name, int64_t timeout_ms,
                                                    memq_error **error);

/** Its name. */
MEMQ_API const char *memq_file_info_name(const memq_file_info *info);
/** Rises with each publication of the name, from 1. */
MEMQ_API int64_t memq_file_info_version(const memq_file_info *info);
/** Bytes. */
MEMQ_API int64_t memq_file_info_size(const memq_file_info *info);
/** SHA-256, 32 bytes. */
MEMQ_API const uint8_t *memq_file_info_sha256(const memq_file_info *info);
/** Media type; may be empty, never NULL. */
MEMQ_API const char *memq_file_info_content_type(const memq_file_info *info);
/** Partition and offset of its record in the topic. */
MEMQ_API int32_t memq_file_info_partition(const memq_file_info *info);
MEMQ_API int64_t memq_file_info_offset(const memq_file_info *info);
/** An attribute's value; NULL: it has none of that name. */
MEMQ_API const char *memq_file_info_attribute(const memq_file_info *info, const char *name);
/** Gives it back. */
MEMQ_API void memq_file_info_free(memq_file_info *info);

#ifdef __cplusplus
}
#endif

#endif
