// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Decides which objects hold nothing that anybody may still read.
public enum CollectionPlanner {
  /// True when of each run the topic is deleted, or all of it lies below the log start.
  ///
  /// - Parameter logStarts: as the cluster states them, of all partitions of the group that exist; nil: not known now. A partition that
  ///   is not among them is gone for ever: ids are never used again, and the object was announced before they were listed.
  public static func isDead(
    _ footer: ObjectFooter, _ logStarts: SortedMap<TopicPartition, Offset?>
  ) -> Bool {
    footer.runs.allSatisfy { run in
      guard let known = logStarts[run.partition] else { return true }
      guard let logStart = known else { return false }
      return run.endOffset <= logStart
    }
  }
}
