// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
import MemQAPI
public import MemQMetadata
public import MemQModel
public import MemQSystem
public import NIOCore
import SwiftProtobuf
import Synchronization

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// The store of several metadata instances: etcd, version 3.4 or newer, by its own gRPC API.
///
/// Every operation has a deadline and is tried again, on the next member, while it has time. A transaction whose outcome is unknown
/// is settled before anything else is said of it (``EtcdSlot``). Revisions are etcd's: whoever else writes there raises them, too.
public final class EtcdStore: MetadataStore {
  private let configuration: Configuration
  private let client: EtcdClient
  private let keys: EtcdKeyspace
  private let slots: EtcdSlots
  private let logger: Logger
  /// What this store's transactions are known by in their slots.
  private let name: [UInt8]
  private let sequence = Atomic<UInt64>(0)
  private let latest = Atomic<Int64>(0)
  private let onCommit: @Sendable () -> Void

  // MARK: Opening

  /// Connects, and waits until etcd answers.
  ///
  /// - Parameter onCommit: told of each transaction that etcd has made durable.
  /// - Throws: `.configurationInvalid`; `.unavailable` when nobody answered in time.
  public static func open(
    _ configuration: Configuration, group: any EventLoopGroup,
    entropy: any Entropy = SystemEntropy(),
    logger: Logger, onCommit: @escaping @Sendable () -> Void = {}
  ) async throws(MemQError) -> EtcdStore {
    try configuration.validate()
    let store = EtcdStore(configuration, group, entropy, logger, onCommit)
    do throws(MemQError) {
      let status = try await store.client.call(
        EtcdMethods.status, EtcdStatusRequest(), within: configuration.openTimeout)
      // Asks all of them: a member without the others knows its status, but nothing of the keys.
      _ = try await store.read([StoreKey("i/c")], within: configuration.openTimeout)
      logger.info(
        "Metadata is kept in etcd",
        metadata: [
          "endpoints": "\(configuration.endpoints.joined(separator: ","))",
          "prefix": "\(configuration.prefix)", "version": "\(status.version)",
          "bytes": "\(status.dbSize)", "revision": "\(store.revision)",
        ])
      for error in status.errors {
        logger.warning("etcd has a problem", metadata: ["error": "\(error)"])
      }
      return store
    } catch {
      await store.close()
      throw error
    }
  }

  private init(
    _ configuration: Configuration, _ group: any EventLoopGroup, _ entropy: any Entropy,
    _ logger: Logger, _ onCommit: @escaping @Sendable () -> Void
  ) {
    self.configuration = configuration
    self.client = EtcdClient(configuration, group: group, logger: logger)
    self.keys = EtcdKeyspace(prefix: configuration.prefix, store: configuration.name)
    self.slots = EtcdSlots(
      count: configuration.transactionsMax, waitingMax: configuration.waitingTransactionsMax)
    self.logger = logger
    self.name = (0..<2).flatMap { _ in Self.bytes(entropy.next()) }
    self.onCommit = onCommit
  }

  private static func bytes(_ number: UInt64) -> [UInt8] {
    (0..<8).map { UInt8(truncatingIfNeeded: number >> (56 - 8 * $0)) }
  }

  public var revision: Revision { Revision(self.latest.load(ordering: .relaxed)) }

  private func saw(_ header: EtcdResponseHeader) {
    self.latest.max(header.revision, ordering: .relaxed)
  }

  public func close() async {
    await self.slots.close()
    await self.client.close()
  }

  // MARK: Reading

  public func get(_ keys: [StoreKey]) async throws(MemQError) -> [StoredEntry?] {
    precondition(keys.count <= StoreLimits.keysPerGetMax, "\(keys.count) keys in one reading")
    guard !keys.isEmpty else { return [] }
    return try await self.read(keys, within: self.configuration.operationTimeout)
  }

  private func read(
    _ keys: [StoreKey], within limit: Duration, at revision: Int64 = 0
  ) async throws(MemQError) -> [StoredEntry?] {
    do throws(MemQError) {
      return try await self.readAtOnce(keys, within: limit, at: revision).entries
    } catch {
      guard error.code == .messageTooLarge, keys.count > 1 else { throw error }
      // Large values: in halves, of one revision.
      let half = keys.count / 2
      let first = try await self.halves(Array(keys.prefix(half)), at: revision)
      return first.entries
        + (try await self.read(Array(keys.dropFirst(half)), within: limit, at: first.revision))
    }
  }

  private func halves(
    _ keys: [StoreKey], at revision: Int64
  ) async throws(MemQError) -> (entries: [StoredEntry?], revision: Int64) {
    // The revision that later halves read at.
    var at = revision
    if at == 0 {
      at = try await self.readAtOnce([keys[0]], within: self.configuration.operationTimeout, at: 0)
        .revision
    }
    let entries = try await self.read(keys, within: self.configuration.operationTimeout, at: at)
    return (entries, at)
  }

  private func readAtOnce(
    _ keys: [StoreKey], within limit: Duration, at revision: Int64
  ) async throws(MemQError) -> (entries: [StoredEntry?], revision: Int64) {
    let request = EtcdTxnRequest.with {
      $0.success = keys.map { key in
        .with {
          $0.requestRange = .with {
            $0.key = self.keys.key(key)
            $0.revision = revision
          }
        }
      }
    }
    let answer = try await self.client.call(EtcdMethods.txn, request, within: limit)
    self.saw(answer.header)
    let entries = answer.responses.map { response in
      response.responseRange.kvs.first.flatMap(self.entry)
    }
    return (entries, answer.header.revision)
  }

  private func entry(_ pair: EtcdKeyValue) -> StoredEntry? {
    self.keys.storeKey(pair.key).map {
      StoredEntry(key: $0, value: Array(pair.value), revision: Revision(pair.modRevision))
    }
  }

  /// Pages of one revision, as large as the answers may be.
  public func range(_ range: KeyRange, limit: Int) async throws(MemQError) -> StoreReading {
    var entries: [StoredEntry] = []
    var rest = range
    var revision: Int64 = 0
    var pageKeys = self.configuration.pageKeys
    while true {
      let count = min(pageKeys, limit - entries.count)
      let page: EtcdRangeResponse
      do throws(MemQError) {
        page = try await self.page(rest, count, at: revision)
      } catch {
        guard error.code == .messageTooLarge, count > 1 else { throw error }
        pageKeys = max(count / 4, 1)
        continue
      }
      if revision == 0 { revision = page.header.revision }
      entries += page.kvs.compactMap(self.entry)
      guard page.more, entries.count < limit, let last = entries.last else {
        return StoreReading(
          entries: entries, hasMore: page.more, revision: Revision(revision))
      }
      rest = range.after(last.key)
    }
  }

  private func page(
    _ range: KeyRange, _ count: Int, at revision: Int64
  ) async throws(MemQError) -> EtcdRangeResponse {
    let bounds = self.keys.bounds(range)
    let page = try await self.client.call(
      EtcdMethods.range,
      .with {
        $0.key = bounds.lower
        $0.rangeEnd = bounds.upper
        $0.limit = Int64(max(count, 1))
        $0.revision = revision
      })
    self.saw(page.header)
    return page
  }

  // MARK: Transactions

  public func commit(_ transactions: [Transaction]) async throws(MemQError) -> [CommitVerdict] {
    for transaction in transactions { try transaction.checkSize() }
    guard !self.client.isClosed else { throw EtcdClient.closed }
    // Who waits may go away; what was begun is finished, and known to be.
    let work = Task.detached { () -> Result<[CommitVerdict], MemQError> in
      do throws(MemQError) {
        return .success(try await self.run(transactions))
      } catch {
        return .failure(error)
      }
    }
    return try await work.value.get()
  }

  private func run(_ transactions: [Transaction]) async throws(MemQError) -> [CommitVerdict] {
    var verdicts: [CommitVerdict] = []
    for transaction in transactions {
      switch verdicts.last {
      case .conflict, .skipped: verdicts.append(.skipped)
      case .committed, nil: verdicts.append(try await self.run(transaction))
      }
    }
    return verdicts
  }

  private func run(_ transaction: Transaction) async throws(MemQError) -> CommitVerdict {
    var slot = try await self.slots.take()
    defer { self.slots.give(slot) }
    var pace = EtcdPace(self.configuration, self.configuration.operationTimeout)
    while true {
      let mark = self.mark()
      let request = self.request(transaction, slot, mark)
      do throws(EtcdFailure) {
        let answer = try await self.client.attempt(
          EtcdMethods.txn, request, timeout: pace.attemptTimeout)
        self.saw(answer.header)
        if answer.succeeded {
          slot.revision = answer.header.revision
          self.onCommit()
          return .committed(Revision(answer.header.revision))
        }
        let found = answer.responses.last?.responseRange.kvs.first?.modRevision ?? 0
        if found == slot.revision { return .conflict(Revision(answer.header.revision)) }
        // An earlier life has used the slot. Whether a condition fails, too, shows the next time.
        slot.revision = found
      } catch {
        switch error {
        // Under a lease that has ended nothing is put.
        case .refused(let reason) where reason.code == .leaseLost: return .conflict(self.revision)
        case .refused(let reason): throw reason
        case .busy(let reason):
          guard await pace.wait() else { throw reason }
        case .unknown(let reason):
          if let done = try await self.settle(&slot, mark, &pace) {
            self.onCommit()
            return .committed(done)
          }
          guard await pace.wait() else { throw reason }
        }
      }
    }
  }

  private func mark() -> Data {
    let number = self.sequence.add(1, ordering: .relaxed).newValue
    return Data(self.name + Self.bytes(number))
  }

  private func request(
    _ transaction: Transaction, _ slot: EtcdSlot, _ mark: Data
  ) -> EtcdTxnRequest {
    var request = EtcdTxnRequest()
    for operation in transaction.operations {
      switch operation {
      case .put(let key, let value, let lease):
        request.success.append(self.put(self.keys.key(key), Data(value), lease))
      case .delete(let key):
        request.success.append(
          .with { $0.requestDeleteRange = .with { $0.key = self.keys.key(key) } })
      }
    }
    request.success.append(self.put(self.keys.slot(slot.number), mark, nil))
    request.compare = transaction.conditions.map { condition in
      switch condition {
      case .revision(let key, let revision):
        Self.compare(self.keys.key(key), .equal, revision.rawValue)
      case .exists(let key): Self.compare(self.keys.key(key), .notEqual, 0)
      }
    }
    request.compare.append(Self.compare(self.keys.slot(slot.number), .equal, slot.revision))
    request.failure = [self.readSlot(slot)]
    return request
  }

  private func put(_ key: Data, _ value: Data, _ lease: StoreLeaseID?) -> EtcdRequestOp {
    .with {
      $0.requestPut = .with {
        $0.key = key
        $0.value = value
        $0.lease = lease?.rawValue ?? 0
      }
    }
  }

  private func readSlot(_ slot: EtcdSlot) -> EtcdRequestOp {
    .with { $0.requestRange = .with { $0.key = self.keys.slot(slot.number) } }
  }

  private static func compare(
    _ key: Data, _ result: EtcdCompare.CompareResult, _ revision: Int64
  ) -> EtcdCompare {
    .with {
      $0.key = key
      $0.target = .mod
      $0.result = result
      $0.modRevision = revision
    }
  }

  /// Finds out what became of a transaction: its revision; nil: it has not happened and never will.
  ///
  /// - Throws: `.outcomeUnknown` when etcd did not answer in time.
  private func settle(
    _ slot: inout EtcdSlot, _ mark: Data, _ pace: inout EtcdPace
  ) async throws(MemQError) -> Revision? {
    let bar = mark + [0]
    let request = EtcdTxnRequest.with {
      $0.compare = [Self.compare(self.keys.slot(slot.number), .equal, slot.revision)]
      $0.success = [self.put(self.keys.slot(slot.number), bar, nil)]
      $0.failure = [self.readSlot(slot)]
    }
    while true {
      do throws(EtcdFailure) {
        let answer = try await self.client.attempt(
          EtcdMethods.txn, request, timeout: pace.attemptTimeout)
        self.saw(answer.header)
        if answer.succeeded {
          slot.revision = answer.header.revision
          return nil
        }
        let found = answer.responses.first?.responseRange.kvs.first
        slot.revision = found?.modRevision ?? 0
        switch found?.value {
        case mark: return Revision(slot.revision)
        // The bar of an earlier round.
        case bar: return nil
        default:
          throw .refused(
            MemQError(
              .outcomeUnknown, "another store used the slot of a transaction while etcd was away"))
        }
      } catch {
        if case .refused(let reason) = error { throw reason }
        guard await pace.wait() else {
          throw MemQError(
            .outcomeUnknown, "etcd does not say what became of a transaction: \(error.error)")
        }
      }
    }
  }

  // MARK: Watching

  public func watch(
    _ range: KeyRange, after revision: Revision
  ) throws(MemQError) -> any StoreWatch {
    guard !self.client.isClosed else { throw EtcdClient.closed }
    return EtcdWatch(
      self.client, self.keys, range, after: revision, backoff: self.configuration.backoff,
      logger: self.logger)
  }

  /// Of all who use this etcd.
  public func compact(through revision: Revision) async throws(MemQError) {
    do throws(MemQError) {
      _ = try await self.client.call(
        EtcdMethods.compact, .with { $0.revision = revision.rawValue })
    } catch {
      // Somebody was faster.
      guard error.code != .revisionCompacted else { return }
      throw error
    }
  }

  // MARK: Leases

  /// Whole seconds, rounded up; etcd makes short ones about as long as two elections of its own.
  public func grantLease(_ ttl: Duration) async throws(MemQError) -> StoreLeaseID {
    // Its number is ours, so that a second attempt finds what a first one made.
    let id = Int64(SystemEntropy().next() >> 2) | 1
    let seconds = (ttl.milliseconds + 999) / 1_000
    do throws(MemQError) {
      _ = try await self.client.call(
        EtcdMethods.leaseGrant,
        .with {
          $0.id = id
          $0.ttl = max(seconds, 1)
        })
    } catch {
      guard error.code == .leaseLost else { throw error }
    }
    return StoreLeaseID(id)
  }

  public func renewLease(_ id: StoreLeaseID) async throws(MemQError) {
    var pace = EtcdPace(self.configuration, self.configuration.operationTimeout)
    while true {
      do throws(MemQError) {
        return try await self.renewOnce(id, pace.attemptTimeout)
      } catch {
        guard error.code != .leaseLost, !Task.isCancelled, !self.client.isClosed else {
          throw error
        }
        guard await pace.wait() else { throw error }
      }
    }
  }

  private func renewOnce(_ id: StoreLeaseID, _ timeout: Duration) async throws(MemQError) {
    let (stream, member) = try await self.client.open(EtcdMethods.leaseKeepAlive)
    let timer = Task {
      try await Task.sleep(for: timeout)
      stream.cancel()
    }
    defer {
      timer.cancel()
      stream.cancel()
    }
    do throws(MemQError) {
      try await stream.send(.with { $0.id = id.rawValue })
      guard let answer = try await stream.responses.next() else {
        throw MemQError(.unavailable, "etcd did not renew a lease")
      }
      self.saw(answer.header)
      guard answer.ttl > 0 else {
        throw MemQError(.leaseLost, "the lease has ended", subject: "lease \(id.rawValue)")
      }
    } catch {
      guard error.code != .leaseLost else { throw error }
      self.client.streamFailed(member, MemQError(.unavailable, error.message))
      throw MemQError(.unavailable, "etcd did not renew a lease: \(error)")
    }
  }

  public func revokeLease(_ id: StoreLeaseID) async throws(MemQError) {
    do throws(MemQError) {
      _ = try await self.client.call(EtcdMethods.leaseRevoke, .with { $0.id = id.rawValue })
    } catch {
      guard error.code != .leaseLost else { return }
      throw error
    }
  }

  /// etcd does that itself.
  public func expireLeases() async throws(MemQError) {}
}
