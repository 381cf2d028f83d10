// Part of MemQ. SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/// CRC-32C (Castagnoli) of `count` bytes, going on from `seed`: the CRC of the bytes before them, 0 for none.
/// Uses the processor's instruction where there is one, found out once.
uint32_t memq_crc32c(uint32_t seed, const void *bytes, size_t count);

/// The same by tables only: the fallback, public so that a test can hold one against the other.
uint32_t memq_crc32c_by_table(uint32_t seed, const void *bytes, size_t count);

/// Whether `memq_crc32c` uses the processor's instruction on this machine.
bool memq_crc32c_uses_hardware(void);
