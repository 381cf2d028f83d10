// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Safety rules the simulator switches off, one by one, to prove that its checks notice. Nothing outside this package can set
/// them.
package struct MetadataWeaknesses: OptionSet, Hashable, Sendable {
  package let rawValue: Int
  package init(rawValue: Int) { self.rawValue = rawValue }

  /// A proposal's members may be of an earlier life of their nodes.
  package static let ignoreMemberEpochs = MetadataWeaknesses(rawValue: 1 << 1)
  /// A node's earlier life is not ended before the next begins.
  package static let skipFencing = MetadataWeaknesses(rawValue: 1 << 2)
  /// Who left the ISR stays eligible when the ISR alone may commit again.
  package static let keepEligible = MetadataWeaknesses(rawValue: 1 << 3)
  /// Any replica may be elected, at no price.
  package static let electAnyReplica = MetadataWeaknesses(rawValue: 1 << 4)
  /// The leader epoch stays when another replica is elected.
  package static let keepLeaderEpoch = MetadataWeaknesses(rawValue: 1 << 5)
  /// A new member's node may be fenced, or register anew, between the check and the write.
  package static let joinUnconditionally = MetadataWeaknesses(rawValue: 1 << 6)
  /// Of replicas that all restarted uncleanly the first that answers is elected.
  package static let electFirstAnswer = MetadataWeaknesses(rawValue: 1 << 7)
}
