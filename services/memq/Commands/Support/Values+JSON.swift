// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQClient
import MemQModel

// The fields of JSON documents: names never change their meaning (docs/operations/cli.md).

extension TopicInfo {
  var json: JSON {
    [
      "name": .string(self.name), "id": .text(self.id), "partitions": .number(self.partitionCount),
      "replication_factor": .number(self.replicationFactor),
      "settings": .dictionary(self.settings), "created_at_ms": .number(self.createdAt.milliseconds),
    ]
  }
}

extension PartitionInfo {
  func json(topic: String) -> JSON {
    [
      "topic": .string(topic), "partition": .number(self.partition.rawValue),
      "leader": .optional(self.leader) { .number($0.rawValue) },
      "leader_epoch": .number(self.leaderEpoch.rawValue),
      "partition_epoch": .number(self.partitionEpoch.rawValue),
      "replicas": .array(self.replicas.map { .number($0.rawValue) }),
      "volumes": .array(self.volumes.map { .text($0) }),
      "isr": .array(self.isr.map { .number($0.rawValue) }),
      "elr": .array(self.elr.map { .number($0.rawValue) }),
      "target_replicas": .array(self.targetReplicas.map { .number($0.rawValue) }),
      "damaged": .array(
        self.damaged.map {
          ["node": .number($0.node.rawValue), "from_offset": .number($0.from.rawValue)]
        }),
      "upload_group": .number(self.uploadGroup),
      "uploaded_offset": .number(self.uploadedOffset.rawValue),
    ]
  }
}

extension NodeInfo {
  var json: JSON {
    [
      "id": .number(self.id.rawValue), "service": .string(self.service),
      "state": .string(self.state),
      "address": .string(self.address), "admin_address": .string(self.adminAddress),
      "rack": .string(self.rack), "host": .string(self.host), "pid": .number(self.pid),
      "epoch": .number(self.epoch.rawValue), "volumes": .array(self.volumes.map { .text($0.id) }),
      "volume_states": .array(
        self.volumes.map {
          [
            "id": .text($0.id), "state": .string($0.state),
            "capacity_bytes": .number($0.capacityBytes), "problem": .string($0.problem),
          ]
        }),
    ]
  }
}

extension FileInfo {
  var json: JSON {
    [
      "name": .string(self.name), "size": .number(self.size),
      "sha256": .string(hexText(self.sha256)),
      "verdict": .string(self.verdict.kind.rawValue), "version": .number(self.version),
      "topic": .string(self.topic), "content_type": .string(self.contentType),
      "partition": .number(self.partition.rawValue), "offset": .number(self.offset.rawValue),
      "published_at_ms": .number(self.publishedAt.milliseconds),
      "engine": .string(self.verdict.engine), "reason": .string(self.verdict.reason),
      "attributes": .dictionary(self.attributes),
    ]
  }
}

extension QuarantineEntry {
  var json: JSON {
    [
      "id": .string(self.id), "topic": .string(self.topic), "name": .string(self.name),
      "signature": .string(self.verdict.signature),
      "verdict": .string(self.verdict.kind.rawValue), "reason": .string(self.verdict.reason),
      "size": .number(self.size), "sha256": .string(hexText(self.sha256)),
      "engine": .string(self.verdict.engine),
      "database_version": .string(self.verdict.databaseVersion),
      "quarantined_at_ms": .number(self.quarantinedAt.milliseconds),
    ]
  }
}

extension ScanStatus {
  var json: JSON {
    [
      "engines": .array(
        self.engines.map {
          [
            "name": .string($0.name), "database_version": .string($0.databaseVersion),
            "rules": .number($0.rules), "ready": .bool($0.isReady), "problem": .string($0.problem),
          ]
        }),
      "queued": .number(self.queued), "running": .number(self.running),
      "clean": .number(self.clean), "infected": .number(self.infected),
      "not_scanned": .number(self.notScanned), "scanned_bytes": .number(self.scannedBytes),
      "scratch_used_bytes": .number(self.scratchUsedBytes),
      "scratch_max_bytes": .number(self.scratchMaxBytes),
    ]
  }
}

extension UploadStatus {
  var json: JSON {
    [
      "partitions": .array(
        self.partitions.map {
          [
            "topic": .string($0.topic), "partition": .number($0.partition.rawValue),
            "log_start_offset": .number($0.logStart.rawValue),
            "local_start_offset": .number($0.localStart.rawValue),
            "uploaded_offset": .number($0.uploaded.rawValue),
            "high_watermark": .number($0.highWatermark.rawValue),
            "local_bytes": .number($0.localBytes),
          ]
        }),
      "objects": .number(self.objects), "object_bytes": .number(self.objectBytes),
      "billed_requests": .number(self.billedRequests), "bodies": .number(self.bodies),
      "body_bytes": .number(self.bodyBytes),
      "groups": .array(
        self.groups.map {
          [
            "id": .number($0.id), "holder": .optional($0.holder) { .number($0.rawValue) },
            "lease_epoch": .number($0.leaseEpoch.rawValue), "objects": .number($0.objects),
            "object_bytes": .number($0.objectBytes),
            "billed_requests": .number($0.billedRequests),
          ]
        }),
    ]
  }
}

extension PlanMove {
  var json: JSON {
    [
      "kind": .string(self.kind), "topic": .string(self.topic),
      "partition": .number(self.partition.rawValue),
      "from": .optional(self.from) { .number($0.rawValue) }, "to": .number(self.to.rawValue),
      "goal": .string(self.goal), "reason": .string(self.reason), "state": .string(self.state),
    ]
  }
}
