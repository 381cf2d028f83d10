// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQModel

// Partitions that the volumes hold and no image names: their topic was deleted while this node was away, or it crashed before the drop
// was durable; or metadata is not what it was. Only the first are dropped.
extension ReplicationNode {
  /// Of one request.
  private static let topicsPerRequest = 1_000
  private static let pauseMax = Duration.seconds(60)

  /// Asks metadata, until it answers, which of them belong to deleted topics, and drops those.
  func settle(_ strays: [TopicPartition]) {
    var partitions: [TopicID: [TopicPartition]] = [:]
    for id in strays { partitions[id.topic, default: []].append(id) }
    let known = partitions
    Task { [weak self] in
      var rest = Array(known.keys)
      var kept = 0
      var pause = Duration.seconds(1)
      while !rest.isEmpty {
        guard let self, !self.isDraining else { return }
        let some = Array(rest.prefix(Self.topicsPerRequest))
        do throws(MemQError) {
          let deleted = try await self.proposals.deletedTopics(among: some)
          for topic in some {
            guard deleted.contains(topic) else {
              kept += known[topic]?.count ?? 0
              continue
            }
            for id in known[topic] ?? [] {
              self.shard(of: id)?.mailbox.post(.run { $0.dropStray(id) })
            }
          }
          rest.removeFirst(some.count)
        } catch {
          self.logger.debug(
            "Metadata does not say which topics were deleted", metadata: ["error": "\(error)"])
          try? await Task.sleep(for: pause)
          pause = min(pause * 2, Self.pauseMax)
        }
      }
      guard kept > 0 else { return }
      self?.logger.warning(
        "The volumes hold partitions that the cluster doesn't know; they are kept",
        metadata: ["partitions": "\(kept)"])
    }
  }
}
