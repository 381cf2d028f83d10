// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQRuntime

extension RebalancerNode {
  /// What one rebalancer is told at its start.
  public struct Configuration: Sendable {
    /// Pause between two moves: the cluster settles, and clients find the new leader.
    public var movePause: Duration = .milliseconds(100)
    /// How long one move may take, from the request until the cluster image shows it.
    public var moveTimeout: Duration = .seconds(10)
    /// Failed moves in a row after which a plan is given up: something is wrong with the cluster, not with a partition.
    public var failuresMax = 5

    public init() {}

    /// - Throws: `.configurationInvalid` naming the key.
    public func validate() throws(MemQError) {
      try ValueRange.check("rebalance.move.pause", self.movePause, .zero ... .seconds(600))
      try ValueRange.check(
        "rebalance.move.timeout", self.moveTimeout, .milliseconds(100) ... .seconds(600))
      try ValueRange.check("rebalance.failures.max", self.failuresMax, 1...1_000)
    }
  }
}

extension RebalancerNode.Configuration {
  /// Keys of a rebalancer beyond those every node has.
  public static let keys: [ConfigurationKey] = [
    ConfigurationKey(
      "rebalance.move.pause", .duration, default: "100ms",
      "Pause between two moves; longer disturbs clients less."),
    ConfigurationKey(
      "rebalance.move.timeout", .duration, default: "10s",
      "How long one move may take before it counts as failed."),
    ConfigurationKey(
      "rebalance.failures.max", .integer(1...1_000), default: "5",
      "Failed moves in a row after which a plan is given up."),
  ]

  /// - Throws: `.configurationInvalid` naming the key.
  public init(_ loaded: LoadedConfiguration) throws(MemQError) {
    self.init()
    self.movePause = loaded.duration("rebalance.move.pause")
    self.moveTimeout = loaded.duration("rebalance.move.timeout")
    self.failuresMax = loaded.integer("rebalance.failures.max")
    try self.validate()
  }
}
