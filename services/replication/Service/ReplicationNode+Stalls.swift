// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQModel
import MemQStorage

/// Disks that hang: a sync that never ends fails nothing, and without a word its partitions would only be silent.
extension ReplicationNode {
  private static let stallLookInterval: Duration = .seconds(1)

  /// Looks until the node drains, or is gone.
  func watchStalls() {
    self.metrics.setStalledVolumes(0)
    Task { [weak self] in
      var stalled: Set<VolumeID> = []
      while !Task.isCancelled {
        do { try await Task.sleep(for: Self.stallLookInterval) } catch { return }
        guard let self, !self.isDraining else { return }
        stalled = self.lookForStalls(stalled)
      }
    }
  }

  private func lookForStalls(_ before: Set<VolumeID>) -> Set<VolumeID> {
    var stalled: Set<VolumeID> = []
    for volume in self.allVolumes.map(\.volume) {
      let time = volume.stalledFor
      if time != nil { stalled.insert(volume.id) }
      if let time, !before.contains(volume.id) {
        self.logger.error(
          "A disk does not answer; the volume's appends wait",
          metadata: ["volume": "\(volume.id)", "seconds": "\(time.milliseconds / 1_000)"])
      } else if time == nil, before.contains(volume.id) {
        self.logger.notice("A disk answers again", metadata: ["volume": "\(volume.id)"])
      }
    }
    if stalled.count != before.count { self.metrics.setStalledVolumes(stalled.count) }
    return stalled
  }

  /// For `/readyz`; nil: all answer.
  static func text(stalled volumes: [Volume]) -> String? {
    let texts = volumes.compactMap { volume in
      volume.stalledFor.map {
        "volume \(volume.id): the disk has not answered for \($0.milliseconds / 1_000) s"
      }
    }
    return texts.isEmpty ? nil : texts.joined(separator: "; ")
  }
}
