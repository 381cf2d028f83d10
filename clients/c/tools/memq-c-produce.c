/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/* Each line of standard input a record, acknowledged by every in-sync replica before the end. */
#include "common.h"

static const char usage[] =
    "Usage: memq-c-produce [options] SERVER[,SERVER...] TOPIC\n"
    "\n"
    "Sends each line of standard input, without its end, as a record; idempotent, acks=all. Ends with 0 when\n"
    "every record is acknowledged, with 1 and the error's code and reason on standard error otherwise.\n"
    "\n"
    "  --timeout SECONDS  how long a record may take to be acknowledged (default 120)\n"
    "  --tls              speak TLS, trusting the system's authorities\n"
    "  --tls-ca FILE      speak TLS, trusting these authorities (PEM)\n"
    "  --tls-cert FILE    the client's certificate (PEM)\n"
    "  --tls-key FILE     its key (PEM)\n"
    "  --tls-name NAME    the name the server's certificate must have, where it is not the host's\n"
    "  --group NAME       taken for symmetry with memq-c-consume; without effect\n"
    "  --help, --version\n";

int main(int count, char **arguments) {
  tool_options options;
  int at = parse(count, arguments, usage, 2, &options);
  if (at < 0) return EXIT_USAGE;
  if (at > count) return 0;

  memq_error *error = NULL;
  memq_client *client;
  if (memq_client_open(&options.client, &client, &error) != MEMQ_OK) return fail(error);

  memq_producer_options how;
  memq_producer_options_init(&how);
  if (options.timeout_ms > 0) {
    how.delivery_timeout_ms = options.timeout_ms;
    if (how.request_timeout_ms > options.timeout_ms) how.request_timeout_ms = options.timeout_ms;
  }
  memq_producer *producer;
  if (memq_producer_open(client, arguments[at + 1], &how, &producer, &error) != MEMQ_OK) {
    memq_client_close(client);
    return fail(error);
  }

  char *line = NULL;
  size_t capacity = 0;
  ssize_t size;
  memq_code code = MEMQ_OK;
  while (code == MEMQ_OK && (size = getline(&line, &capacity, stdin)) >= 0) {
    if (size > 0 && line[size - 1] == '\n') size--;
    /* Room comes with acknowledgements, which the delivery timeout bounds. */
    code = memq_producer_send_value(producer, line, (size_t)size, how.delivery_timeout_ms, &error);
  }
  bool is_unread = code == MEMQ_OK && !feof(stdin);
  free(line);
  memq_error *last = NULL;
  memq_code closed = memq_producer_close(producer, MEMQ_DEFAULT_TIMEOUT, code == MEMQ_OK ? &error : &last);
  memq_error_free(last);
  memq_client_close(client);
  if (code != MEMQ_OK || closed != MEMQ_OK) return fail(error);
  if (is_unread) {
    fputs("standard input cannot be read\n", stderr);
    return EXIT_FAILED;
  }
  return 0;
}
