// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// The hash that places a key on a partition: murmur2 with Kafka's seed, so that both put a key on the same one.
public enum KeyHash {
  /// The partition of `key` among `count` partitions.
  public static func partition(of key: UnsafeRawBufferPointer, among count: Int) -> PartitionIndex {
    precondition(count > 0)
    return PartitionIndex(Int32(Int(Self.murmur2(key) & 0x7FFF_FFFF) % count))
  }

  /// MurmurHash2, 32 bits, seed 0x9747b28c.
  public static func murmur2(_ key: UnsafeRawBufferPointer) -> UInt32 {
    let multiplier: UInt32 = 0x5BD1_E995
    var hash = 0x9747_B28C ^ UInt32(truncatingIfNeeded: key.count)
    var at = 0
    while key.count - at >= 4 {
      var word = UInt32(littleEndian: key.loadUnaligned(fromByteOffset: at, as: UInt32.self))
      word = word &* multiplier
      word ^= word >> 24
      hash = (hash &* multiplier) ^ (word &* multiplier)
      at += 4
    }
    if key.count - at > 0 {
      for i in stride(from: key.count - at - 1, through: 0, by: -1) {
        hash ^= UInt32(key[at + i]) << UInt32(8 * i)
      }
      hash = hash &* multiplier
    }
    hash ^= hash >> 13
    hash = hash &* multiplier
    return hash ^ (hash >> 15)
  }
}
