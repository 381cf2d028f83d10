// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

extension RecordBatchHeader {
  /// Writes a producer's number, epoch and first sequence into an encoded batch, and its CRC anew: they stand under it.
  ///
  /// - Precondition: `bytes` are one whole batch.
  public static func stampProducer(
    _ bytes: UnsafeMutableRawBufferPointer, id: ProducerID, epoch: ProducerEpoch,
    baseSequence: Int32
  ) {
    precondition(bytes.count >= Self.byteCount)
    bytes.storeBytes(of: id.rawValue.bigEndian, toByteOffset: 43, as: Int64.self)
    bytes.storeBytes(of: epoch.rawValue.bigEndian, toByteOffset: 51, as: Int16.self)
    bytes.storeBytes(of: baseSequence.bigEndian, toByteOffset: 53, as: Int32.self)
    let crc = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: bytes[Self.checksummedFrom...]))
    bytes.storeBytes(of: crc.bigEndian, toByteOffset: 17, as: UInt32.self)
  }
}
