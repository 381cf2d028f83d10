// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// One key with its value and the revision that wrote it.
public struct StoredEntry: Hashable, Sendable {
  public var key: StoreKey
  public var value: [UInt8]
  public var revision: Revision

  public init(key: StoreKey, value: [UInt8], revision: Revision) {
    self.key = key
    self.value = value
    self.revision = revision
  }
}

/// A lease of the store: keys put under it vanish when it ends.
public struct StoreLeaseID: Hashable, Sendable {
  public let rawValue: Int64
  public init(_ rawValue: Int64) { self.rawValue = rawValue }
}

/// What must hold for a transaction to take effect.
public enum Condition: Hashable, Sendable {
  /// The key was last written at this revision; `.zero`: it does not exist.
  case revision(StoreKey, Revision)
  case exists(StoreKey)

  public static func absent(_ key: StoreKey) -> Condition { .revision(key, .zero) }
}

public enum StoreOperation: Hashable, Sendable {
  case put(StoreKey, [UInt8], lease: StoreLeaseID? = nil)
  /// Nothing happens when the key does not exist.
  case delete(StoreKey)

  public var key: StoreKey {
    switch self {
    case .put(let key, _, _), .delete(let key): key
    }
  }
}

/// All operations, when all conditions hold; otherwise nothing. No key stands in two operations.
public struct Transaction: Hashable, Sendable {
  public private(set) var conditions: [Condition]
  public private(set) var operations: [StoreOperation]

  public init(_ conditions: [Condition] = [], _ operations: [StoreOperation] = []) {
    self.conditions = conditions
    self.operations = operations
  }

  public mutating func require(_ condition: Condition) {
    if !self.conditions.contains(condition) { self.conditions.append(condition) }
  }
  public mutating func put(_ key: StoreKey, _ value: [UInt8]) {
    self.operations.append(.put(key, value))
  }
  public mutating func delete(_ key: StoreKey) { self.operations.append(.delete(key)) }

  public var isEmpty: Bool { self.operations.isEmpty }

  /// Bytes of what it puts.
  var byteCount: Int {
    self.operations.reduce(0) { sum, operation in
      guard case .put(let key, let value, _) = operation else { return sum }
      return sum + key.bytes.count + value.count
    }
  }

  /// Conditions of a transaction that a plan makes: one is left for the right to write, which is compared with each.
  public static let plannedConditionsMax = Limits.transactionOperationsMax - 1

  /// Whether another one, of other keys, fits in.
  func hasRoom(for other: Transaction, bytesMax: Int) -> Bool {
    self.conditions.count + other.conditions.count <= Self.plannedConditionsMax
      && self.operations.count + other.operations.count <= Limits.transactionOperationsMax
      && self.byteCount + other.byteCount <= bytesMax
  }

  /// Both or neither.
  mutating func take(_ other: Transaction) {
    for condition in other.conditions { self.require(condition) }
    self.operations += other.operations
  }

  /// Both lists are bounded by themselves, as in etcd.
  public func checkSize() throws(MemQError) {
    let size = max(self.conditions.count, self.operations.count)
    guard size <= Limits.transactionOperationsMax else {
      throw MemQError(
        .transactionTooLarge, "too many operations in one metadata transaction",
        limit: Int64(Limits.transactionOperationsMax), actual: Int64(size))
    }
  }
}

/// How a transaction ended.
public enum CommitVerdict: Hashable, Sendable {
  /// Durable, at this revision.
  case committed(Revision)
  /// A condition did not hold at this revision; nothing was changed.
  case conflict(Revision)
  /// An earlier one of the same list met a conflict.
  case skipped
}

/// One key's change, as a watch tells it.
public struct StoreChange: Hashable, Sendable {
  public var key: StoreKey
  /// Nil: deleted.
  public var value: [UInt8]?
  public var revision: Revision

  public init(key: StoreKey, value: [UInt8]?, revision: Revision) {
    self.key = key
    self.value = value
    self.revision = revision
  }
}

/// What a command wants written, in order, and what it answers once that is durable.
public struct Plan<Outcome: Sendable>: Sendable {
  /// Each stands for itself: when a later one meets a conflict, the earlier ones stay and the command is asked again.
  public var transactions: [Transaction]
  public var outcome: Outcome

  public init(_ transactions: [Transaction] = [], outcome: Outcome) {
    self.transactions = transactions.filter { !$0.isEmpty }
    self.outcome = outcome
  }
}
