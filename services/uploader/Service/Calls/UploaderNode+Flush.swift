// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQPacking
import MemQRPC
import MemQRuntime
import MemQSystem
import SwiftProtobuf

extension UploaderNode {
  /// On calls one uploader makes to another: flush what you hold yourself, ask nobody else.
  private static let forwardedHeader = "memq-forwarded"
  private static let timeoutDefault: Duration = .seconds(60)

  func registerFlush(on router: inout RPCRouter) {
    router.handle(UploaderMethods.flush) { request, context in
      let timeout = context.remaining ?? Self.timeoutDefault
      let isForwarded = context.metadata[first: Self.forwardedHeader] != nil
      let totals = try await self.flush(request.topic, timeout: timeout, isForwarded: isForwarded)
      return .with {
        $0.objects = totals.objects
        $0.records = totals.records
        $0.bytes = totals.byteCount
      }
    }
  }

  /// Uploads everything that is committed at this moment, and answers when it is announced.
  private func flush(
    _ topic: String, timeout: Duration, isForwarded: Bool
  ) async throws(MemQError) -> UploadPacker.FlushTotals {
    let running = try self.whileRunning()
    let deadline = self.clock.monotonic + timeout
    let image = self.cluster.image
    let partitions = try self.partitions(ofTopic: topic).filter {
      image.topics[$0.id.topic]?.settings.hasObjectTier ?? false
    }
    var byGroup: SortedMap<Int32, [TopicPartition]> = [:]
    for partition in partitions { byGroup[partition.uploadGroup, default: []].append(partition.id) }

    var mine: [(GroupUploader, [TopicPartition])] = []
    var elsewhere: Set<NodeID> = []
    for (group, members) in byGroup {
      switch try await self.holder(of: group, members, running, deadline, isForwarded) {
      case .here(let owner): mine.append((owner, members))
      case .there(let node): elsewhere.insert(node)
      case .nowhere: continue
      }
    }
    let (owners, nodes) = (mine, elsewhere)
    return try await self.gather(topic, owners, nodes, deadline)
  }

  private enum Holder {
    case here(GroupUploader)
    case there(NodeID)
    /// Another uploader's business, in a forwarded call.
    case nowhere
  }

  /// Waits until somebody holds the group, and knows its partitions.
  private func holder(
    of group: Int32, _ members: [TopicPartition], _ running: Running,
    _ deadline: MonotonicInstant, _ isForwarded: Bool
  ) async throws(MemQError) -> Holder {
    var hasAsked = false
    while true {
      if let owner = await running.leases.owner(of: group) {
        if await owner.knows(self.existing(members)) { return .here(owner) }
        // A topic made since the last renewal.
      } else if let holder = self.cluster.image.uploadGroups[group]?.holder,
        holder != self.cluster.nodeID, self.cluster.image.nodes[holder]?.state.isLive == true
      {
        return isForwarded ? .nowhere : .there(holder)
      } else if isForwarded && hasAsked {
        return .nowhere
      }
      guard self.clock.monotonic < deadline else {
        throw MemQError(
          .unavailable, "no uploader holds the upload group; try again",
          subject: "upload group \(group)")
      }
      if hasAsked { await self.pause(.milliseconds(100)) }
      _ = await running.leases.renewNow()
      hasAsked = true
      if Task.isCancelled { throw MemQError(.cancelled, "the caller gave up") }
    }
  }

  /// Those whose topics are not deleted meanwhile.
  private func existing(_ partitions: [TopicPartition]) -> [TopicPartition] {
    let image = self.cluster.image
    return partitions.filter { image.partitions[$0] != nil }
  }

  private func pause(_ duration: Duration) async { try? await Task.sleep(for: duration) }

  private func gather(
    _ topic: String, _ owners: [(GroupUploader, [TopicPartition])], _ nodes: Set<NodeID>,
    _ deadline: MonotonicInstant
  ) async throws(MemQError) -> UploadPacker.FlushTotals {
    let answers = await withTaskGroup(of: Outcome<UploadPacker.FlushTotals>.self) { tasks in
      for (owner, members) in owners {
        tasks.addTask {
          await Outcome { () async throws(MemQError) in
            try await self.flush(owner, members, deadline)
          }
        }
      }
      for node in nodes {
        tasks.addTask {
          await Outcome { () async throws(MemQError) in
            try await self.forward(topic, to: node, deadline)
          }
        }
      }
      var answers: [Outcome<UploadPacker.FlushTotals>] = []
      for await answer in tasks { answers.append(answer) }
      return answers
    }
    var totals = UploadPacker.FlushTotals()
    for answer in answers {
      let one = try answer.get()
      totals.objects += one.objects
      totals.records += one.records
      totals.byteCount += one.byteCount
    }
    return totals
  }

  private func flush(
    _ owner: GroupUploader, _ members: [TopicPartition], _ deadline: MonotonicInstant
  ) async throws(MemQError) -> UploadPacker.FlushTotals {
    let watch = LeaderWatch(cluster: self.cluster, timeout: .seconds(5))
    var committed: [UploadPacker.Progress]?
    while committed == nil {
      do throws(MemQError) {
        committed = try await watch.committed(self.existing(members))
      } catch {
        // An election passes; the caller's patience decides.
        guard error.isRetriable, self.clock.monotonic < deadline, !Task.isCancelled else {
          throw error
        }
        await self.pause(.milliseconds(100))
      }
    }
    return try await owner.flush(
      committed ?? [], timeout: max(deadline - self.clock.monotonic, .zero))
  }

  private func forward(
    _ topic: String, to node: NodeID, _ deadline: MonotonicInstant
  ) async throws(MemQError) -> UploadPacker.FlushTotals {
    var metadata = RPCMetadata()
    metadata.add(Self.forwardedHeader, "1")
    let response = try await self.cluster.channel(to: node, lane: .control).call(
      UploaderMethods.flush, .with { $0.topic = topic },
      RPCCallOptions(
        timeout: max(deadline - self.clock.monotonic, .milliseconds(1)), metadata: metadata))
    return UploadPacker.FlushTotals(
      objects: response.objects, records: response.records, byteCount: response.bytes)
  }
}
