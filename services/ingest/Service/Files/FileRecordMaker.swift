// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRecords
import MemQRuntime

/// Builds the batches that stand for files in a topic.
enum FileRecordMaker {
  /// Bytes a file's record may need beyond its inline body: name, content type, attributes, verdict, framing.
  static let overheadBytesMax =
    Limits.fileNameBytesMax + FileRules.contentTypeBytesMax
    + FileRules.attributesMax * (FileRules.attributeBytesMax + 8) + 4_096

  /// Largest body that rides inside its record in a topic with this `max.message.bytes`.
  static func inlineBytesMax(messageBytesMax: Int) -> Int {
    max(0, min(Limits.inlineFileBytesMax, messageBytesMax - Self.overheadBytesMax))
  }

  /// The one-record batch that publishes a put: its own producer id, sequence 0.
  ///
  /// - Throws: `.internalError` when the put lacks what publishing needs.
  static func publication(
    of upload: Memq_V1_UploadRecord, at time: Timestamp
  ) throws(MemQError) -> [UInt8] {
    guard upload.sha256.count == 32, upload.producerID >= Int64(1) << 62 else {
      throw MemQError(
        .internalError, "the put has no digest or no producer id", subject: upload.label)
    }
    let body: FileRecord.Body =
      upload.bodyKey.isEmpty ? .inline([UInt8](upload.inlineBody)) : .object(key: upload.bodyKey)
    if case .inline(let bytes) = body, Int64(bytes.count) != upload.offset {
      throw MemQError(
        .internalError, "the put's inline body is not there", subject: upload.label,
        limit: upload.offset, actual: Int64(bytes.count))
    }
    var attributes: SortedMap<String, String> = [:]
    for (name, value) in upload.attributes { attributes[name] = value }
    let record = FileRecord(
      uploadID: try UploadID(wire: upload.uploadID, "upload_id"), size: upload.offset,
      digest: [UInt8](upload.sha256), contentType: upload.contentType,
      verdict: FileRecord.Verdict(upload.verdict), attributes: attributes, body: body)
    var builder = RecordBatchBuilder(
      producerID: ProducerID(upload.producerID), producerEpoch: ProducerEpoch(0), baseSequence: 0)
    builder.append(
      key: Array(upload.name.utf8), value: record.encoded(), headers: [Self.header], timestamp: time
    )
    return try builder.build()
  }

  /// The one-record batch that says a file is gone.
  static func tombstone(_ name: String, at time: Timestamp) throws(MemQError) -> [UInt8] {
    var builder = RecordBatchBuilder()
    builder.append(key: Array(name.utf8), value: nil, headers: [Self.header], timestamp: time)
    return try builder.build()
  }

  private static let header = RecordHeader(
    name: FileRecord.headerName, value: FileRecord.headerValue)
}

extension FileRecord.Verdict {
  fileprivate init(_ verdict: Memq_V1_Verdict) {
    self.init(
      kind: Kind(rawValue: UInt8(clamping: verdict.kind.rawValue)) ?? .notScanned,
      signature: verdict.signature, reason: verdict.reason, engine: verdict.engine,
      databaseVersion: verdict.databaseVersion, durationMilliseconds: verdict.durationMs)
  }
}
