/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/* Values of a topic from its beginning, one per line. */
#include "common.h"

static const char usage[] =
    "Usage: memq-c-consume [options] SERVER[,SERVER...] TOPIC MAX\n"
    "\n"
    "Prints the values of all partitions from the beginning, one per line, until there were MAX. Ends with 0 then,\n"
    "with 1 and the error's code and reason on standard error otherwise.\n"
    "\n"
    "  --timeout SECONDS  give up when no record comes for so long (default 30)\n"
    "  --group NAME       begin where this group stands, and commit what was printed\n"
    "  --tls              speak TLS, trusting the system's authorities\n"
    "  --tls-ca FILE      speak TLS, trusting these authorities (PEM)\n"
    "  --tls-cert FILE    the client's certificate (PEM)\n"
    "  --tls-key FILE     its key (PEM)\n"
    "  --tls-name NAME    the name the server's certificate must have, where it is not the host's\n"
    "  --help, --version\n";

/* Prints until `left` is 0. */
static memq_code print(memq_consumer *consumer, long long left, const tool_options *options, memq_error **error, const char **problem) {
  int64_t patience_ms = options->timeout_ms >= 0 ? options->timeout_ms : 30000;
  while (left > 0) {
    memq_batch *batch;
    memq_code code = memq_consumer_poll(consumer, patience_ms, &batch, error);
    if (code != MEMQ_OK) return code;
    if (batch == NULL) {
      *problem = "DEADLINE_EXCEEDED: no record came in time";
      return MEMQ_OK;
    }
    int64_t next = memq_batch_next_offset(batch);
    size_t count = memq_batch_count(batch);
    for (size_t i = 0; i < count && left > 0; i++, left--) {
      const memq_record *record = memq_batch_record(batch, i);
      if (record->value_size > 0) fwrite(record->value, 1, record->value_size, stdout);
      putchar('\n');
      next = record->offset + 1;
    }
    int32_t partition = memq_batch_partition(batch);
    memq_batch_free(batch);
    if (fflush(stdout) != 0 || ferror(stdout)) {
      *problem = "standard output cannot be written";
      return MEMQ_OK;
    }
    if (options->group == NULL) continue;
    code = memq_consumer_commit_offset(consumer, partition, next, MEMQ_DEFAULT_TIMEOUT, error);
    if (code != MEMQ_OK) return code;
  }
  return MEMQ_OK;
}

int main(int count, char **arguments) {
  tool_options options;
  int at = parse(count, arguments, usage, 3, &options);
  if (at < 0) return EXIT_USAGE;
  if (at > count) return 0;
  char *end;
  long long max = strtoll(arguments[at + 2], &end, 10);
  if (*end != 0 || end == arguments[at + 2] || max < 0) {
    fprintf(stderr, "MAX is a number, not \"%s\"\n", arguments[at + 2]);
    return EXIT_USAGE;
  }

  memq_error *error = NULL;
  memq_client *client;
  if (memq_client_open(&options.client, &client, &error) != MEMQ_OK) return fail(error);
  memq_consumer_options how;
  memq_consumer_options_init(&how);
  how.group = options.group;
  /* Only what was printed is committed. */
  how.commit_interval_ms = 0;
  if (options.timeout_ms >= 0) how.reconnect_timeout_ms = options.timeout_ms;
  memq_consumer *consumer;
  if (memq_consumer_open(client, arguments[at + 1], &how, &consumer, &error) != MEMQ_OK) {
    memq_client_close(client);
    return fail(error);
  }
  const char *problem = NULL;
  memq_code code = print(consumer, max, &options, &error, &problem);
  memq_error *last = NULL;
  memq_code closed = memq_consumer_close(consumer, MEMQ_DEFAULT_TIMEOUT, code == MEMQ_OK ? &error : &last);
  memq_error_free(last);
  memq_client_close(client);
  if (code != MEMQ_OK || closed != MEMQ_OK) return fail(error);
  if (problem == NULL) return 0;
  fprintf(stderr, "%s\n", problem);
  return EXIT_FAILED;
}
