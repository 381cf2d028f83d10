// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQReplication
import MemQRuntime
import SwiftProtobuf

extension ReplicationNode {
  /// Has metadata know that records are gone, then lets go of them here. The other replicas hear of it from the cluster's image.
  func deleteRecords(
    _ request: Memq_V1_DeleteRecordsRequest
  ) async throws(MemQError) -> Memq_V1_DeleteRecordsResponse {
    guard request.partitions.count <= LogStartRaise.perRequestMax else {
      throw MemQError(
        .invalidArgument, "too many partitions in one request", subject: "partitions",
        limit: Int64(LogStartRaise.perRequestMax), actual: Int64(request.partitions.count))
    }
    var offsets: [Memq_V1_PartitionOffset] = []
    var raises: [(at: Int, raise: LogStartRaise)] = []
    var member: ReplicaMember?
    for wire in request.partitions {
      var entry = Memq_V1_PartitionOffset()
      entry.topicPartition = wire.topicPartition
      entry.offset = -1
      entry.logStartOffset = -1
      do throws(MemQError) {
        let (raise, own) = try await self.deletion(wire)
        member = own
        raises.append((offsets.count, raise))
      } catch {
        entry.error = Memq_V1_ErrorDetail(error)
      }
      offsets.append(entry)
    }
    if let member {
      let errors = await self.proposals.raise(
        raises.map(\.raise), of: member.id.node, member.nodeEpoch)
      for (error, (at, raise)) in zip(errors, raises) {
        if let error {
          offsets[at].error = Memq_V1_ErrorDetail(error)
        } else {
          await self.raised(raise)
          offsets[at].leaderEpoch = raise.leaderEpoch.rawValue
          offsets[at].offset = raise.offset.rawValue
          offsets[at].logStartOffset = raise.offset.rawValue
        }
      }
    }
    let answered = offsets
    return .with { $0.offsets = answered }
  }

  private func deletion(
    _ wire: Memq_V1_RecordsBefore
  ) async throws(MemQError) -> (LogStartRaise, ReplicaMember) {
    let partition = try TopicPartition(wire.topicPartition)
    guard wire.offset >= -1 else {
      throw MemQError(
        .invalidArgument, "an offset is not negative, or -1 for the committed end",
        subject: "\(partition)", limit: -1, actual: wire.offset)
    }
    let offset = wire.offset < 0 ? nil : Offset(wire.offset)
    let shard = try self.requireShard(of: partition)
    return try await Self.ask(shard) { shard -> Result<(LogStartRaise, ReplicaMember), MemQError> in
      do throws(MemQError) {
        guard let owner = shard.partitions[partition] else { throw shard.missing(partition) }
        return .success((try owner.deletion(below: offset), owner.desired.member))
      } catch {
        return .failure(error)
      }
    }.get()
  }

  /// From here on nobody is answered with records below.
  private func raised(_ raise: LogStartRaise) async {
    guard let shard = self.shard(of: raise.partition) else { return }
    await Self.ask(shard) { $0.partitions[raise.partition]?.logStartRaised(to: raise.offset) }
  }
}
