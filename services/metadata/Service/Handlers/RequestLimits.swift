// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Refuses a request that names more things than one may.
///
/// - Throws: `.invalidArgument` with limit and actual.
func checkCount(
  of items: some Collection, _ what: String, in field: String, atMost limit: Int
) throws(MemQError) {
  guard items.count <= limit else {
    throw MemQError(
      .invalidArgument, "too many \(what) in one request", subject: field, limit: Int64(limit),
      actual: Int64(items.count))
  }
}
