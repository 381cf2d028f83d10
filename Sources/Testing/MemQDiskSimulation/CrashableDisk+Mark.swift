// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQLog
public import MemQModel

extension CrashableDisk {
  /// The highest place that anything on the disk states as durable. Damage below it is corruption; at or above it nothing tells a group
  /// that was durable from one that never was.
  public func durableMark(of volume: VolumeID) -> LogPlace {
    var mark = LogPlace.start
    for slot in self.slots {
      self.bytes(of: slot).withUnsafeBytes { file in
        let block = LogFormat.blockBytes
        if let (header, _) = SegmentHeader.decode(UnsafeRawBufferPointer(rebasing: file[..<block])),
          header.kind == .hot
        {
          mark = max(mark, header.previousEnd)
        }
        for place in stride(from: block, to: file.count, by: block) {
          let bytes = UnsafeRawBufferPointer(rebasing: file[place..<(place + block)])
          if let (group, _) = GroupHeader.decode(bytes, at: Int64(place), volume: volume) {
            mark = max(mark, group.durable)
          }
        }
      }
    }
    return mark
  }
}
