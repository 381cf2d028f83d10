#!/usr/bin/env python3
# Part of MemQ. SPDX-License-Identifier: Apache-2.0
r"""Writes GoldenBatches.swift: record batches and key hashes made by kafka-python, an independent implementation.

Made with kafka-python 3.0.12, lz4 4.4.5, python-snappy 0.7.3 (cramjam 2.14.0), zstandard 0.25.0:
  pip install kafka-python lz4 python-snappy zstandard && python3 scripts/golden/record_batches.py \
    > Tests/MemQRecordsTests/Golden/GoldenBatches.swift
Running it again with other versions may change compressed bytes; the decoded records stay the same.
"""
from kafka.partitioner.default import murmur2
from kafka.record.default_records import DefaultRecordBatchBuilder

RECORDS = [
    (1700000000000, b"key", b"value", []),
    (1700000000250, None, b"", [("name", b"v"), ("null", None), ("", b"")]),
    (1699999999999, b"", None, []),
    (1700000000001, "schl\u00fcssel".encode(), bytes(range(256)) * 3, [("\u00fc", b"\x00\xff")]),
]
NAMES = {0: "none", 1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}


def batch(codec, producer=(-1, -1, -1), repeat=1):
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=codec, is_transactional=False, producer_id=producer[0],
        producer_epoch=producer[1], base_sequence=producer[2], batch_size=1 << 30)
    offset = 0
    for _ in range(repeat):
        for timestamp, key, value, headers in RECORDS:
            builder.append(offset, timestamp=timestamp, key=key, value=value, headers=headers)
            offset += 1
    return bytes(builder.build())


def lines(data):
    text = data.hex()
    parts = [text[i:i + 88] for i in range(0, len(text), 88)]
    return '"' + '"\n      + "'.join(parts) + '"'


print("// Part of MemQ. SPDX-License-Identifier: Apache-2.0\n")
print("// Made by scripts/golden/record_batches.py; not to be edited.\n")
print("/// Bytes of another implementation (kafka-python), in hexadecimal.")
print("enum GoldenBatches {")
for codec, name in NAMES.items():
    print(f"  static let {name} =\n    {lines(batch(codec))}")
print("  /// Producer id 4711, epoch 3, base sequence 99.")
print(f"  static let idempotent =\n    {lines(batch(0, (4711, 3, 99)))}")
print("  /// The four records 100 times: several blocks of every format.")
for codec, name in list(NAMES.items())[1:]:
    print(f"  static let {name}Long =\n    {lines(batch(codec, repeat=100))}")
print("  /// Key and murmur2 of it, as Kafka's default partitioner hashes (31 bits).")
print("  static let hashes: [(key: String, hash: UInt32)] = [")
for key in ["", "a", "ab", "abc", "abcd", "abcde", "memq", "key-1234567890", "\u00fcber", "21", "foobar"]:
    print(f'    ("{key}", {murmur2(key.encode()) & 0x7fffffff}),')
print("  ]\n}")
