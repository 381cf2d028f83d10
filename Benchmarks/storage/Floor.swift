// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc

/// What the disk gives without a log: writes of whole groups into fresh, preallocated files, fdatasync after each.
enum Floor {
  static let fileBytes = 256 << 20

  /// - Parameter groupBytes: of each write and sync.
  static func run(_ folder: String, bytes: Int, groupBytes: Int) throws -> Cost {
    mkdir(folder, 0o750)
    defer { rmdir(folder) }
    let group = self.bytes(groupBytes)
    // All files stay until the end, as a volume's do: both sides take the same page cache.
    var files: [(path: String, descriptor: Int32)] = []
    defer {
      for file in files {
        close(file.descriptor)
        unlink(file.path)
      }
    }
    let watch = Stretch()
    var written = 0
    while written < bytes {
      let path = folder + "/\(files.count)"
      let descriptor = try self.open(path)
      files.append((path, descriptor))
      var position = 0
      while position + groupBytes <= self.fileBytes, written < bytes {
        guard pwrite(descriptor, group, groupBytes, position) == groupBytes,
          fdatasync(descriptor) == 0
        else { throw BenchError("the floor's write failed: \(errno)") }
        position += groupBytes
        written += groupBytes
      }
    }
    return watch.end(bytes: written)
  }

  private static func open(_ path: String) throws -> Int32 {
    let descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o640)
    guard descriptor >= 0, posix_fallocate(descriptor, 0, self.fileBytes) == 0,
      fsync(descriptor) == 0
    else { throw BenchError("the floor's file can't be made: \(errno)") }
    return descriptor
  }

  /// MB/s of fio's sequential write with an fdatasync after each block; nil when fio is not installed.
  static func fio(_ folder: String, bytes: Int, groupBytes: Int) throws -> Double? {
    mkdir(folder, 0o750)
    let path = folder + "/fio"
    let output = folder + "/fio.out"
    defer {
      unlink(path)
      unlink(output)
      rmdir(folder)
    }
    let block = groupBytes / 4096 * 4096
    let command =
      "fio --name=floor --filename=\(path) --rw=write --ioengine=psync --bs=\(block) --size=\(bytes / block * block) --fdatasync=1 --fallocate=posix --output-format=terse --terse-version=3 >\(output) 2>/dev/null"
    guard Self.shell(command) == 0, let text = Self.contents(output) else { return nil }
    // Field 47 of terse version 3: write bandwidth in KiB/s.
    let fields = text.split(separator: ";", omittingEmptySubsequences: false)
    guard fields.count > 47, let rate = Double(fields[47]) else { return nil }
    return rate * 1024 / 1e6
  }

  /// Waits until the file system has done what was asked of it before.
  static func settle() {
    sync()
    Clock.sleep(until: Clock.nanoseconds + 200_000_000)
  }

  static func shell(_ command: String) -> Int32 {
    var pid = pid_t()
    let words = ["/bin/sh", "-c", command]
    var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) }
    arguments.append(nil)
    defer { for argument in arguments { free(argument) } }
    guard posix_spawn(&pid, "/bin/sh", nil, nil, arguments, environ) == 0 else { return -1 }
    var status: Int32 = 0
    waitpid(pid, &status, 0)
    return status
  }

  static func contents(_ path: String) -> String? {
    guard let file = fopen(path, "r") else { return nil }
    defer { fclose(file) }
    var bytes = [UInt8](repeating: 0, count: 65_536)
    let count = fread(&bytes, 1, bytes.count, file)
    return String(decoding: bytes[..<count], as: UTF8.self)
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
