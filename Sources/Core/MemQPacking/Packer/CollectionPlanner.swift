// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Decides which objects hold nothing that anybody may still read.
public enum CollectionPlanner {
  /// What is known of one partition, as of a moment after the objects were listed.
  public struct Standing: Hashable, Sendable {
    /// Records below are gone; nil: no leader told.
    public var logStart: Offset?
    /// Records older than this may go by the topic's `retention.ms`; nil: none may.
    public var expiresBefore: Timestamp?
    public init(logStart: Offset?, expiresBefore: Timestamp?) {
      self.logStart = logStart
      self.expiresBefore = expiresBefore
    }
  }

  /// True when of each run the topic is deleted, or all of it lies below the log start and is past its retention.
  ///
  /// The log start alone proves nothing: a replica that was made new begins at the uploaded offset and says so, while
  /// everything before it lives in objects only.
  ///
  /// - Parameter partitions: all of the group that exist. One that is not among them is gone for ever: ids are never
  ///   used again, and the object was announced before they were listed.
  public static func isDead(
    _ footer: ObjectFooter, _ partitions: SortedMap<TopicPartition, Standing>
  ) -> Bool {
    footer.runs.allSatisfy { run in
      guard let standing = partitions[run.partition] else { return true }
      guard let logStart = standing.logStart, let limit = standing.expiresBefore else {
        return false
      }
      return run.endOffset <= logStart && run.maxTimestamp < limit
    }
  }
}
