// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime
import SwiftProtobuf

extension UploaderNode {
  func registerStatus(on router: inout RPCRouter) {
    router.handle(UploaderMethods.status) { request, _ in try await self.status(request.topic) }
  }

  /// Partitions of a topic by name; of all with an object tier for "".
  ///
  /// - Throws: `.topicNotFound`.
  func partitions(ofTopic name: String) throws(MemQError) -> [PartitionImage] {
    let image = self.cluster.image
    guard !name.isEmpty else {
      return image.partitions.values.filter {
        image.topics[$0.id.topic]?.settings.hasObjectTier ?? false
      }
    }
    guard let topic = image.topic(named: name) else {
      throw MemQError(.topicNotFound, "there is no such topic", subject: name)
    }
    return image.partitions(of: topic.id)
  }

  private func status(_ name: String) async throws(MemQError) -> Memq_V1_UploadStatusResponse {
    let running = try self.whileRunning()
    let partitions = try self.partitions(ofTopic: name)
    let watch = LeaderWatch(cluster: self.cluster, timeout: .seconds(2))
    let (reports, _) = await watch.reports(of: partitions.map(\.id))
    let image = self.cluster.image
    let rows = partitions.map { partition in
      Self.row(partition, image, reports[partition.id])
    }.sorted { ($0.topic, $0.partition) < ($1.topic, $1.partition) }
    let counts = running.bodies.counts
    return .with {
      $0.partitions = rows
      for group in image.uploadGroups.values {
        $0.objects += group.objectCount
        $0.objectBytes += group.objectBytes
        $0.billedRequests += group.billedRequests
        $0.groups.append(group.wire)
      }
      $0.billedRequests += running.context.billedUnreported
      $0.bodies = counts.bodies
      $0.bodyBytes = counts.byteCount
    }
  }

  /// Offsets that no leader told are -1: unknown.
  private static func row(
    _ partition: PartitionImage, _ image: ClusterImage, _ report: LeaderReport?
  ) -> Memq_V1_PartitionUploadStatus {
    .with {
      $0.topic = image.topics[partition.id.topic]?.name ?? partition.id.topic.description
      $0.partition = partition.id.partition.rawValue
      $0.uploadedOffset = partition.uploadedOffset.rawValue
      $0.logStartOffset = report?.logStart.rawValue ?? -1
      $0.localStartOffset = report?.localStart.rawValue ?? -1
      $0.highWatermark = report?.highWatermark.rawValue ?? -1
      $0.localBytes = report?.localBytes ?? -1
    }
  }
}
