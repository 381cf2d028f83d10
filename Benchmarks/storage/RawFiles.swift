// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc

/// The floor: pwrite of whole groups into preallocated files, fdatasync after each.
enum RawFiles {
  static let fileBytes = 256 << 20

  static func run(_ options: BenchStorage.Options) throws -> Measure {
    let folder = options.folder + "-raw"
    mkdir(folder, 0o750)
    defer { rmdir(folder) }
    let group = bytes(options.groupBytes)
    let watch = Stopwatch()
    var written = 0
    var groups = 0
    // All files stay until the end, as a volume's do: both sides take the same page cache.
    var files: [(path: String, descriptor: Int32)] = []
    defer {
      for file in files {
        close(file.descriptor)
        unlink(file.path)
      }
    }
    while written < options.bytes {
      let path = folder + "/\(files.count)"
      let descriptor = try open(path)
      files.append((path, descriptor))
      var position = 0
      while position + group.count <= fileBytes, written < options.bytes {
        try write(group, to: descriptor, at: position)
        position += group.count
        written += group.count
        groups += 1
      }
    }
    return watch.measure(written, groups: groups)
  }

  static func open(_ path: String) throws -> Int32 {
    let descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o640)
    guard descriptor >= 0, posix_fallocate(descriptor, 0, fileBytes) == 0, fsync(descriptor) == 0
    else {
      throw RawError(number: errno)
    }
    return descriptor
  }

  static func write(_ bytes: [UInt8], to descriptor: Int32, at position: Int) throws {
    guard pwrite(descriptor, bytes, bytes.count, position) == bytes.count,
      fdatasync(descriptor) == 0
    else { throw RawError(number: errno) }
  }

  static func bytes(_ count: Int) -> [UInt8] {
    var generator = SystemRandomNumberGenerator()
    var bytes: [UInt8] = []
    bytes.reserveCapacity(count + 8)
    while bytes.count < count {
      withUnsafeBytes(of: generator.next()) { bytes.append(contentsOf: $0) }
    }
    bytes.removeLast(bytes.count - count)
    return bytes
  }
}

struct RawError: Error {
  let number: Int32
}
