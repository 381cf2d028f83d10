// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Safety rules that a test switches off, to show that the model check notices. Empty outside of tests.
package struct LogMutations: OptionSet, Sendable {
  package let rawValue: Int
  package init(rawValue: Int) { self.rawValue = rawValue }

  /// After a crash nothing states where the tail was cut.
  package static let cutsWithoutSealing = LogMutations(rawValue: 1)
  /// Recovery takes any damage of the tail for its end.
  package static let ignoresDurableMark = LogMutations(rawValue: 2)
  /// A carried copy counts as it was planned, whatever was truncated meanwhile.
  package static let carriesOverTruncates = LogMutations(rawValue: 4)
  /// Recovery goes by the cold end alone, which has risen again since a truncate.
  package static let ignoresColdCuts = LogMutations(rawValue: 8)
  /// A footer that no segment follows for want of room does not wait for the groups before it.
  package static let sealsUnmarkedWithoutSlot = LogMutations(rawValue: 16)
  /// Segments go though nothing durable says that what they held is uploaded.
  package static let freesBeforePositions = LogMutations(rawValue: 32)
}
