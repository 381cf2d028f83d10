// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog
public import MemQModel
import MemQSystem

extension Volume {
  /// Whose volume stands in a folder, without taking it; nil: none was made there yet. Blocks.
  ///
  /// - Throws: `.logCorrupt` for a damaged volume file, `.volumeFailed` when it can't be read, `.resourceExhausted` when the process
  ///   lacks descriptors or memory.
  public static func peek(
    _ path: String
  ) throws(MemQError) -> (id: VolumeID, clusterID: ClusterID)? {
    let bytes: [UInt8]?
    do throws(FileError) {
      bytes = try FolderDisk(path: path).volumeFile()
    } catch {
      throw error.volumeError
    }
    guard let bytes else { return nil }
    do throws(MemQError) {
      let header = try VolumeHeader(decoding: bytes)
      return (header.identity.volume, header.identity.cluster)
    } catch {
      throw MemQError(.logCorrupt, error.message, subject: path + "/volume")
    }
  }
}
