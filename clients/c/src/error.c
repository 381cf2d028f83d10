/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memq/v1/errors.pb-c.h"

/* Handed out when there is no memory for an error; never freed. */
static const memq_error out_of_memory = {
    .code = MEMQ_ERROR_OUT_OF_MEMORY,
    .grpc_status = 8,
    .is_retriable = true,
    .message = "there is no memory",
};

void mq_copy_text(char *field, const void *text, size_t size) {
  const char *bytes = text;
  if (size > MQ_TEXT_MAX) {
    size = MQ_TEXT_MAX;
    while (size > 0 && ((unsigned char)bytes[size] & 0xC0) == 0x80) size--;
  }
  if (size > 0) memcpy(field, bytes, size);
  field[size] = 0;
}

void mq_set_subject(memq_error *error, const char *subject) { mq_copy_text(error->subject, subject, strlen(subject)); }

static int status_of_code(memq_code code) {
  switch (code) {
    case MEMQ_OK: return 0;
    case MEMQ_ERROR_CANCELLED: return 1;
    case MEMQ_ERROR_OUTCOME_UNKNOWN: return 2;
    case MEMQ_ERROR_INVALID_ARGUMENT:
    case MEMQ_ERROR_CONFIGURATION_INVALID: return 3;
    case MEMQ_ERROR_DEADLINE_EXCEEDED: return 4;
    case MEMQ_ERROR_TOPIC_NOT_FOUND:
    case MEMQ_ERROR_PARTITION_NOT_FOUND: return 5;
    case MEMQ_ERROR_PERMISSION_DENIED: return 7;
    case MEMQ_ERROR_RESOURCE_EXHAUSTED:
    case MEMQ_ERROR_MESSAGE_TOO_LARGE:
    case MEMQ_ERROR_RECORD_BATCH_TOO_LARGE:
    case MEMQ_ERROR_OUT_OF_MEMORY: return 8;
    case MEMQ_ERROR_UNIMPLEMENTED: return 12;
    case MEMQ_ERROR_UNAVAILABLE:
    case MEMQ_ERROR_SHUTTING_DOWN:
    case MEMQ_ERROR_TLS: return 14;
    case MEMQ_ERROR_CORRUPT_MESSAGE:
    case MEMQ_ERROR_DIGEST_MISMATCH:
    case MEMQ_ERROR_CHUNK_CHECKSUM_MISMATCH: return 15;
    case MEMQ_ERROR_UNAUTHENTICATED: return 16;
    default: return 13;
  }
}

memq_code mq_code_of_status(int status) {
  switch (status) {
    case 1: return MEMQ_ERROR_CANCELLED;
    case 4: return MEMQ_ERROR_DEADLINE_EXCEEDED;
    case 7: return MEMQ_ERROR_PERMISSION_DENIED;
    case 8: return MEMQ_ERROR_RESOURCE_EXHAUSTED;
    case 12: return MEMQ_ERROR_UNIMPLEMENTED;
    case 14: return MEMQ_ERROR_UNAVAILABLE;
    case 15: return MEMQ_ERROR_CORRUPT_MESSAGE;
    case 16: return MEMQ_ERROR_UNAUTHENTICATED;
    case 3:
    case 5:
    case 6:
    case 9:
    case 10:
    case 11: return MEMQ_ERROR_INVALID_ARGUMENT;
    default: return MEMQ_ERROR_INTERNAL_ERROR;
  }
}

bool mq_code_is_retriable(memq_code code) {
  switch (code) {
    case MEMQ_ERROR_UNAVAILABLE:
    case MEMQ_ERROR_DEADLINE_EXCEEDED:
    case MEMQ_ERROR_RESOURCE_EXHAUSTED:
    case MEMQ_ERROR_SHUTTING_DOWN:
    case MEMQ_ERROR_OUTCOME_UNKNOWN:
    case MEMQ_ERROR_OUT_OF_MEMORY: return true;
    default: return false;
  }
}

memq_code mq_fail(memq_error *error, memq_code code, const char *subject, const char *format, ...) {
  error->code = code;
  error->grpc_status = status_of_code(code);
  error->is_retriable = mq_code_is_retriable(code);
  error->is_unprocessed = false;
  error->has_limit = error->has_actual = false;
  error->limit = error->actual = 0;
  va_list arguments;
  va_start(arguments, format);
  /* Before the subject, which may be what the format mentions. */
  int count = vsnprintf(error->message, sizeof(error->message), format, arguments);
  va_end(arguments);
  if (count < 0) error->message[0] = 0;
  if (subject != error->subject) mq_set_subject(error, subject != NULL ? subject : "");
  return code;
}

memq_code mq_fail_memory(memq_error *error) {
  *error = out_of_memory;
  return MEMQ_ERROR_OUT_OF_MEMORY;
}

memq_code mq_fail_detail(memq_error *error, const Memq__V1__ErrorDetail *detail) {
  mq_fail(error, (memq_code)detail->code, detail->subject, "%s", "");
  mq_copy_text(error->message, detail->message, strlen(detail->message));
  if (detail->code == 0) error->code = MEMQ_ERROR_INTERNAL_ERROR;
  error->is_retriable = detail->retriable;
  error->has_limit = detail->limit_is_case == MEMQ__V1__ERROR_DETAIL__LIMIT_IS_LIMIT;
  if (error->has_limit) error->limit = detail->limit;
  error->has_actual = detail->actual_is_case == MEMQ__V1__ERROR_DETAIL__ACTUAL_IS_ACTUAL;
  if (error->has_actual) error->actual = detail->actual;
  return error->code;
}

/* The next field of a protobuf message: its number, its wire type, and its bytes when it has a length. False: the end, or nonsense. */
static bool next_field(const uint8_t **at, const uint8_t *end, uint32_t *number, const uint8_t **bytes, size_t *size) {
  uint64_t values[2] = {0, 0};
  int count = 1;
  for (int i = 0; i < count; i++) {
    unsigned shift = 0;
    for (;; shift += 7) {
      if (*at == end || shift > 63) return false;
      uint8_t byte = *(*at)++;
      values[i] |= (uint64_t)(byte & 0x7F) << shift;
      if (byte < 0x80) break;
    }
    if (i == 0) {
      unsigned type = values[0] & 7;
      if (type == 0 || type == 2) {
        count = 2;
      } else if (type == 1 || type == 5) {
        values[1] = type == 1 ? 8 : 4;
      } else {
        return false;
      }
    }
  }
  *number = (uint32_t)(values[0] >> 3);
  *bytes = *at;
  *size = 0;
  if ((values[0] & 7) == 0) return true;
  if (values[1] > (uint64_t)(end - *at)) return false;
  *size = (size_t)values[1];
  *at += *size;
  return true;
}

bool mq_fail_details(memq_error *error, const uint8_t *status, size_t size) {
  static const char type[] = "memq.v1.ErrorDetail";
  const uint8_t *at = status, *end = status + size, *any;
  uint32_t number;
  size_t any_size;
  while (next_field(&at, end, &number, &any, &any_size)) {
    if (number != 3) continue;
    const uint8_t *in = any, *bytes, *value = NULL;
    size_t length, value_size = 0;
    bool is_ours = false;
    while (next_field(&in, any + any_size, &number, &bytes, &length)) {
      if (number == 1) {
        is_ours = length >= sizeof(type) - 1 && memcmp(bytes + length - (sizeof(type) - 1), type, sizeof(type) - 1) == 0;
      } else if (number == 2) {
        value = bytes;
        value_size = length;
      }
    }
    if (!is_ours) continue;
    Memq__V1__ErrorDetail *detail = memq__v1__error_detail__unpack(NULL, value_size, value);
    if (detail == NULL) return false;
    mq_fail_detail(error, detail);
    memq__v1__error_detail__free_unpacked(detail, NULL);
    return true;
  }
  return false;
}

bool mq_is_absence(const memq_error *error) {
  return error->code == MEMQ_ERROR_UNAVAILABLE || error->code == MEMQ_ERROR_SHUTTING_DOWN || error->code == MEMQ_ERROR_DEADLINE_EXCEEDED ||
         error->code == MEMQ_ERROR_TLS;
}

memq_code mq_publish(memq_error **out, const memq_error *error) {
  if (out != NULL) {
    memq_error *copy = malloc(sizeof(*copy));
    if (copy != NULL) *copy = *error;
    *out = copy != NULL ? copy : (memq_error *)(uintptr_t)&out_of_memory;
  }
  return error->code;
}

memq_code memq_error_code(const memq_error *error) { return error != NULL ? error->code : MEMQ_OK; }

const char *memq_error_message(const memq_error *error) { return error != NULL ? error->message : ""; }

const char *memq_error_subject(const memq_error *error) { return error != NULL ? error->subject : ""; }

bool memq_error_is_retriable(const memq_error *error) { return error != NULL && error->is_retriable; }

bool memq_error_limit(const memq_error *error, int64_t *limit) {
  if (error == NULL || !error->has_limit) return false;
  *limit = error->limit;
  return true;
}

bool memq_error_actual(const memq_error *error, int64_t *actual) {
  if (error == NULL || !error->has_actual) return false;
  *actual = error->actual;
  return true;
}

int memq_error_grpc_status(const memq_error *error) { return error != NULL ? error->grpc_status : 0; }

void memq_error_free(memq_error *error) {
  if (error != &out_of_memory) free(error);
}

const char *memq_code_name(memq_code code) {
  switch ((int)code) {
    case MEMQ_OK: return "OK";
    case MEMQ_ERROR_OUT_OF_MEMORY: return "OUT_OF_MEMORY";
    case MEMQ_ERROR_TLS: return "TLS";
    case MEMQ_ERROR_LOCAL_FILE: return "LOCAL_FILE";
    case MEMQ_ERROR_UNAUTHENTICATED: return "UNAUTHENTICATED";
    case MEMQ_ERROR_PERMISSION_DENIED: return "PERMISSION_DENIED";
    default: break;
  }
  const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value(&memq__v1__error_code__descriptor, (int)code);
  static const char prefix[] = "ERROR_CODE_";
  return value != NULL ? value->name + sizeof(prefix) - 1 : "UNKNOWN_CODE";
}

const char *memq_version(void) { return MEMQ_VERSION; }
