// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQStorage
import MemQSystem

extension ReplicationNode {
  /// Reads, or makes, the node's lasting identity: what it registers with. Opens nothing.
  ///
  /// - Throws: `.volumeFailed` when a folder can't be used, `.logCorrupt` for a damaged identity, `.wrongCluster`
  ///   when the volumes belong to several clusters.
  public static func prepare(
    _ configuration: Configuration
  ) throws(MemQError) -> Prepared {
    try configuration.validate()
    try Self.makeFolder(configuration.dataPath)
    let entropy = SystemEntropy()
    let saved = try NodeIdentity.load(from: configuration.dataPath)
    var identity = saved ?? NodeIdentity(uuid: entropy.identifier())
    var ids: [VolumeID] = []
    var cluster: ClusterID?
    for settings in configuration.volumes {
      let known = identity.volumes.firstIndex { $0.path == settings.path }
      let header: (id: VolumeID, clusterID: ClusterID)?
      do throws(MemQError) {
        try Self.makeFolder(settings.path)
        header = try Volume.peek(settings.path)
      } catch {
        // It can't be opened, and is known by name: the others are no worse for it.
        guard error.code == .logCorrupt || error.code == .volumeFailed,
          configuration.volumes.count > 1, let known
        else { throw error }
        ids.append(identity.volumes[known].id)
        continue
      }
      if let header {
        guard cluster == nil || cluster == header.clusterID else {
          throw MemQError(
            .wrongCluster, "the volumes belong to several clusters", subject: settings.path)
        }
        cluster = header.clusterID
      }
      // The disk itself says who it is. Where there was a volume and is none, nothing may be expected of it: it is another one.
      let named = known.map { identity.volumes[$0] }.flatMap { $0.isMade ? nil : $0.id }
      let id = header?.id ?? named ?? entropy.identifier()
      let volume = NodeIdentity.Volume(id: id, path: settings.path, isMade: header != nil)
      if let known { identity.volumes[known] = volume } else { identity.volumes.append(volume) }
      ids.append(id)
    }
    if identity != saved { try identity.save(to: configuration.dataPath) }
    return Prepared(nodeUUID: identity.uuid, volumeIDs: ids, clusterID: cluster)
  }

  private static func makeFolder(_ path: String) throws(MemQError) {
    do throws(FileError) {
      try Files.makeFolder(path)
    } catch {
      throw error.memqError(.volumeFailed)
    }
  }
}
