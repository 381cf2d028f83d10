// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQPacking
import MemQRPC
import MemQRuntime
import SwiftProtobuf

/// What a partition's leader said of it last.
struct LeaderReport: Sendable {
  let partition: TopicPartition
  let logStart: Offset
  let localStart: Offset
  let logEnd: Offset
  let highWatermark: Offset
  let localBytes: Int64

  /// Average over what stands on the SSD.
  var bytesPerRecord: Int64 {
    let records = self.logEnd - self.localStart
    return records > 0 ? max(1, self.localBytes / records) : 1
  }
}

/// Asks leaders about their partitions.
struct LeaderWatch: Sendable {
  /// One request's partitions, as replication nodes take them.
  private static let partitionsPerRequest = 10_000
  private static let deletionsPerRequest = 1_000

  let cluster: any UploaderCluster
  let timeout: Duration

  /// Reports of those partitions whose leader answers; the others are missing.
  func reports(
    of partitions: [TopicPartition]
  ) async -> (reports: SortedMap<TopicPartition, LeaderReport>, failure: MemQError?) {
    let image = self.cluster.image
    var byLeader: SortedMap<NodeID, [TopicPartition]> = [:]
    for partition in partitions {
      guard let leader = image.partitions[partition]?.leader else { continue }
      byLeader[leader, default: []].append(partition)
    }
    var requests: [(NodeID, [TopicPartition])] = []
    for (leader, theirs) in byLeader {
      for start in stride(from: 0, to: theirs.count, by: Self.partitionsPerRequest) {
        let end = min(start + Self.partitionsPerRequest, theirs.count)
        requests.append((leader, Array(theirs[start..<end])))
      }
    }
    return await withTaskGroup(of: Result<[LeaderReport], MemQError>.self) { tasks in
      for (leader, theirs) in requests { tasks.addTask { await self.ask(leader, theirs) } }
      var reports: SortedMap<TopicPartition, LeaderReport> = [:]
      var failure: MemQError?
      for await answer in tasks {
        switch answer {
        case .success(let answer): for report in answer { reports[report.partition] = report }
        case .failure(let error): failure = error
        }
      }
      return (reports, failure)
    }
  }

  private func ask(
    _ leader: NodeID, _ partitions: [TopicPartition]
  ) async -> Result<[LeaderReport], MemQError> {
    do throws(MemQError) {
      let response = try await self.cluster.channel(to: leader, lane: .control).call(
        ReplicationMethods.describeReplicas,
        .with { $0.partitions = partitions.map(\.wire) }, timeout: self.timeout)
      var reports: [LeaderReport] = []
      // A former leader's word does not count.
      for replica in response.replicas where replica.leader {
        reports.append(
          LeaderReport(
            partition: try TopicPartition(replica.topicPartition),
            logStart: Offset(replica.logStartOffset), localStart: Offset(replica.localStartOffset),
            logEnd: Offset(replica.logEndOffset), highWatermark: Offset(replica.highWatermark),
            localBytes: replica.localBytes))
      }
      return .success(reports)
    } catch {
      return .failure(error)
    }
  }

  /// Has the leaders delete the records of these partitions below these offsets.
  ///
  /// - Throws: the first error, when all leaders have been asked; what others did stands.
  func deleteRecords(
    _ starts: [(partition: TopicPartition, offset: Offset)]
  ) async throws(MemQError) {
    let image = self.cluster.image
    var byLeader: SortedMap<NodeID, [(partition: TopicPartition, offset: Offset)]> = [:]
    for start in starts {
      guard let leader = image.partitions[start.partition]?.leader else { continue }
      byLeader[leader, default: []].append(start)
    }
    var failure: MemQError?
    for (leader, theirs) in byLeader {
      for first in stride(from: 0, to: theirs.count, by: Self.deletionsPerRequest) {
        let part = theirs[first..<min(first + Self.deletionsPerRequest, theirs.count)]
        do throws(MemQError) {
          let answer = try await self.cluster.channel(to: leader, lane: .control).call(
            ReplicationMethods.deleteRecords,
            .with {
              $0.partitions = part.map { start in
                .with {
                  $0.topicPartition = start.partition.wire
                  $0.offset = start.offset.rawValue
                }
              }
            }, timeout: self.timeout)
          if let failed = answer.offsets.first(where: \.hasError) { throw MemQError(failed.error) }
        } catch {
          failure = failure ?? error
        }
      }
    }
    if let failure { throw failure }
  }

  /// What is committed at this moment: nothing that was acknowledged before the call lies above.
  ///
  /// - Throws: the first partition's error; `.leaderNotAvailable` while one has no leader.
  func committed(
    _ partitions: [TopicPartition]
  ) async throws(MemQError) -> [UploadPacker.Progress] {
    let image = self.cluster.image
    var byLeader: SortedMap<NodeID, [TopicPartition]> = [:]
    for partition in partitions {
      guard let leader = image.partitions[partition]?.leader else {
        throw MemQError(.leaderNotAvailable, "nobody leads the partition", subject: "\(partition)")
      }
      byLeader[leader, default: []].append(partition)
    }
    var progress: [UploadPacker.Progress] = []
    for (leader, theirs) in byLeader {
      let response = try await self.cluster.channel(to: leader, lane: .control).call(
        ReplicationMethods.listOffsets,
        .with {
          $0.partitions = theirs.map(\.wire)
          $0.spec = .latest
        }, timeout: self.timeout)
      for offset in response.offsets {
        if offset.hasError { throw MemQError(offset.error) }
        progress.append(
          UploadPacker.Progress(
            partition: try TopicPartition(offset.topicPartition),
            logStart: Offset(offset.logStartOffset), highWatermark: Offset(offset.offset),
            bytesPerRecord: 1))
      }
    }
    return progress
  }
}
