// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Whether a partition takes more of its producers' batches.
public enum PartitionRoom: Hashable, Sendable {
  case open
  /// Near its cap: the producer's answer should wait this long, so that uploads keep up before anything is refused.
  case slowed(Duration)
  /// At its cap: `.partitionQuotaExceeded`, retriable.
  case full(MemQError)
}

extension VolumeCore {
  /// Slowed in the last eighth below the cap, by up to this.
  private static let slowedMax: Duration = .milliseconds(500)

  /// What the partition's cap (`LocalRetention.capBytes`) says to a producer's batch of `byteCount`; other partitions have no part
  /// in it. `open` without a cap, for a partition that holds nothing yet, and for one that isn't here: `append` says what is
  /// wrong then.
  ///
  /// To be asked by a leader before it takes a produced batch; `append` itself takes what it is given.
  public func room(of partition: TopicPartition, for byteCount: Int) -> PartitionRoom {
    guard let index = self.byName[partition], let log = self.logs[index],
      let cap = log.retention.capBytes
    else { return .open }
    let held = log.cappedBytes
    let wanted = held + Int64(FrameHeader.byteCount + byteCount)
    guard wanted <= cap || held == 0 else {
      return .full(
        MemQError(
          .partitionQuotaExceeded,
          log.retention.hasObjectTier
            ? "the partition has as many bytes that are not uploaded as local.retention.bytes allows"
            : "the partition has as many bytes as local.retention.bytes allows",
          subject: partition.description, limit: cap, actual: wanted))
    }
    let band = max(1, cap / 8)
    let beyond = wanted - (cap - band)
    guard beyond > 0, held > 0 else { return .open }
    return .slowed(Self.slowedMax * Double(beyond) / Double(band))
  }

  /// Looks at every partition.
  var partitionsAtCap: Int {
    self.logs.count { log in
      guard let log, let cap = log.retention.capBytes else { return false }
      return log.cappedBytes + Int64(FrameHeader.byteCount) >= cap
    }
  }
}
