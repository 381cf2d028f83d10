// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
public import MemQModel

extension Admin {
  /// By name.
  public func groups(prefix: String = "") async throws(MemQError) -> [GroupInfo] {
    var request = Memq_V1_ListGroupsRequest()
    request.prefix = prefix
    var groups: [GroupInfo] = []
    while true {
      let page = try await self.read(IngestMethods.listGroups, request)
      groups += page.groups.map(GroupInfo.init)
      guard page.more, let last = page.groups.last else { return groups }
      request.after = last.group
    }
  }

  /// One group, with how far behind it is.
  ///
  /// - Throws: `.groupNotFound`.
  public func describeGroup(_ name: String) async throws(MemQError) -> GroupInfo {
    var request = Memq_V1_DescribeGroupRequest()
    request.group = name
    return GroupInfo(try await self.read(IngestMethods.describeGroup, request))
  }

  /// Sets a group's offsets of partitions that no member has. Nobody has read what lies before them: they are stored without a leader epoch.
  ///
  /// - Throws: `.groupNotEmpty`, `.topicNotFound`.
  public func resetGroup(
    _ name: String, to offsets: [(partition: TopicPartition, offset: Offset)]
  ) async throws(MemQError) {
    var request = Memq_V1_CommitOffsetsRequest()
    request.group = name
    request.memberEpoch = -1
    request.offsets = offsets.map { partition, offset in
      var wire = Memq_V1_GroupOffset()
      wire.topicPartition = partition.wire
      wire.offset = offset.rawValue
      return wire
    }
    _ = try await self.servers.call(
      IngestMethods.commitOffsets, request, timeout: self.timeout, retryFor: Self.readRetry)
  }

  /// Forgets a group that nobody reads for.
  ///
  /// - Throws: `.groupNotFound`, `.groupNotEmpty`.
  public func deleteGroup(_ name: String) async throws(MemQError) {
    var request = Memq_V1_DeleteGroupRequest()
    request.group = name
    _ = try await self.servers.call(IngestMethods.deleteGroup, request, timeout: self.timeout)
  }

  /// Offsets by position or time.
  ///
  /// - Parameter partitions: empty: all of the topic.
  /// - Returns: one per partition, by index; nil where there is none (no record so late).
  /// - Throws: `.topicNotFound`, `.partitionNotFound`.
  public func offsets(
    _ topic: String, partitions: [PartitionIndex] = [], _ position: OffsetPosition
  ) async throws(MemQError) -> [(partition: PartitionIndex, offset: Offset?)] {
    var request = Memq_V1_OffsetsRequest()
    request.topic = topic
    request.partitions = partitions.map(\.rawValue)
    switch position {
    case .earliest: request.spec = .earliest
    case .latest: request.spec = .latest
    case .localStart: request.spec = .localStart
    case .timestamp(let time):
      request.spec = .timestamp
      request.timestampMs = time.milliseconds
    }
    let deadline = ContinuousClock.now + Self.readRetry
    var backoff = Backoff()
    while true {
      do throws(MemQError) {
        return try await self.offsets(request)
      } catch {
        // A leader that was just elected learns the committed end in a moment.
        guard error.isRetriable, ContinuousClock.now < deadline else { throw error }
      }
      try await backoff.wait(until: deadline)
    }
  }

  private func offsets(
    _ request: Memq_V1_OffsetsRequest
  ) async throws(MemQError) -> [(partition: PartitionIndex, offset: Offset?)] {
    var found: [(partition: PartitionIndex, offset: Offset?)] = []
    for answer in try await self.read(IngestMethods.offsets, request).offsets {
      if answer.hasError { throw MemQError(answer.error) }
      found.append(
        (
          PartitionIndex(answer.topicPartition.partition),
          answer.offset < 0 ? nil : Offset(answer.offset)
        ))
    }
    return found.sorted { $0.partition < $1.partition }
  }

  /// High watermarks, as far as the leaders tell them within `timeout`; for a look at the cluster, which shows what there is.
  ///
  /// - Parameter partitions: those that have a leader; others would take all the time.
  public func highWatermarks(
    _ topic: String, partitions: [PartitionIndex], timeout: Duration = .seconds(3)
  ) async -> [PartitionIndex: Offset] {
    guard !partitions.isEmpty else { return [:] }
    var request = Memq_V1_OffsetsRequest()
    request.topic = topic
    request.partitions = partitions.map(\.rawValue)
    request.spec = .latest
    guard
      let response = try? await self.servers.call(IngestMethods.offsets, request, timeout: timeout)
    else { return [:] }
    var found: [PartitionIndex: Offset] = [:]
    for answer in response.offsets where !answer.hasError {
      found[PartitionIndex(answer.topicPartition.partition)] = Offset(answer.highWatermark)
    }
    return found
  }
}

/// A place in a partition that the server finds.
public enum OffsetPosition: Hashable, Sendable {
  /// The first offset that exists.
  case earliest
  /// The high watermark.
  case latest
  /// The first offset on the SSD.
  case localStart
  /// The first record with this timestamp or a later one.
  case timestamp(Timestamp)
}
