// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Metrics
import Synchronization

/// Requests to a store since its start, by how stores bill them.
public struct ObjectStoreRequests: Hashable, Sendable {
  /// PUT, COPY, POST and LIST: the dear ones (S3's class A).
  public var writes: Int64 = 0
  /// GET and HEAD (class B).
  public var reads: Int64 = 0
  /// DELETE: free, counted for the record.
  public var deletes: Int64 = 0

  public init() {}

  /// What is on the bill.
  public var billed: Int64 { self.writes + self.reads }
}

/// Counts requests, here and as metrics.
final class RequestMeter: Sendable {
  enum Kind: String {
    case put, get, head, list, delete
    case createBody = "create_body"
    case part
    case completeBody = "complete_body"
  }

  private let totals = Mutex(ObjectStoreRequests())
  private let store: String

  init(store: String) { self.store = store }

  var requests: ObjectStoreRequests { self.totals.withLock { $0 } }

  func count(_ kind: Kind, bytes: Int64 = 0) {
    self.totals.withLock { totals in
      switch kind {
      case .put, .list, .createBody, .part, .completeBody: totals.writes += 1
      case .get, .head: totals.reads += 1
      case .delete: totals.deletes += 1
      }
    }
    let labels = [("store", self.store), ("operation", kind.rawValue)]
    Metrics.Counter(label: "memq_object_store_requests_total", dimensions: labels).increment()
    guard bytes > 0 else { return }
    Metrics.Counter(label: "memq_object_store_bytes_total", dimensions: labels).increment(by: bytes)
  }

  func failed(_ kind: Kind) {
    let labels = [("store", self.store), ("operation", kind.rawValue)]
    Metrics.Counter(label: "memq_object_store_errors_total", dimensions: labels).increment()
  }
}

/// Numbers from 0 on, one each call.
final class PieceCounter: Sendable {
  private let value = Mutex(0)
  func next() -> Int {
    self.value.withLock { value in
      defer { value += 1 }
      return value
    }
  }
}
