// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQObjectStore
import MemQRuntime
import MemQSystem
import SwiftProtobuf

/// Offsets by position or time, over SSD and object tier together.
struct OffsetsCall: Sendable {
  let reader: LogReader
  let cluster: any IngestCluster

  /// - Throws: `.partitionNotFound`, `.invalidArgument`; failures of single partitions stand in the answer.
  func run(
    _ request: Memq_V1_OffsetsRequest, _ topic: TopicImage
  ) async throws(MemQError) -> Memq_V1_ListOffsetsResponse {
    switch request.spec {
    case .earliest, .latest, .timestamp, .localStart: break
    case .unspecified, .UNRECOGNIZED:
      throw MemQError(.invalidArgument, "which offset is meant?", subject: "spec")
    }
    let wanted =
      request.partitions.isEmpty
      ? (0..<Int32(topic.partitionCount)).map { $0 } : request.partitions
    for partition in wanted { _ = try topic.partition(partition) }
    let time = Timestamp(milliseconds: request.timestampMs)
    var found: [Int32: Memq_V1_PartitionOffset] = [:]
    await withTaskGroup(of: [(Int32, Memq_V1_PartitionOffset)].self) { group in
      for part in self.byLeader(wanted, of: topic) {
        group.addTask { await self.ask(part, request.spec, time) }
      }
      for await answers in group {
        for (partition, answer) in answers { found[partition] = answer }
      }
    }
    return .with { $0.offsets = wanted.compactMap { found[$0] } }
  }

  /// Partitions grouped by who leads them, each group asked at once.
  private func byLeader(_ wanted: [Int32], of topic: TopicImage) -> [[TopicPartition]] {
    let image = self.cluster.image
    var groups: [NodeID: [TopicPartition]] = [:]
    var leaderless: [[TopicPartition]] = []
    for partition in wanted {
      let id = TopicPartition(topic.id, PartitionIndex(partition))
      if let leader = image.partitions[id]?.leader {
        groups[leader, default: []].append(id)
      } else {
        leaderless.append([id])
      }
    }
    return Array(groups.values) + leaderless
  }

  private func ask(
    _ partitions: [TopicPartition], _ spec: Memq_V1_OffsetSpec, _ time: Timestamp
  ) async -> [(Int32, Memq_V1_PartitionOffset)] {
    do throws(MemQError) {
      let answers = try await self.reader.retrying { () async throws(MemQError) in
        try await self.reader.askLeader(partitions, spec, time)
      }
      var found: [(Int32, Memq_V1_PartitionOffset)] = []
      for (partition, answer) in zip(partitions, answers) {
        let better = spec == .timestamp ? await self.older(partition, answer, time) : answer
        found.append((partition.partition.rawValue, better))
      }
      return found
    } catch {
      return partitions.map { partition in
        let answer = Memq_V1_PartitionOffset.with {
          $0.topicPartition = partition.wire
          $0.offset = -1
          $0.error = Memq_V1_ErrorDetail(error)
        }
        return (partition.partition.rawValue, answer)
      }
    }
  }

  /// The leader looks at its SSD only: an earlier record of that time may stand in an object.
  private func older(
    _ partition: TopicPartition, _ answer: Memq_V1_PartitionOffset, _ time: Timestamp
  ) async -> Memq_V1_PartitionOffset {
    guard !answer.hasError, let known = self.cluster.image.partitions[partition],
      known.uploadedOffset.rawValue > answer.logStartOffset
    else { return answer }
    do throws(MemQError) {
      let old = try await self.reader.objects.offset(
        partition, group: known.uploadGroup, atOrAfter: time)
      guard let old, answer.offset < 0 || old.rawValue < answer.offset else { return answer }
      var better = answer
      better.offset = max(old.rawValue, answer.logStartOffset)
      better.leaderEpoch = -1
      return better
    } catch {
      var failed = answer
      failed.offset = -1
      failed.error = Memq_V1_ErrorDetail(error)
      return failed
    }
  }
}
