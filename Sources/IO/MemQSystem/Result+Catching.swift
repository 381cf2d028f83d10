// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

extension Result where Failure == MemQError, Success: Sendable {
  /// What an asynchronous call gives or throws. Runs in the caller's isolation.
  @inlinable
  public init(
    isolation: isolated (any Actor)? = #isolation,
    _ body: () async throws(MemQError) -> Success
  ) async {
    do throws(MemQError) {
      self = .success(try await body())
    } catch {
      self = .failure(error)
    }
  }
}
