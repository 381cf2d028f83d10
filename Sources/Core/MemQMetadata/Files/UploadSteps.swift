// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

// The states of a file put, and who may move it:
//
//   open ─→ sealed ─→ judged ─→ publishing ─→ published
//     │        │ ╲       │           │
//     │        │  ╲→ quarantined ─→ judged (released) | abandoned (deleted): by a person, with an audit record
//     ╰────────┴─────────┴───────────┴─→ abandoned
//
// A put whose bytes are all there at once begins as sealed, judged, quarantined or publishing.

extension UploadState {
  /// The states a step may lead to; itself, where details may change in it.
  public var steps: [UploadState] {
    switch self {
    case .open: [.open, .sealed, .abandoned]
    case .sealed: [.sealed, .judged, .quarantined, .abandoned]
    case .judged: [.judged, .publishing, .abandoned]
    case .publishing: [.publishing, .published, .abandoned]
    case .quarantined, .published, .abandoned: []
    }
  }

  /// Whether a put may begin here.
  public var isBeginning: Bool {
    switch self {
    case .open, .sealed, .judged, .publishing, .quarantined: true
    case .published, .abandoned: false
    }
  }

  /// Whether all bytes must be there.
  var isWhole: Bool {
    switch self {
    case .sealed, .judged, .publishing, .published, .quarantined: true
    case .open, .abandoned: false
    }
  }
}

/// Limits of files' descriptions.
public enum FileLimits {
  public static let contentTypeBytesMax = 255
  public static let attributesMax = 64
  /// Of an attribute's name, and of its value.
  public static let attributeBytesMax = 1_024
  public static let bodyKeyBytesMax = 1_024
  public static let reasonBytesMax = 1_024
  public static let digestBytes = 32
  public static let digestStateBytes = 112
}

extension MetadataState {
  // MARK: Beginning

  /// Begins a put. The same id again gives what is known of it.
  ///
  /// - Parameters:
  ///   - known: what stands under the id.
  ///   - producer: a fresh number for its record.
  /// - Throws: `.topicNotFound`, `.fileNameInvalid`, `.fileTooLarge`, `.invalidArgument` (also when the id is in use for another
  ///   file), and what a step throws.
  public func createUpload(
    _ upload: UploadRecord, inlineBody: [UInt8], known: UploadRecord?, producer: ProducerID,
    at now: Timestamp
  ) throws(MemQError) -> Plan<UploadRecord> {
    if let known {
      guard known.topic == upload.topic, known.name == upload.name else {
        throw MemQError(
          .invalidArgument, "the upload id is in use for another file", subject: "\(upload.id)")
      }
      return Plan(outcome: known)
    }
    guard upload.state.isBeginning else {
      throw MemQError(
        .invalidArgument, "a put doesn't begin as \(upload.state.name)", subject: upload.name)
    }
    var next = upload
    next.producerID = producer
    next.recordOffset = Offset(-1)
    next.version = 1
    next.createdAt = now
    next.updatedAt = now
    try self.check(next, inlineBody)
    try self.checkVerdict(next)
    // Only a person's release lets an infected file pass, and what is released was quarantined before.
    guard next.verdict?.kind != .infected || next.state == .quarantined else {
      throw MemQError(
        .invalidArgument, "an infected put goes into quarantine", subject: next.name)
    }
    var transaction = Transaction()
    transaction.require(.exists(.topic(next.topic)))
    for shelf in UploadShelf.allCases { transaction.require(.absent(.upload(next.id, shelf))) }
    transaction.put(.upload(next.id, next.state.shelf), next)
    if !inlineBody.isEmpty {
      transaction.put(.uploadBody(next.id), InlineBodyRecord(bytes: inlineBody))
    }
    return Plan([transaction], outcome: next)
  }

  // MARK: Steps

  /// Moves a put on. Publishing makes the file's entry, with the next version of its name, in the same transaction.
  ///
  /// - Parameters:
  ///   - next: the record as it shall be; its version is the one it replaces.
  ///   - latest: the file that stands under the name; asked for only when `next` is published.
  /// - Throws: `.revisionConflict` when the put has moved since; `.invalidArgument` for an illegal step;
  ///   `.topicDeleted`, `.fileIncomplete`, `.fileTooLarge`.
  public func advanceUpload(
    _ known: Versioned<UploadRecord>, to next: UploadRecord, inlineBody: [UInt8],
    latest: Versioned<FileRecord>?, at now: Timestamp
  ) throws(MemQError) -> Plan<UploadRecord> {
    let old = known.value
    guard next.version == old.version else {
      throw MemQError(
        .revisionConflict, "the put has moved since; it is \(old.state.name)", subject: old.name,
        limit: old.version, actual: next.version)
    }
    guard old.state.steps.contains(next.state) else {
      throw MemQError(
        .invalidArgument, "no step leads from \(old.state.name) to \(next.state.name)",
        subject: old.name)
    }
    var record = next
    record.producerID = old.producerID
    record.createdAt = old.createdAt
    record.version = old.version + 1
    record.updatedAt = now
    try Self.checkStep(from: old, to: record)
    if next.state != .abandoned { try self.check(record, inlineBody) }
    if old.state == .sealed { try self.checkVerdict(record) }
    var transaction = Transaction()
    if next.state != .abandoned { transaction.require(.exists(.topic(old.topic))) }
    if !inlineBody.isEmpty {
      transaction.put(.uploadBody(old.id), InlineBodyRecord(bytes: inlineBody))
    }
    self.move(known, to: record, in: &transaction, at: now)
    if next.state == .published { Self.publish(record, over: latest, in: &transaction, at: now) }
    return Plan([transaction], outcome: record)
  }

  /// Puts the record on its shelf, and what the step leaves behind away.
  private func move(
    _ known: Versioned<UploadRecord>, to record: UploadRecord, in transaction: inout Transaction,
    at now: Timestamp
  ) {
    let from = StoreKey.upload(record.id, known.value.state.shelf)
    let to = StoreKey.upload(record.id, record.state.shelf)
    transaction.require(.revision(from, known.revision))
    if from != to { transaction.delete(from) }
    transaction.put(to, record)
    guard record.state.shelf == .done else { return }
    transaction.delete(.uploadBody(record.id))
    if record.state == .abandoned, !record.bodyKey.isEmpty {
      transaction.put(.droppingBody(record.bodyKey), DroppingBodyRecord(since: now))
    }
  }

  private static func publish(
    _ upload: UploadRecord, over latest: Versioned<FileRecord>?,
    in transaction: inout Transaction, at now: Timestamp
  ) {
    let file = FileRecord(
      upload, version: (latest?.value.version ?? 0) + 1, publishedAt: now)
    transaction.replace(.file(file.topic, file.name), latest, with: file)
    if let old = latest?.value {
      transaction.put(.fileVersion(old.topic, old.name, old.version), old)
    }
  }

  // MARK: Checks

  private func check(_ upload: UploadRecord, _ inlineBody: [UInt8]) throws(MemQError) {
    let topic = try self.topic(upload.topic).value
    try checkFileName(upload.name)
    guard max(upload.declaredSize, upload.offset) <= Limits.fileBytesMax else {
      throw MemQError(
        .fileTooLarge, "a file has at most 5 TiB", subject: upload.name,
        limit: Limits.fileBytesMax, actual: max(upload.declaredSize, upload.offset))
    }
    guard upload.declaredSize >= -1, upload.offset >= 0 else {
      throw MemQError(.invalidArgument, "a size is not negative", subject: upload.name)
    }
    guard inlineBody.count <= Limits.inlineFileBytesMax else {
      throw MemQError(
        .fileTooLarge, "an inline body has at most 256 KiB", subject: upload.name,
        limit: Int64(Limits.inlineFileBytesMax), actual: Int64(inlineBody.count))
    }
    guard inlineBody.isEmpty || upload.bodyKey.isEmpty else {
      throw MemQError(
        .invalidArgument, "a body is inline or in the bucket, not both", subject: upload.name)
    }
    try checkTexts(upload)
    guard upload.partition.rawValue >= 0, Int(upload.partition.rawValue) < topic.partitionCount
    else {
      throw MemQError(
        .invalidArgument, "the topic has fewer partitions", subject: upload.name,
        limit: Int64(topic.partitionCount), actual: Int64(upload.partition.rawValue))
    }
    try Self.checkWhole(upload)
  }

  /// A new verdict, against the topic's policy as it is now; a later change of that doesn't call it into question.
  private func checkVerdict(_ upload: UploadRecord) throws(MemQError) {
    guard upload.state.isWhole, upload.verdict?.kind == .off,
      try self.topic(upload.topic).value.settings.scanPolicy == .gate
    else { return }
    throw MemQError(
      .invalidArgument, "the topic's files pass a scanner first", subject: upload.name)
  }

  private static func checkWhole(_ upload: UploadRecord) throws(MemQError) {
    guard upload.state.isWhole else { return }
    guard upload.sha256.count == FileLimits.digestBytes else {
      throw MemQError(
        .invalidArgument, "a \(upload.state.name) put has a digest of 32 bytes",
        subject: upload.name, limit: Int64(FileLimits.digestBytes),
        actual: Int64(upload.sha256.count))
    }
    guard upload.declaredSize < 0 || upload.offset == upload.declaredSize else {
      throw MemQError(
        .fileIncomplete, "the put ended before its declared size", subject: upload.name,
        limit: upload.declaredSize, actual: upload.offset)
    }
    switch upload.state {
    case .judged, .publishing, .published, .quarantined:
      guard upload.verdict != nil else {
        throw MemQError(
          .invalidArgument, "a \(upload.state.name) put has a verdict", subject: upload.name)
      }
    case .open, .sealed, .abandoned: break
    }
    guard upload.state != .published || upload.recordOffset >= .zero else {
      throw MemQError(
        .invalidArgument, "a published file has the offset of its record", subject: upload.name)
    }
  }

  /// What a step may not change.
  private static func checkStep(
    from old: UploadRecord, to next: UploadRecord
  ) throws(MemQError) {
    func refuse(_ what: String) -> MemQError {
      MemQError(.invalidArgument, what, subject: old.name)
    }
    guard next.topic == old.topic, next.name == old.name,
      next.declaredSize == old.declaredSize
    else { throw refuse("topic, name and declared size of a put stay") }
    guard next.state == .abandoned || next.offset >= old.offset else {
      throw refuse("a put's bytes don't get fewer")
    }
    if old.state != .open, next.state != .abandoned {
      guard next.offset == old.offset, next.sha256 == old.sha256, next.bodyKey == old.bodyKey
      else { throw refuse("size, digest and place of a sealed put stay") }
    }
    // A released file keeps the verdict it was quarantined for; anything else infected goes into quarantine.
    let isJudging = old.state == .sealed && next.state == .judged
    guard !isJudging || next.verdict?.kind != .infected else {
      throw refuse("an infected put goes into quarantine")
    }
    guard
      [.open, .sealed].contains(old.state) || next.state == .abandoned
        || next.verdict == old.verdict
    else { throw refuse("a verdict stays") }
    guard old.state != .publishing || next.partition == old.partition else {
      throw refuse("the partition of a record being appended stays")
    }
  }
}

/// - Throws: `.fileNameInvalid`.
public func checkFileName(_ name: String) throws(MemQError) {
  let size = name.utf8.count
  guard size >= 1, size <= Limits.fileNameBytesMax else {
    throw MemQError(
      .fileNameInvalid, "a file's name has 1 to 1,024 bytes", subject: String(name.prefix(100)),
      limit: Int64(Limits.fileNameBytesMax), actual: Int64(size))
  }
  var isLegal = !name.utf8.contains(0)
  for part in name.utf8.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false) {
    if part.isEmpty || part.elementsEqual(".".utf8) || part.elementsEqual("..".utf8) {
      isLegal = false
    }
  }
  guard isLegal else {
    throw MemQError(
      .fileNameInvalid,
      "a file's name has no NUL, no empty, \".\" or \"..\" part, and no \"/\" at an end",
      subject: name)
  }
}

private func checkTexts(_ upload: UploadRecord) throws(MemQError) {
  func check(_ what: String, _ size: Int, _ limit: Int) throws(MemQError) {
    guard size <= limit else {
      throw MemQError(
        .invalidArgument, "too long", subject: "\(what) of \(upload.name)", limit: Int64(limit),
        actual: Int64(size))
    }
  }
  try check("content type", upload.contentType.utf8.count, FileLimits.contentTypeBytesMax)
  try check("body key", upload.bodyKey.utf8.count, FileLimits.bodyKeyBytesMax)
  try check("reason", upload.reason.utf8.count, FileLimits.reasonBytesMax)
  try check("digest state", upload.digestState.count, FileLimits.digestStateBytes)
  try check("attributes", upload.attributes.count, FileLimits.attributesMax)
  for (name, value) in upload.attributes {
    try check("attribute", max(name.utf8.count, value.utf8.count), FileLimits.attributeBytesMax)
  }
}
