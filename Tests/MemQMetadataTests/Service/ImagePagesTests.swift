// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
@testable import MemQMetadataService
import MemQModel
import MemQRuntime
import SwiftProtobuf
import Testing

@Suite struct ImagePagesTests {
  private func image() throws -> ClusterImage {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    for number in 1...5 { try cluster.makeTopic("t\(number)", partitions: 300, replicas: 3) }
    return cluster.state.image!
  }

  /// 256 bytes: an entry in each; 1 MiB: all in one.
  @Test(arguments: [256, 4_096, 1 << 20])
  func `an image told in pages is the image`(pageBytesMax: Int) throws {
    let image = try self.image()
    var assembly = ImageAssembly()
    var sizes: [Int] = []
    var found: ClusterImage?
    for page in ImagePages(image, pageBytesMax: pageBytesMax) {
      #expect(found == nil, "a page behind the last")
      sizes.append(try page.serializedData().count)
      found = try assembly.take(page)
      #expect((found == nil) == page.more)
    }
    #expect(found == image)
    #expect(!assembly.isUnfinished)
    // The estimate is not below what an entry takes, but for what each page begins with.
    #expect(sizes.max()! <= pageBytesMax + 1_024)
    #expect(sizes.count > 1 || pageBytesMax == 1 << 20)
  }

  @Test func `an image that is not told to its end is not taken for one`() throws {
    let image = try self.image()
    var later = image
    later.revision = image.revision.next
    let pages = Array(ImagePages(image, pageBytesMax: 65_536))
    #expect(pages.count > 2)
    var assembly = ImageAssembly()
    #expect(try assembly.take(pages[0]) == nil)
    let other = Array(ImagePages(later, pageBytesMax: 65_536))[1]
    #expect(
      thrown { () throws(MemQError) in try assembly.take(other) }?.code == .corruptMessage)
    var changed = ImageAssembly()
    #expect(try changed.take(pages[0]) == nil)
    var change = pages[1]
    change.full = false
    #expect(
      thrown { () throws(MemQError) in try changed.take(change) }?.code == .corruptMessage)
  }

  @Test
  func `changes are kept up to a fraction of an image, and whoever is further behind gets all`()
    async throws
  {
    var cluster = try PureCluster()
    try cluster.joinReplicas(1)
    try cluster.makeTopic("t", partitions: 1_000)
    let cell = StateCell(limits: MetadataLimits())
    try cell.reload(cluster.entries.values, at: cluster.revision)
    let feed = ImageFeed(cell: cell, at: cluster.revision)
    let image = try #require(cluster.state.image)
    var delta = try #require(cluster.deltas.last)
    #expect(delta.partitions.count == 1_000)
    let first = delta.revision
    for _ in 0..<20 {
      delta.revision = delta.revision.next
      feed.append(delta, of: image)
    }
    guard case .whole = try await feed.next(after: first) else {
      Issue.record("20,000 changed partitions were kept")
      return
    }
    let recent = Revision(delta.revision.rawValue - 10)
    guard case .change(let update) = try await feed.next(after: recent) else {
      Issue.record("10,000 changed partitions were not kept")
      return
    }
    #expect(update.revision == recent.next.rawValue && update.partitions.count == 1_000)
  }
}
