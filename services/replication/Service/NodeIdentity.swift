// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQRecords
import MemQSystem

/// The node's lasting name and the names of its volumes, in a small text file of the data folder:
///
///     memq replication node 0
///     uuid 6f0c…
///     volume 9d1b… /data/volume  one that was named and maybe never made
///     made 52c4… /data/volume-2  one that was seen on its disk
///     crc32c 1a2b3c4d            of all bytes before this line
struct NodeIdentity: Hashable {
  var uuid: NodeUUID
  /// In the order they were added; the path is the one it had then.
  var volumes: [Volume] = []

  struct Volume: Hashable {
    var id: VolumeID
    var path: String
    /// It was seen on its disk: when it is missing there, all it held is gone, and its name with it.
    var isMade = false
  }

  static let fileName = "replication-node"
  private static let heading = "memq replication node 0"

  var text: String {
    var text = "\(Self.heading)\nuuid \(self.uuid)\n"
    for volume in self.volumes {
      text += "\(volume.isMade ? "made" : "volume") \(volume.id) \(volume.path)\n"
    }
    return text + "crc32c \(Self.checksum(text))\n"
  }

  /// - Throws: `.logCorrupt` for a text that `text` can't have made.
  init(parsing text: String, path: String) throws(MemQError) {
    func damaged(_ why: String) -> MemQError {
      MemQError(.logCorrupt, "the node's identity file is damaged: \(why)", subject: path)
    }
    var lines = text.split(separator: "\n", omittingEmptySubsequences: false)
    guard lines.popLast() == "", let last = lines.popLast(), lines.count >= 2 else {
      throw damaged("it is cut short")
    }
    let body = lines.map { $0 + "\n" }.joined()
    guard last == "crc32c \(Self.checksum(body))" else { throw damaged("its checksum differs") }
    guard lines[0] == Self.heading else { throw damaged("its heading is \(lines[0])") }
    guard lines[1].hasPrefix("uuid "), let uuid = NodeUUID(lines[1].dropFirst(5)) else {
      throw damaged("it has no uuid")
    }
    self.uuid = uuid
    for line in lines[2...] {
      let parts = line.split(separator: " ", maxSplits: 2)
      guard parts.count == 3, parts[0] == "volume" || parts[0] == "made",
        let id = VolumeID(parts[1])
      else { throw damaged("a line reads \(line)") }
      self.volumes.append(
        Volume(id: id, path: String(parts[2]), isMade: parts[0] == "made"))
    }
  }

  init(uuid: NodeUUID) { self.uuid = uuid }

  private static func checksum(_ text: String) -> String {
    let value = CRC32C.checksum(Array(text.utf8))
    return hexText((0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32(24 - 8 * $0)) })
  }

  // MARK: - The file

  /// 64 volumes with the longest paths stay far below this.
  private static let byteCountMax = 1 << 20

  /// Nil when there is none yet. Blocks.
  static func load(from folder: String) throws(MemQError) -> NodeIdentity? {
    let path = "\(folder)/\(Self.fileName)"
    let bytes: [UInt8]?
    do throws(FileError) {
      bytes = try Files.contents(path, byteCountMax: Self.byteCountMax)
    } catch {
      throw error.memqError(.volumeFailed)
    }
    guard let bytes else { return nil }
    return try NodeIdentity(parsing: String(decoding: bytes, as: UTF8.self), path: path)
  }

  /// There is always a whole one. Blocks.
  func save(to folder: String) throws(MemQError) {
    do throws(FileError) {
      try Files.replace("\(folder)/\(Self.fileName)", with: Array(self.text.utf8))
    } catch {
      throw error.memqError(.volumeFailed)
    }
  }
}
