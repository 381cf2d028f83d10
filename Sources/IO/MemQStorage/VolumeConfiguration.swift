// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog
public import MemQModel

extension Volume {
  /// Where a volume is and how it behaves. Sizes in bytes.
  public struct Configuration: Sendable {
    /// The volume's own folder; made when missing.
    public var path: String
    public var clusterID: ClusterID
    /// The identity of a volume that this open makes; nil: a random one. One that is there keeps its own.
    public var volumeID: VolumeID?
    /// The cluster's, as metadata states it. A volume refuses to be opened by a lower one, or by another of the same number.
    public var incarnation: Incarnation
    public var incarnationID: UniqueID
    /// Of each segment file; fixed when the volume is made, later values are passed over. 64 KiB to 1 GiB, whole 4 KiB blocks. 256 MiB:
    /// seconds of a disk's bandwidth, so its footer, checkpoint and three lone syncs cost nothing.
    public var segmentBytes: Int64 = 256 << 20
    /// One group commit. 4 MiB: about 4 ms of an SSD's bandwidth.
    public var groupBytesMax = 4 << 20
    /// Accepted and not yet durable; appends beyond are refused, retriable. At most two segments count.
    public var pendingBytesMax = 64 << 20
    /// Batches just written, kept for reading; what isn't durable yet is kept beyond it.
    public var tailCacheBytes = 64 << 20
    /// Footers of sealed segments, kept for reading.
    public var footerCacheBytes = 32 << 20
    /// What the volume may take of its file system; nil: all of it. At least 4 segments.
    public var capacityBytes: Int64?
    /// See `LogConfiguration.rollIdle`.
    public var rollIdle: Duration = .seconds(1)
    /// See `LogConfiguration.markIdle`.
    public var markIdle: Duration = .milliseconds(20)
    /// What the cleaner copies per second to make room, four times that where room runs out. 32 MiB: a small part of an SSD's
    /// bandwidth. Nil: no limit.
    public var carryBytesPerSecond: Int? = 32 << 20
    /// Threads that read; appends have their own. 2 keep one SSD busy with 4 MiB reads.
    public var readThreads = 2
    /// Threads that read far behind the log's end. They give way to all others: 1 keeps catching up from crowding out appends.
    public var catchUpThreads = 1
    /// What is read ahead of sequential readers, together. 16 MiB: four readers' 4 MiB.
    public var readAheadBytes = 16 << 20

    /// How what is written gets to the disk.
    public var writes: WritePath = .cached

    /// A disk that has not answered for so long is called stalled: see `Volume.stalledFor`. No disk that works takes as long, whatever it
    /// has to do.
    public var stallAfter: Duration = .seconds(10)

    /// For a repair: what can't be told any more is no reason not to open.
    package var acceptsLoss = false

    public init(
      path: String, clusterID: ClusterID, incarnation: Incarnation = .zero,
      incarnationID: UniqueID = .zero
    ) {
      self.path = path
      self.clusterID = clusterID
      self.incarnation = incarnation
      self.incarnationID = incarnationID
    }

    /// - Throws: `.configurationInvalid` with the value's name, its limit and what it is.
    public func validate() throws(MemQError) {
      func check(
        _ name: String, _ value: Int64, _ range: ClosedRange<Int64>
      ) throws(MemQError) {
        guard !range.contains(value) else { return }
        throw MemQError(
          .configurationInvalid, "\(name) must be \(range.lowerBound) to \(range.upperBound)",
          subject: self.path,
          limit: value < range.lowerBound ? range.lowerBound : range.upperBound, actual: value)
      }
      try check(
        "segmentBytes", self.segmentBytes, LogFormat.segmentBytesMin...LogFormat.segmentBytesMax)
      guard self.segmentBytes % Int64(LogFormat.blockBytes) == 0 else {
        throw MemQError(
          .configurationInvalid, "segmentBytes must be whole blocks of \(LogFormat.blockBytes)",
          subject: self.path, actual: self.segmentBytes)
      }
      try check("groupBytesMax", Int64(self.groupBytesMax), 4_096...(256 << 20))
      try check("pendingBytesMax", Int64(self.pendingBytesMax), 64 << 10...(4 << 30))
      try check("tailCacheBytes", Int64(self.tailCacheBytes), 0...(1 << 40))
      try check("footerCacheBytes", Int64(self.footerCacheBytes), 0...(1 << 40))
      if let rate = self.carryBytesPerSecond {
        try check("carryBytesPerSecond", Int64(rate), 64 << 10...(1 << 40))
      }
      try check("readThreads", Int64(self.readThreads), 1...64)
      try check("catchUpThreads", Int64(self.catchUpThreads), 1...64)
      try check("readAheadBytes", Int64(self.readAheadBytes), 0...(1 << 40))
      guard let capacity = self.capacityBytes else { return }
      try check("capacityBytes", capacity, (4 * self.segmentBytes)...Int64.max)
    }

    func log(segmentBytes: Int64) -> LogConfiguration {
      var log = LogConfiguration()
      log.groupBytesMax = self.groupBytesMax
      log.pendingBytesMax = Int(min(Int64(self.pendingBytesMax), 2 * segmentBytes))
      log.earlyWriteBytes = min(log.earlyWriteBytes, self.groupBytesMax / 4)
      log.markIdle = self.markIdle
      log.rollIdle = self.rollIdle
      log.carryBytesPerSecond = self.carryBytesPerSecond
      log.carryGroupBytes = min(log.carryGroupBytes, self.groupBytesMax)
      log.capacitySegments = self.capacityBytes.map { Int($0 / segmentBytes) }
      return log
    }
  }
}
