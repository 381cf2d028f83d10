// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Decides which objects hold nothing that anybody may still read.
public enum CollectionPlanner {
  /// What is known of one partition, as of a moment after the objects were listed.
  public enum LogStart: Hashable, Sendable {
    /// It exists, but no leader told.
    case unknown
    /// Records below are gone.
    case at(Offset)
  }

  /// True when each run lies wholly below its partition's log start, or its topic is deleted.
  ///
  /// - Parameter partitions: all of the group that exist. One that is not among them is gone for ever: ids are never
  ///   used again, and the object was announced before they were listed.
  public static func isDead(
    _ footer: ObjectFooter, _ partitions: SortedMap<TopicPartition, LogStart>
  ) -> Bool {
    footer.runs.allSatisfy { run in
      switch partitions[run.partition] {
      case nil: true
      case .unknown: false
      case .at(let logStart): run.endOffset <= logStart
      }
    }
  }
}
