// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Versions of one transaction: each gives a deletion and a body to drop.
private let versionsPerTransaction = 50

/// Copies of record batches that were refused for malware: entries like files', told apart by their media type.
public enum QuarantinedRecords {
  /// Not allowed for files.
  public static let contentType = "application/vnd.memq.refused-records"
}

extension MetadataState {
  // MARK: Quarantine

  /// A person's decision: release sends the put on to be published, otherwise it is abandoned. An audit record stays.
  ///
  /// - Throws: `.quarantineEntryNotFound`, `.invalidArgument`, `.topicDeleted`; `.feature` for the release of records.
  public func resolveQuarantine(
    _ id: UploadID, _ known: Versioned<UploadRecord>?, release: Bool, actor: String,
    reason: String, at now: Timestamp
  ) throws(MemQError) -> Plan<UploadRecord> {
    guard let known, known.value.state == .quarantined else {
      throw MemQError(
        .quarantineEntryNotFound, "no such file in quarantine", subject: "\(id)")
    }
    guard !release || known.value.contentType != QuarantinedRecords.contentType else {
      throw MemQError(
        .feature,
        "refused records are not published by a release: let their producer send them again",
        subject: "\(id)")
    }
    let longest = max(actor.utf8.count, reason.utf8.count)
    guard longest <= FileLimits.reasonBytesMax else {
      throw MemQError(
        .invalidArgument, "actor and reason have at most 1,024 bytes", subject: known.value.name,
        limit: Int64(FileLimits.reasonBytesMax), actual: Int64(longest))
    }
    if release { _ = try self.topic(known.value.topic) }
    var next = known.value
    next.state = release ? .judged : .abandoned
    next.version += 1
    next.updatedAt = now
    next.driver = nil
    if !release { next.reason = reason.isEmpty ? "deleted from quarantine" : reason }
    var transaction = Transaction()
    transaction.require(.revision(.upload(id, .quarantined), known.revision))
    transaction.delete(.upload(id, .quarantined))
    transaction.put(.upload(id, next.state.shelf), next)
    if !release { self.dropBody(of: next, in: &transaction, at: now) }
    transaction.put(
      .audit(now, id),
      AuditRecord(at: now, actor: actor, reason: reason, isRelease: release, upload: known.value))
    return Plan([transaction], outcome: next)
  }

  private func dropBody(
    of upload: UploadRecord, in transaction: inout Transaction, at now: Timestamp
  ) {
    transaction.delete(.uploadBody(upload.id))
    guard !upload.bodyKey.isEmpty else { return }
    transaction.put(.droppingBody(upload.bodyKey), DroppingBodyRecord(since: now))
  }

  // MARK: The end of puts

  /// Gives up a put whatever its step: its topic is deleted, or nobody has sent bytes for long.
  public func abandon(
    _ known: Versioned<UploadRecord>, reason: String, at now: Timestamp
  ) -> Plan<UploadRecord> {
    var next = known.value
    guard next.state.shelf != .done else { return Plan(outcome: next) }
    let from = StoreKey.upload(next.id, next.state.shelf)
    next.state = .abandoned
    next.version += 1
    next.updatedAt = now
    next.reason = reason
    next.driver = nil
    var transaction = Transaction()
    transaction.require(.revision(from, known.revision))
    transaction.delete(from)
    transaction.put(.upload(next.id, .done), next)
    self.dropBody(of: next, in: &transaction, at: now)
    return Plan([transaction], outcome: next)
  }

  /// Forgets puts that are over.
  public func forgetUploads(_ ids: [UploadID]) -> Plan<Int> {
    var transactions: [Transaction] = []
    var current = Transaction()
    for id in ids {
      current.delete(.upload(id, .done))
      if current.operations.count == clearingKeysPerTransaction {
        transactions.append(current)
        current = Transaction()
      }
    }
    return Plan(transactions + [current], outcome: ids.count)
  }

  // MARK: Files

  /// Takes a file out with all its versions; their bodies are to be dropped.
  ///
  /// - Throws: `.fileNotFound`.
  public func removeFile(
    _ topic: TopicID, _ name: String, upTo version: Int64 = .max, latest: Versioned<FileRecord>?,
    earlier: [FileRecord], at now: Timestamp
  ) throws(MemQError) -> Plan<Void> {
    guard let latest else {
      throw MemQError(.fileNotFound, "no such file in the topic", subject: name)
    }
    var transactions: [Transaction] = []
    var current = Transaction([.revision(.file(topic, name), latest.revision)])
    for file in earlier where file.version <= version {
      current.delete(.fileVersion(topic, name, file.version))
      Self.drop(file, in: &current, at: now)
      if current.operations.count >= 2 * versionsPerTransaction {
        transactions.append(current)
        current = Transaction([.revision(.file(topic, name), latest.revision)])
      }
    }
    if latest.value.version <= version {
      current.delete(.file(topic, name))
      Self.drop(latest.value, in: &current, at: now)
    }
    return Plan(transactions + [current], outcome: ())
  }

  /// Takes out files of a deleted topic, latest or earlier ones, as many as one transaction holds.
  public func clearFiles(_ files: [(StoreKey, FileRecord)], at now: Timestamp) -> Plan<Int> {
    var transaction = Transaction()
    for (key, file) in files.prefix(versionsPerTransaction) {
      transaction.delete(key)
      Self.drop(file, in: &transaction, at: now)
    }
    return Plan([transaction], outcome: min(files.count, versionsPerTransaction))
  }

  private static func drop(
    _ file: FileRecord, in transaction: inout Transaction, at now: Timestamp
  ) {
    guard !file.bodyKey.isEmpty else { return }
    transaction.put(.droppingBody(file.bodyKey), DroppingBodyRecord(since: now))
  }

  /// The bytes of a body are gone.
  public func forgetBody(_ key: String) -> Plan<Void> {
    var transaction = Transaction()
    transaction.delete(.droppingBody(key))
    return Plan([transaction], outcome: ())
  }

  /// Takes out keys, a bounded number per transaction.
  public func clear(_ keys: [StoreKey]) -> Plan<Int> {
    var transactions: [Transaction] = []
    var current = Transaction()
    for key in keys {
      current.delete(key)
      if current.operations.count == clearingKeysPerTransaction {
        transactions.append(current)
        current = Transaction()
      }
    }
    return Plan(transactions + [current], outcome: keys.count)
  }
}
