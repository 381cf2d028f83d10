// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CMemQSystem
import Glibc
import MemQModel

/// Measures what a disk can do: sequential writes made durable one by one, by several ways of asking the kernel, and reads.
/// Blocks. Its file has no name from the first moment on, so that nothing is left however it ends.
public final class DiskProbe {
  public enum BackEnd: String, Sendable, CaseIterable {
    case plain = "pwritev + fdatasync"
    case direct = "O_DIRECT + fdatasync"
    case ring = "io_uring"
    case directRing = "io_uring + O_DIRECT"

    var isDirect: Bool { self == .direct || self == .directRing }
    var usesRing: Bool { self == .ring || self == .directRing }
  }

  /// Durable writes of one size.
  public struct Sample: Hashable, Sendable {
    public var backEnd: BackEnd
    public var byteCount: Int
    public var writes: Int
    public var seconds: Double
    /// Of a write and its sync.
    public var p50: Duration
    public var p99: Duration
    public var max: Duration

    public var bytesPerSecond: Double {
      self.seconds > 0 ? Double(self.writes * self.byteCount) / self.seconds : 0
    }
  }

  /// What the files stand on, as the kernel tells it.
  public struct Device: Hashable, Sendable {
    /// Such as "nvme0n1"; empty when there is none behind the file system.
    public var name = ""
    public var fileSystem = ""
    /// Emulated or in memory: what it can do says nothing of a disk.
    public var isVirtual = false
    /// What the kernel knows of a cache that loses power: "write back", "write through".
    public var writeCache = ""
  }

  public let device: Device
  public let fileBytes: Int64
  /// Why a back end can't be had here.
  public private(set) var missing: [BackEnd: String] = [:]
  private let plain: File
  private let direct: Int32?
  private let ring: OpaquePointer?
  private let bytes: UnsafeMutableRawBufferPointer
  private var position: Int64 = 0

  /// Largest write.
  public static let writeBytesMax = 4 << 20

  /// Makes the file and writes it full once: afterwards each write overwrites, as in a recycled segment.
  ///
  /// - Throws: `FileError`; ENOSPC when the file system has not twice that much room.
  public init(folder: String, fileBytes: Int64) throws(FileError) {
    guard try Files.availableBytes(folder) >= 2 * fileBytes else {
      throw FileError(.allocate, path: folder, number: ENOSPC)
    }
    let path = "\(folder)/.memq-bench-\(getpid())"
    self.plain = try File(path, .createNew)
    let opened = memq_open_direct(path)
    do throws(FileError) {
      try Files.remove(path)
    } catch {
      if opened >= 0 { close(opened) }
      throw error
    }
    var missing: [BackEnd: String] = [:]
    self.direct = opened >= 0 ? opened : nil
    if opened < 0 {
      let why = String(cString: strerror(-opened))
      missing[.direct] = "the file system takes no O_DIRECT (\(why))"
      missing[.directRing] = missing[.direct]
    }
    var number: Int32 = 0
    self.ring = memq_uring_open(&number)
    if self.ring == nil {
      let why = "the kernel gives no io_uring (\(String(cString: strerror(-number))))"
      missing[.ring] = why
      missing[.directRing] = why
    }
    self.missing = missing
    self.device = Self.device(self.plain.descriptor)
    self.fileBytes = fileBytes
    self.bytes = .allocate(byteCount: Self.writeBytesMax, alignment: 4_096)
    // Disks that pack what they store must not find it easy.
    var generator = SystemRandomNumberGenerator()
    for offset in stride(from: 0, to: Self.writeBytesMax, by: 8) {
      self.bytes.storeBytes(of: generator.next(), toByteOffset: offset, as: UInt64.self)
    }
    try self.plain.allocate(fileBytes)
    var at: Int64 = 0
    while at < fileBytes {
      let count = Int(min(Int64(Self.writeBytesMax), fileBytes - at))
      try self.plain.write(UnsafeRawBufferPointer(rebasing: self.bytes[..<count]), at: at)
      at += Int64(count)
    }
    try self.plain.sync()
  }

  deinit {
    if let direct { close(direct) }
    if let ring { memq_uring_close(ring) }
    self.bytes.deallocate()
  }

  /// Writes of `byteCount`, one after the other, each durable before the next, for about so long; nil where the back end is missing.
  public func writes(
    _ backEnd: BackEnd, byteCount: Int, for time: Duration
  ) throws(FileError) -> Sample? {
    precondition(byteCount <= Self.writeBytesMax && byteCount % 4_096 == 0)
    guard self.missing[backEnd] == nil else { return nil }
    let clock = SystemClock()
    let start = clock.monotonic
    var took: [Int64] = []
    var now = start
    // A few at least, however slow the disk is.
    while now - start < time || took.count < 3 {
      if self.position + Int64(byteCount) > self.fileBytes { self.position = 0 }
      do throws(FileError) {
        try self.write(backEnd, byteCount)
      } catch {
        // Some file systems open so and then refuse.
        guard error.number == EINVAL || error.number == EOPNOTSUPP, took.isEmpty else {
          throw error
        }
        self.missing[backEnd] =
          "the file system refuses it (\(String(cString: strerror(error.number))))"
        return nil
      }
      self.position += Int64(byteCount)
      let end = clock.monotonic
      took.append((end - now).nanoseconds)
      now = end
    }
    took.sort()
    let seconds = Double((now - start).nanoseconds) / 1e9
    return Sample(
      backEnd: backEnd, byteCount: byteCount, writes: took.count, seconds: seconds,
      p50: .nanoseconds(took[took.count / 2]), p99: .nanoseconds(took[took.count * 99 / 100]),
      max: .nanoseconds(took[took.count - 1]))
  }

  private func write(_ backEnd: BackEnd, _ byteCount: Int) throws(FileError) {
    let descriptor = backEnd.isDirect ? self.direct! : self.plain.descriptor
    let result: Int32
    if backEnd.usesRing {
      result = memq_uring_write_sync(
        self.ring!, descriptor, self.bytes.baseAddress, UInt32(byteCount), self.position)
    } else {
      var piece = FilePiece(self.bytes.baseAddress, count: byteCount)
      let written = memq_pwritev_all(descriptor, &piece, 1, self.position)
      result = written < 0 ? Int32(written) : memq_fdatasync(descriptor)
    }
    guard result >= 0 else { throw FileError(.write, path: self.plain.path, number: -result) }
  }

  /// Bytes a second of reads of 1 MiB in order, from the disk where the file system lets the page cache be passed over.
  public func reads(for time: Duration) throws(FileError) -> Double {
    let clock = SystemClock()
    let start = clock.monotonic
    var bytes: Int64 = 0
    var at: Int64 = 0
    self.plain.dropCache()
    while clock.monotonic - start < time {
      if at + 1 << 20 > self.fileBytes {
        at = 0
        self.plain.dropCache()
      }
      let count = memq_pread_all(
        self.direct ?? self.plain.descriptor, self.bytes.baseAddress, 1 << 20, at)
      guard count > 0 else {
        throw FileError(.read, path: self.plain.path, number: Int32(-count))
      }
      bytes += count
      at += 1 << 20
    }
    let seconds = Double((clock.monotonic - start).nanoseconds) / 1e9
    return seconds > 0 ? Double(bytes) / seconds : 0
  }

  // MARK: - What it stands on

  private static let fileSystems: [Int64: String] = [
    0xEF53: "ext4", 0x5846_5342: "xfs", 0x9123_683E: "btrfs", 0x0102_1994: "tmpfs",
    0x794C_7630: "overlay", 0x2FC1_2FC1: "zfs", 0x6969: "nfs", 0x6573_5546: "fuse",
    0xF2F5_2010: "f2fs",
  ]

  private static func device(_ descriptor: Int32) -> Device {
    var (major, minor): (UInt32, UInt32) = (0, 0)
    var magic: Int64 = 0
    var device = Device()
    guard memq_device(descriptor, &major, &minor, &magic) == 0 else { return device }
    device.fileSystem = Self.fileSystems[magic] ?? "0x" + String(magic, radix: 16)
    var path = [CChar](repeating: 0, count: 4_096)
    guard realpath("/sys/dev/block/\(major):\(minor)", &path) != nil else {
      device.isVirtual = true
      return device
    }
    var folder = String(
      decoding: path.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    device.isVirtual = folder.contains("/virtual/") || folder.contains("/virtio")
    device.name = String(folder.split(separator: "/").last ?? "")
    // A partition's queue is its disk's.
    if !Files.exists(folder + "/queue") { folder = Files.parent(of: folder) }
    let cache = (try? Files.contents(folder + "/queue/write_cache", byteCountMax: 4_096)) ?? nil
    device.writeCache = String(
      decoding: (cache ?? []).prefix { $0 != 10 }, as: UTF8.self)
    return device
  }
}
