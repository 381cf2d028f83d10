// Part of MemQ. SPDX-License-Identifier: Apache-2.0
//
// CRC-32C two ways. By tables, eight bytes a step. By the SSE 4.2 instruction, which takes three cycles but starts
// one each cycle: three independent streams over adjacent blocks keep it busy, and their CRCs are then joined by
// shifting the earlier ones over the later block's length (a linear map of the 32 bits, kept as four tables of 256).

#include "CMemQChecksum.h"

#include <pthread.h>
#include <string.h>

/// The polynomial, bits reversed.
#define POLYNOMIAL 0x82F63B78u
/// Bytes of one of three adjacent blocks: long ones for the bulk, short ones for what is left.
#define LONG_BLOCK ((size_t)8192)
#define SHORT_BLOCK ((size_t)256)

static pthread_once_t tables_made = PTHREAD_ONCE_INIT;
static uint32_t byte_tables[8][256];
static uint32_t long_shift[4][256];
static uint32_t short_shift[4][256];

/// The CRC register after `zeros` zero bytes went in, for one starting value.
static uint32_t advance(uint32_t crc, size_t zeros) {
  while (zeros-- > 0) crc = (crc >> 8) ^ byte_tables[0][crc & 0xFF];
  return crc;
}

/// Tables of the map "advance over `zeros` bytes": one per byte of the register, built from its 32 single bits.
static void make_shift(uint32_t table[4][256], size_t zeros) {
  for (int byte = 0; byte < 4; byte++) {
    uint32_t bits[8];
    for (int bit = 0; bit < 8; bit++) bits[bit] = advance(1u << (byte * 8 + bit), zeros);
    for (int value = 0; value < 256; value++) {
      uint32_t sum = 0;
      for (int bit = 0; bit < 8; bit++)
        if (value >> bit & 1) sum ^= bits[bit];
      table[byte][value] = sum;
    }
  }
}

static void make_tables(void) {
  for (uint32_t value = 0; value < 256; value++) {
    uint32_t crc = value;
    for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >> 1) ^ POLYNOMIAL : crc >> 1;
    byte_tables[0][value] = crc;
  }
  for (int value = 0; value < 256; value++)
    for (int step = 1; step < 8; step++) {
      uint32_t before = byte_tables[step - 1][value];
      byte_tables[step][value] = (before >> 8) ^ byte_tables[0][before & 0xFF];
    }
  make_shift(long_shift, LONG_BLOCK);
  make_shift(short_shift, SHORT_BLOCK);
}

static uint64_t little_endian_word(const uint8_t *bytes) {
  uint64_t word;
  memcpy(&word, bytes, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  return word;
}

static uint32_t table_register(uint32_t crc, const uint8_t *next, size_t count) {
  while (count >= 8) {
    uint64_t word = little_endian_word(next) ^ crc;
    crc = byte_tables[7][word & 0xFF] ^ byte_tables[6][word >> 8 & 0xFF] ^
          byte_tables[5][word >> 16 & 0xFF] ^ byte_tables[4][word >> 24 & 0xFF] ^
          byte_tables[3][word >> 32 & 0xFF] ^ byte_tables[2][word >> 40 & 0xFF] ^
          byte_tables[1][word >> 48 & 0xFF] ^ byte_tables[0][word >> 56];
    next += 8;
    count -= 8;
  }
  while (count-- > 0) crc = (crc >> 8) ^ byte_tables[0][(crc ^ *next++) & 0xFF];
  return crc;
}

uint32_t memq_crc32c_by_table(uint32_t seed, const void *bytes, size_t count) {
  pthread_once(&tables_made, make_tables);
  return ~table_register(~seed, bytes, count);
}

#if defined(__x86_64__)
#include <nmmintrin.h>

static uint32_t shift(uint32_t table[4][256], uint32_t crc) {
  return table[0][crc & 0xFF] ^ table[1][crc >> 8 & 0xFF] ^ table[2][crc >> 16 & 0xFF] ^
         table[3][crc >> 24];
}

/// Takes three blocks of `block` bytes in, at once.
__attribute__((target("sse4.2"))) static uint32_t three_blocks(
    uint32_t crc, const uint8_t *next, size_t block, uint32_t table[4][256]) {
  uint64_t first = crc, second = 0, third = 0;
  for (const uint8_t *end = next + block; next < end; next += 8) {
    first = _mm_crc32_u64(first, little_endian_word(next));
    second = _mm_crc32_u64(second, little_endian_word(next + block));
    third = _mm_crc32_u64(third, little_endian_word(next + 2 * block));
  }
  return shift(table, shift(table, (uint32_t)first) ^ (uint32_t)second) ^ (uint32_t)third;
}

__attribute__((target("sse4.2"))) static uint32_t hardware_register(
    uint32_t crc, const uint8_t *next, size_t count) {
  for (; count >= 3 * LONG_BLOCK; next += 3 * LONG_BLOCK, count -= 3 * LONG_BLOCK)
    crc = three_blocks(crc, next, LONG_BLOCK, long_shift);
  for (; count >= 3 * SHORT_BLOCK; next += 3 * SHORT_BLOCK, count -= 3 * SHORT_BLOCK)
    crc = three_blocks(crc, next, SHORT_BLOCK, short_shift);
  uint64_t wide = crc;
  for (; count >= 8; next += 8, count -= 8) wide = _mm_crc32_u64(wide, little_endian_word(next));
  crc = (uint32_t)wide;
  for (; count > 0; next++, count--) crc = _mm_crc32_u8(crc, *next);
  return crc;
}

bool memq_crc32c_uses_hardware(void) { return __builtin_cpu_supports("sse4.2"); }

uint32_t memq_crc32c(uint32_t seed, const void *bytes, size_t count) {
  pthread_once(&tables_made, make_tables);
  return memq_crc32c_uses_hardware() ? ~hardware_register(~seed, bytes, count)
                                     : ~table_register(~seed, bytes, count);
}

#else

bool memq_crc32c_uses_hardware(void) { return false; }

uint32_t memq_crc32c(uint32_t seed, const void *bytes, size_t count) {
  return memq_crc32c_by_table(seed, bytes, count);
}

#endif
