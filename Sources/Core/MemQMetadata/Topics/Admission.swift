// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What topics may come to keep on each volume, against what the volumes have.
///
/// A topic without an object tier keeps `retention.bytes` of each partition on each of its replicas' volumes. One without that bound
/// promises no bytes and claims none; with an object tier the SSD only holds what is not uploaded yet, and `local.retention.bytes` is a
/// bound on that, not a promise. A volume that has not told its capacity takes everything.
struct VolumeClaims {
  private(set) var bytes: SortedMap<VolumeID, Int64> = [:]
  private var capacities: SortedMap<VolumeID, Int64> = [:]

  /// - Parameter topic: counts instead of the one of its id that is stored.
  init(_ state: MetadataState, with topic: TopicImage? = nil) {
    for node in state.nodes.values {
      for volume in node.value.volumes { self.capacities[volume.id] = volume.capacityBytes }
    }
    var owners = state.topics.values.map(\.value)
    if let topic {
      owners.removeAll { $0.id == topic.id }
      owners.append(topic)
    }
    for owner in owners {
      let claim = owner.settings.claimBytes
      guard claim > 0 else { continue }
      for partition in state.partitions(of: owner.id) {
        for replica in partition.value.replicas { self.add(claim, to: replica.volume) }
      }
    }
  }

  mutating func add(_ claim: Int64, to volume: VolumeID) {
    let sum = self.bytes[volume, default: 0].addingReportingOverflow(claim)
    self.bytes[volume] = sum.overflow ? .max : sum.partialValue
  }

  /// What one more partition may claim of a volume.
  func room(_ volume: VolumeID) -> Int64 {
    guard let capacity = self.capacities[volume], capacity > 0 else { return .max }
    return max(0, capacity - (self.bytes[volume] ?? 0))
  }

  /// Its capacity in MiB, to compare loads by; at least 1.
  func weight(_ volume: VolumeID) -> Int { max(1, Int((self.capacities[volume] ?? 0) >> 20)) }

  /// - Throws: `.limitReached` when the topic's partitions, as placed, may outgrow a volume.
  func check(_ topic: TopicImage, in state: MetadataState) throws(MemQError) {
    for partition in state.partitions(of: topic.id) {
      for replica in partition.value.replicas {
        guard let capacity = self.capacities[replica.volume], capacity > 0,
          let claimed = self.bytes[replica.volume], claimed > capacity
        else { continue }
        throw MemQError(
          .limitReached,
          "volume \(replica.volume) of node \(replica.node) can't keep what its partitions may hold: lower retention.bytes, or add capacity",
          subject: "\(topic.name)/\(partition.value.id.partition)", limit: capacity,
          actual: claimed)
      }
    }
  }
}

extension TopicSettings {
  /// Bytes that each replica of a partition is to keep on the SSD; 0: none promised.
  var claimBytes: Int64 { self.hasObjectTier ? 0 : self.retentionBytes ?? 0 }
}
