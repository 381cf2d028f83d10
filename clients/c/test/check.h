/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/* Checks for the test programs: the first that fails ends the program with its place. */
#ifndef CHECK_H
#define CHECK_H

#include <memq.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                     \
    }                                                                              \
  } while (0)

#define CHECK_TEXT(have, want)                                                                           \
  do {                                                                                                   \
    const char *check_have = (have), *check_want = (want);                                               \
    if (strcmp(check_have, check_want) != 0) {                                                           \
      fprintf(stderr, "%s:%d: \"%s\" instead of \"%s\"\n", __FILE__, __LINE__, check_have, check_want);    \
      exit(1);                                                                                           \
    }                                                                                                    \
  } while (0)

/* A call of the library that must work. */
#define WORKS(call)                                                                                                                       \
  do {                                                                                                                                    \
    memq_error *error = NULL;                                                                                                             \
    if ((call) != MEMQ_OK) {                                                                                                              \
      fprintf(stderr, "%s:%d: %s: %s: %s: %s\n", __FILE__, __LINE__, #call, memq_code_name(memq_error_code(error)), memq_error_subject(error), \
              memq_error_message(error));                                                                                                 \
      exit(1);                                                                                                                            \
    }                                                                                                                                     \
  } while (0)

/* One that must fail with this code; the error's message is in `text`. */
#define FAILS(wanted, call)                                                                                                               \
  do {                                                                                                                                    \
    memq_error *error = NULL;                                                                                                             \
    memq_code check_code = (call);                                                                                                        \
    if (check_code != (wanted) || memq_error_code(error) != (wanted)) {                                                                    \
      fprintf(stderr, "%s:%d: %s: %s instead of %s: %s\n", __FILE__, __LINE__, #call, memq_code_name(check_code), memq_code_name(wanted),   \
              memq_error_message(error));                                                                                                 \
      exit(1);                                                                                                                            \
    }                                                                                                                                     \
    snprintf(text, sizeof(text), "%s: %s", memq_error_subject(error), memq_error_message(error));                                          \
    memq_error_free(error);                                                                                                               \
  } while (0)

#endif
