// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime
import SwiftProtobuf

// Which nodes and volumes a partition's replicas stand on.
extension MetadataNode {
  func registerReassignmentCalls(on router: inout RPCRouter) {
    router.handle(MetadataMethods.reassignPartition) { request, _ in
      .with { [partition = try await self.reassign(request)] in $0.partition = partition.wire }
    }
    router.handle(MetadataMethods.cancelReassignment) { request, _ in
      .with { [partition = try await self.cancelReassignment(request)] in
        $0.partition = partition.wire
      }
    }
  }

  private func reassign(
    _ request: Memq_V1_ReassignPartitionRequest
  ) async throws(MemQError) -> PartitionImage {
    var wishes: [ReplicaWish] = []
    for target in request.target {
      wishes.append(
        ReplicaWish(
          NodeID(target.nodeID),
          target.volumeID.isEmpty ? nil : try VolumeID(wire: target.volumeID, "target.volume_id")))
    }
    let instance = try self.instance()
    var partition = try await instance.runner.run("reassign-partition") {
      (state) throws(MemQError) in
      try state.reassign(
        try state.partition(request.partition, ofTopicNamed: request.topic), to: wishes)
    }
    self.logger.notice(
      "Replicas change",
      metadata: [
        "partition": "\(request.topic)/\(request.partition)",
        "replicas": "\((partition.reassignment?.target ?? partition.replicas).map(\.node))",
      ])
    // The added ones may be in sync already: an earlier change to them was cancelled.
    if partition.reassignment != nil {
      partition = try await self.settled(partition, instance)
    }
    return partition
  }

  private func cancelReassignment(
    _ request: Memq_V1_CancelReassignmentRequest
  ) async throws(MemQError) -> PartitionImage {
    let partition = try await self.instance().runner.run("cancel-reassignment") {
      (state) throws(MemQError) in
      try state.cancelReassignment(
        of: try state.partition(request.partition, ofTopicNamed: request.topic))
    }
    self.logger.notice(
      "A change of replicas is cancelled",
      metadata: [
        "partition": "\(request.topic)/\(request.partition)",
        "replicas": "\(partition.replicas.map(\.node))",
      ])
    return partition
  }

  private func settled(
    _ partition: PartitionImage, _ instance: MetadataInstance
  ) async throws(MemQError) -> PartitionImage {
    try await instance.controller.settle()
    return instance.cell.read { $0.image?.partitions[partition.id] } ?? partition
  }
}

extension MetadataState {
  /// - Throws: `.topicNotFound`, `.partitionNotFound`.
  fileprivate func partition(
    _ number: Int32, ofTopicNamed name: String
  ) throws(MemQError) -> TopicPartition {
    let topic = try self.topic(named: name).value
    guard number >= 0, Int(number) < topic.partitionCount else {
      throw MemQError(
        .partitionNotFound, "the topic has fewer partitions", subject: "\(name)/\(number)",
        limit: Int64(topic.partitionCount) - 1, actual: Int64(number))
    }
    return TopicPartition(topic.id, PartitionIndex(number))
  }
}
