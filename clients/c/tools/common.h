/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/* What the two tools share: options, errors on standard error, exit statuses. */
#ifndef COMMON_H
#define COMMON_H

#include <getopt.h>
#include <memq.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXIT_FAILED = 1, EXIT_USAGE = 2 };

typedef struct tool_options {
  memq_client_options client;
  const char *group;
  /* Milliseconds; -1: not given. */
  int64_t timeout_ms;
} tool_options;

/* Says what went wrong, gives the error back, and is the exit status. */
static inline int fail(memq_error *error) {
  const char *subject = memq_error_subject(error);
  fprintf(stderr, "%s: %s%s%s", memq_code_name(memq_error_code(error)), subject, subject[0] != 0 ? ": " : "", memq_error_message(error));
  int64_t limit, actual;
  bool has_limit = memq_error_limit(error, &limit), has_actual = memq_error_actual(error, &actual);
  if (has_limit) fprintf(stderr, " (limit %lld%s", (long long)limit, has_actual ? "" : ")");
  if (has_actual) fprintf(stderr, "%sactual %lld)", has_limit ? ", " : " (", (long long)actual);
  fputc('\n', stderr);
  memq_error_free(error);
  return EXIT_FAILED;
}

/* The place of the first argument that is no option; below 0: end with EXIT_USAGE, above the count: with 0. */
static inline int parse(int count, char **arguments, const char *usage, int wanted, tool_options *options) {
  static const struct option known[] = {
      {"tls", no_argument, NULL, 't'},          {"tls-ca", required_argument, NULL, 'a'},
      {"tls-cert", required_argument, NULL, 'c'}, {"tls-key", required_argument, NULL, 'k'},
      {"tls-name", required_argument, NULL, 'n'}, {"group", required_argument, NULL, 'g'},
      {"timeout", required_argument, NULL, 'T'},  {"help", no_argument, NULL, 'h'},
      {"version", no_argument, NULL, 'v'},        {NULL, 0, NULL, 0},
  };
  memq_client_options_init(&options->client);
  options->client.client_id = strrchr(arguments[0], '/') != NULL ? strrchr(arguments[0], '/') + 1 : arguments[0];
  options->group = NULL;
  options->timeout_ms = -1;
  int option;
  while ((option = getopt_long(count, arguments, "h", known, NULL)) != -1) {
    switch (option) {
      case 't': break;
      case 'a': options->client.tls_ca_file = optarg; break;
      case 'c': options->client.tls_certificate_file = optarg; break;
      case 'k': options->client.tls_key_file = optarg; break;
      case 'n': options->client.tls_server_name = optarg; break;
      case 'g': options->group = optarg; continue;
      case 'T': {
        char *end;
        double seconds = strtod(optarg, &end);
        if (*end != 0 || end == optarg || !(seconds >= 0 && seconds < 1e9)) {
          fprintf(stderr, "--timeout takes seconds, not \"%s\"\n", optarg);
          return -1;
        }
        options->timeout_ms = (int64_t)(seconds * 1000);
        if (options->client.connect_timeout_ms > options->timeout_ms) options->client.connect_timeout_ms = options->timeout_ms;
        continue;
      }
      case 'h': fputs(usage, stdout); return count + 1;
      case 'v': printf("%s\n", memq_version()); return count + 1;
      default: fputs(usage, stderr); return -1;
    }
    options->client.tls = true;
  }
  if (count - optind != wanted) {
    fputs(usage, stderr);
    return -1;
  }
  options->client.servers = arguments[optind];
  return optind;
}

#endif
