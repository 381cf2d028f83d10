// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQLog
import MemQModel
import MemQStorage
import MemQSystem

/// Writes to a volume until something ends it, notes what was acknowledged, and says afterwards whether all of it is there.
///
/// For power cuts and kills from outside: `write` runs on the file system that is cut, its acknowledgements go to a file elsewhere;
/// `verify` opens what is left. What a batch holds follows from its partition and offset alone.
@main
struct VolumeStress {
  struct Options {
    var path = ""
    var acknowledged = ""
    /// Syncs report success and do nothing: for showing that a power cut notices.
    var isUnsynced = false
    /// Past the page cache.
    var isDirect = false
    var seconds = 3_600
    var partitions = 8
    var segmentBytes: Int64 = 4 << 20
    /// Uploaded offsets follow the acknowledged ones, so that segments are recycled.
    var recycles = true
    /// A small volume on which some partitions have nothing but this disk: the cleaner makes cold segments of what they hold.
    var cleans = false

    /// Whether everything of the partition stays.
    func keeps(_ partition: Int) -> Bool { !self.recycles || (self.cleans && partition % 4 == 1) }

    init(_ arguments: [String]) {
      var rest = arguments.dropFirst(2)
      self.path = rest.popFirst() ?? ""
      self.acknowledged = rest.popFirst() ?? ""
      while let name = rest.popFirst() {
        switch name {
        case "--unsynced": self.isUnsynced = true
        case "--direct": self.isDirect = true
        case "--keep": self.recycles = false
        case "--clean": self.cleans = true
        case "--seconds": self.seconds = Int(rest.popFirst() ?? "") ?? self.seconds
        case "--partitions": self.partitions = Int(rest.popFirst() ?? "") ?? self.partitions
        case "--segment-kib":
          self.segmentBytes = (Int64(rest.popFirst() ?? "") ?? 4_096) << 10
        default: VolumeStress.usage()
        }
      }
      if self.acknowledged.isEmpty { VolumeStress.usage() }
    }
  }

  static func usage() -> Never {
    print(
      """
      memq-volume-stress write FOLDER ACKNOWLEDGED [--seconds N] [--partitions N] [--segment-kib N] [--keep|--clean] [--unsynced] [--direct]
      memq-volume-stress verify FOLDER ACKNOWLEDGED [--keep|--clean]
      """)
    exit(2)
  }

  static func main() async {
    let arguments = CommandLine.arguments
    guard arguments.count >= 4 else { self.usage() }
    let options = Options(arguments)
    do {
      switch arguments[1] {
      case "write": try await StressWriter.run(options)
      case "verify": try await StressVerifier.run(options)
      default: self.usage()
      }
    } catch {
      print("failed: \(error)")
      exit(1)
    }
  }
}

/// Real files whose segments are never synced.
final class UnsyncedDisk: VolumeDisk {
  private let folder: FolderDisk
  init(path: String) { self.folder = FolderDisk(path: path) }
  func acquire() throws(MemQError) { try self.folder.acquire() }
  func release() { self.folder.release() }
  func volumeFile() throws(FileError) -> [UInt8]? { try self.folder.volumeFile() }
  func replaceVolumeFile(_ bytes: [UInt8]) throws(FileError) {
    try self.folder.replaceVolumeFile(bytes)
  }
  func slots() throws(FileError) -> [SegmentSlot] { try self.folder.slots() }
  func file(_ slot: SegmentSlot) throws(FileError) -> any SegmentFile {
    UnsyncedFile(try self.folder.file(slot))
  }
  func allocate(_ slot: SegmentSlot, byteCount: Int64) throws(FileError) {
    try self.folder.allocate(slot, byteCount: byteCount)
  }
  func availableBytes() throws(FileError) -> Int64 { try self.folder.availableBytes() }
}

final class UnsyncedFile: SegmentFile {
  private let file: any SegmentFile
  init(_ file: any SegmentFile) { self.file = file }
  func byteCount() throws(FileError) -> Int64 { try self.file.byteCount() }
  func write(
    gathered pieces: UnsafeMutableBufferPointer<FilePiece>, at position: Int64
  ) throws(FileError) {
    try self.file.write(gathered: pieces, at: position)
  }
  func syncData() throws(FileError) {}
  func read(into bytes: UnsafeMutableRawBufferPointer, at position: Int64) throws(FileError) -> Int
  {
    try self.file.read(into: bytes, at: position)
  }
  func dropCache() { self.file.dropCache() }
}
