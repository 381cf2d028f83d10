// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// When, and how often, a failed call is tried again. Only for calls that may run twice.
///
/// Beside it each channel has a budget: failures use it up, ten successes earn one failure back, and below half there are no retries, so that a
/// server in trouble does not get a multiple of its calls.
public struct RPCRetryPolicy: Sendable {
  /// With the first one; at most 5, what is above counts as 5.
  public var attemptsMax = 3
  /// Before the second attempt; each further wait is `multiplier` times as long, up to `backoffMax`.
  public var backoffInitial: Duration = .milliseconds(25)
  public var backoffMax: Duration = .seconds(1)
  public var multiplier = 2.0
  /// Waits differ by up to this part of them, both ways.
  public var jitter = 0.2
  /// Statuses that may be followed by another attempt.
  public var codes: Set<RPCCode> = [.unavailable]
  /// False: a status with details is an answer of the service itself and final.
  public var retriesDetailed = true

  public init() {}

  /// Repeats calls that failed on their way to a service.
  public static let onTheWay: RPCRetryPolicy = {
    var policy = RPCRetryPolicy()
    policy.retriesDetailed = false
    return policy
  }()

  /// Where a default would retry, and should not.
  public static let never: RPCRetryPolicy = {
    var policy = RPCRetryPolicy()
    policy.attemptsMax = 1
    return policy
  }()
}

/// What a server says of further attempts of a call it refuses.
public enum RPCPushback: Sendable, Equatable {
  /// Not before so many milliseconds.
  case after(milliseconds: Int)
  case never

  /// Anything but a number that is not negative means never.
  init(_ text: UnsafeBufferPointer<UInt8>) {
    guard let value = Int32(String(decoding: text, as: UTF8.self)), value >= 0 else {
      self = .never
      return
    }
    self = .after(milliseconds: Int(value))
  }

  var text: String {
    switch self {
    case .after(let milliseconds): String(max(0, milliseconds))
    case .never: "-1"
    }
  }
}
