// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Checks of values that a program's configuration got from elsewhere than its keys, under the keys' names.
public enum ValueRange {
  /// - Throws: `.configurationInvalid` naming the key, the bound that was broken and the value.
  public static func check(
    _ key: String, _ value: some BinaryInteger, _ range: ClosedRange<Int64>
  ) throws(MemQError) {
    let value = Int64(clamping: value)
    guard range.contains(value) else {
      throw MemQError(
        .configurationInvalid, "allowed: \(range.lowerBound) to \(range.upperBound)", subject: key,
        limit: value < range.lowerBound ? range.lowerBound : range.upperBound, actual: value)
    }
  }

  /// The error's numbers are milliseconds.
  ///
  /// - Throws: `.configurationInvalid` naming the key, the bound that was broken and the value.
  public static func check(
    _ key: String, _ value: Duration, _ range: ClosedRange<Duration>
  ) throws(MemQError) {
    guard range.contains(value) else {
      throw MemQError(
        .configurationInvalid,
        "allowed: \(TimeSpan(range.lowerBound)) to \(TimeSpan(range.upperBound))", subject: key,
        limit: (value < range.lowerBound ? range.lowerBound : range.upperBound).milliseconds,
        actual: value.milliseconds)
    }
  }
}
