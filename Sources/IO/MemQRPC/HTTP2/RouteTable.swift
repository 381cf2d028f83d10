// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// The routes of a server by the bytes of their paths: no String is made to find one.
final class RouteTable: Sendable {
  private struct Slot: Sendable {
    let path: [UInt8]
    let route: RPCRouter.Route
  }

  /// Open addressing; a power of two, at most half full.
  private let slots: [Slot?]
  private let mask: Int

  init(_ router: RPCRouter) {
    var size = 16
    while size < router.routes.count * 2 { size *= 2 }
    var slots = [Slot?](repeating: nil, count: size)
    for (path, route) in router.prepared() {
      let bytes = Array(path.utf8)
      var index = bytes.withUnsafeBufferPointer { Self.hash($0) } & (size - 1)
      while slots[index] != nil { index = (index + 1) & (size - 1) }
      slots[index] = Slot(path: bytes, route: route)
    }
    self.slots = slots
    self.mask = size - 1
  }

  func find(_ path: UnsafeBufferPointer<UInt8>) -> RPCRouter.Route? {
    var index = Self.hash(path) & self.mask
    while let slot = self.slots[index] {
      if slot.path.elementsEqual(path) { return slot.route }
      index = (index + 1) & self.mask
    }
    return nil
  }

  /// FNV-1a: the paths are ours, so nobody can choose them to collide.
  private static func hash(_ bytes: UnsafeBufferPointer<UInt8>) -> Int {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for byte in bytes { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    return Int(truncatingIfNeeded: hash ^ hash >> 32)
  }
}
