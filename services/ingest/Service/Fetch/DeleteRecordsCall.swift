// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRuntime
import SwiftProtobuf

/// Deletes the records of a topic's partitions below offsets. Each partition's leader decides; metadata keeps what it decided.
struct DeleteRecordsCall: Sendable {
  let reader: LogReader
  let cluster: any IngestCluster

  /// - Throws: `.partitionNotFound`, `.invalidArgument`; failures of single partitions stand in the answer.
  func run(
    _ request: Memq_V1_DeleteTopicRecordsRequest, _ topic: TopicImage
  ) async throws(MemQError) -> Memq_V1_DeleteRecordsResponse {
    var seen: Set<Int32> = []
    for position in request.positions {
      _ = try topic.partition(position.partition)
      guard position.offset >= -1 else {
        throw MemQError(
          .invalidArgument, "an offset is not negative, or -1 for the committed end",
          subject: "\(topic.name)/\(position.partition)", limit: -1, actual: position.offset)
      }
      guard seen.insert(position.partition).inserted else {
        throw MemQError(
          .invalidArgument, "the partition stands twice in the request",
          subject: "\(topic.name)/\(position.partition)")
      }
    }
    var found: [Int32: Memq_V1_PartitionOffset] = [:]
    await withTaskGroup(of: (Int32, Memq_V1_PartitionOffset).self) { group in
      var positions = request.positions.makeIterator()
      // So many at a time.
      for position in (0..<16).compactMap({ _ in positions.next() }) {
        group.addTask { await self.delete(position, topic) }
      }
      while let (partition, answer) = await group.next() {
        found[partition] = answer
        if let position = positions.next() {
          group.addTask { await self.delete(position, topic) }
        }
      }
    }
    return .with { $0.offsets = request.positions.compactMap { found[$0.partition] } }
  }

  private func delete(
    _ position: Memq_V1_DeletePosition, _ topic: TopicImage
  ) async -> (Int32, Memq_V1_PartitionOffset) {
    let partition = TopicPartition(topic.id, PartitionIndex(position.partition))
    do throws(MemQError) {
      let answer = try await self.reader.retrying { () async throws(MemQError) in
        let (_, node) = try self.cluster.image.leader(of: partition)
        let response = try await self.cluster.channel(to: node, lane: .control).call(
          ReplicationMethods.deleteRecords,
          .with {
            $0.partitions = [
              .with {
                $0.topicPartition = partition.wire
                $0.offset = position.offset
              }
            ]
          }, timeout: LogReader.patience)
        guard let answer = response.offsets.first else {
          throw MemQError(.internalError, "the leader did not answer for its partition")
        }
        if answer.hasError { throw MemQError(answer.error) }
        return answer
      }
      return (position.partition, answer)
    } catch {
      let answer = Memq_V1_PartitionOffset.with {
        $0.topicPartition = partition.wire
        $0.offset = -1
        $0.logStartOffset = -1
        $0.error = Memq_V1_ErrorDetail(error)
      }
      return (position.partition, answer)
    }
  }
}
