// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel

/// Finds topics by name. A name that the image lacks is looked up in metadata: it may have been made a moment ago.
struct TopicFinder: Sendable {
  /// How long the image may lag behind metadata before a topic that exists counts as unavailable.
  static let lagMax: Duration = .seconds(5)

  let cluster: any IngestCluster

  /// - Throws: `.topicNotFound`, `.unavailable`.
  func find(_ name: String) async throws(MemQError) -> TopicImage {
    if let topic = self.cluster.image.topic(named: name) { return topic }
    var request = Memq_V1_DescribeTopicRequest()
    request.name = name
    _ = try await self.cluster.metadata.call(
      MetadataMethods.describeTopic, request, timeout: Self.lagMax)
    let image = try await self.cluster.waitForImage(timeout: Self.lagMax) {
      $0.topic(named: name) != nil
    }
    guard let topic = image.topic(named: name) else { throw Self.notFound(name) }
    return topic
  }

  static func notFound(_ name: String) -> MemQError {
    MemQError(.topicNotFound, "no topic of this name", subject: name)
  }
}
