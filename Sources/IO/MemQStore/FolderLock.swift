// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import Synchronization

/// A folder that one store has to itself, by a lock on a file in it. The kernel lets go of it when the process ends.
final class FolderLock: Sendable {
  private let folder: String
  private let descriptor: Mutex<Int32?>

  /// Makes the folder when it isn't there.
  ///
  /// - Throws: `.dataFolderInUse`; `.unavailable` for what the environment refuses.
  init(_ folder: String, file: String) throws(MemQError) {
    self.folder = folder
    try Self.makeFolder(folder)
    let path = folder + "/" + file
    let descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o644)
    guard descriptor >= 0 else { throw Self.refused("open", path) }
    guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
      let isTaken = errno == EWOULDBLOCK
      let error = Self.refused("lock", path)
      Glibc.close(descriptor)
      throw isTaken
        ? MemQError(
          .dataFolderInUse, "another metadata service uses this data folder", subject: folder)
        : error
    }
    self.descriptor = Mutex(descriptor)
  }

  deinit { self.release() }

  func release() {
    self.descriptor.withLock { descriptor in
      if let open = descriptor { Glibc.close(open) }
      descriptor = nil
    }
  }

  /// Makes the folder's entries durable, its own one in its parent too.
  func syncFolder() throws(MemQError) {
    let parent = self.folder.split(separator: "/").dropLast().joined(separator: "/")
    for path in [self.folder, (self.folder.hasPrefix("/") ? "/" : "./") + parent] {
      let descriptor = Glibc.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
      guard descriptor >= 0 else { throw Self.refused("open", path) }
      defer { Glibc.close(descriptor) }
      guard fsync(descriptor) == 0 else { throw Self.refused("sync", path) }
    }
  }

  private static func makeFolder(_ folder: String) throws(MemQError) {
    var path = folder.hasPrefix("/") ? "" : "."
    for part in folder.split(separator: "/") {
      path += "/" + part
      guard mkdir(path, 0o755) == 0 || errno == EEXIST else { throw self.refused("make", path) }
    }
  }

  private static func refused(_ what: String, _ path: String) -> MemQError {
    let code = errno
    return MemQError(
      .unavailable, "can't \(what) it: \(String(cString: strerror(code)))", subject: path,
      actual: Int64(code), isRetriable: false)
  }
}
