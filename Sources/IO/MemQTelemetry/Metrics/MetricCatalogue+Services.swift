// Part of MemQ. SPDX-License-Identifier: Apache-2.0

extension MetricCatalogue {
  static let storage: [MetricDefinition] = [
    MetricDefinition(
      "memq_storage_carried_bytes_total", .counter,
      "Bytes the cleaner copied to cold segments to make room."),
    MetricDefinition("memq_storage_groups_total", .counter, "Group commits written to volumes."),
    MetricDefinition(
      "memq_storage_partitions_at_cap", .gauge, labels: ["volume"],
      "Partitions of a volume with as many bytes as their cap allows."),
    MetricDefinition("memq_storage_read_bytes_total", .counter, "Bytes read from volumes' files."),
    MetricDefinition(
      "memq_storage_segments", .gauge, labels: ["volume", "kind"],
      "Segments of a volume: hot, cold, or free to be written."),
    MetricDefinition(
      "memq_storage_sync_seconds", .histogram, "Time of one fdatasync of a volume, in seconds."),
    MetricDefinition(
      "memq_storage_catch_up_read_bytes_total", .counter,
      "Bytes handed to readers far behind the end of their volume's log."),
    MetricDefinition(
      "memq_storage_catch_up_wait_seconds", .histogram,
      "Time that a read far behind waited for its turn, in seconds."),
    MetricDefinition(
      "memq_storage_read_ahead_hit_bytes_total", .counter,
      "Bytes handed to sequential readers from what was read ahead of them."),
    MetricDefinition(
      "memq_storage_read_errors_total", .counter,
      "Reads of volumes that the disk failed, or that found damage."),
    MetricDefinition(
      "memq_storage_written_bytes_total", .counter,
      "Bytes written to volumes, frames and padding included."),
    MetricDefinition(
      "memq_object_store_requests_total", .counter, labels: ["operation", "store"],
      "Requests to the object store, by operation; most stores bill each."),
    MetricDefinition(
      "memq_object_store_bytes_total", .counter, labels: ["operation", "store"],
      "Bytes moved to and from the object store."),
    MetricDefinition(
      "memq_object_store_errors_total", .counter, labels: ["operation", "store"],
      "Requests to the object store that failed."),
    MetricDefinition(
      "memq_object_reader_span_hits_total", .counter,
      "Reads of uploaded records that the cache answered."),
    MetricDefinition(
      "memq_object_reader_span_misses_total", .counter,
      "Reads of uploaded records that the object store answered."),
  ]

  static let metadata: [MetricDefinition] = [
    MetricDefinition(
      "memq_metadata_command_duration_seconds", .histogram, labels: ["command"],
      "Time of one change of the cluster's state, its sync included, in seconds."),
    MetricDefinition(
      "memq_metadata_conflicts_total", .counter,
      "Changes that were tried again because another was faster."),
    MetricDefinition("memq_metadata_elections_total", .counter, "Changes of a partition's leader."),
    MetricDefinition(
      "memq_metadata_unclean_elections_total", .counter,
      "Elections of a replica that may lack committed records."),
    MetricDefinition(
      "memq_metadata_recovery_elections_total", .counter,
      "Elections among replicas that all restarted uncleanly: the one whose log goes furthest leads."
    ),
    MetricDefinition(
      "memq_metadata_fenced_nodes_total", .counter, "Nodes that were fenced for their silence."),
    MetricDefinition(
      "memq_metadata_expired_members_total", .counter,
      "Members of consumer groups that were taken out for their silence."),
    MetricDefinition(
      "memq_metadata_overdue_members_total", .counter,
      "Members of consumer groups that were taken out because they gave partitions back too late."),
    MetricDefinition(
      "memq_metadata_group_members", .gauge, "Members of all consumer groups that are alive."),
    MetricDefinition(
      "memq_metadata_held_heartbeats", .gauge,
      "Heartbeats of group members that wait for something to tell."),
    MetricDefinition(
      "memq_metadata_offset_writes_total", .counter,
      "Writes of committed offsets; many commits share one."),
    MetricDefinition(
      "memq_metadata_offset_commits_total", .counter, "Commits of offsets that were written."),
    MetricDefinition(
      "memq_metadata_full_images_total", .counter, "Whole cluster images sent to watchers."),
    MetricDefinition(
      "memq_metadata_snapshots_total", .counter,
      "Snapshots of metadata written into the object store."),
    MetricDefinition(
      "memq_metadata_store_syncs_total", .counter, "Syncs of the metadata store."),
    MetricDefinition(
      "memq_metadata_store_transactions_total", .counter,
      "Transactions of the metadata store; many share one sync."),
    MetricDefinition("memq_metadata_watchers", .gauge, "Open watches of the cluster image."),
    MetricDefinition(
      "memq_metadata_is_controller", .gauge, "1 while this metadata instance decides, else 0."),
    MetricDefinition("memq_metadata_nodes", .gauge, "Nodes of the cluster."),
    MetricDefinition("memq_metadata_topics", .gauge, "Topics of the cluster."),
    MetricDefinition("memq_metadata_partitions", .gauge, "Partitions of the cluster."),
    MetricDefinition(
      "memq_metadata_leaderless_partitions", .gauge, "Partitions that nobody leads."),
    MetricDefinition(
      "memq_metadata_damaged_replicas", .gauge,
      "Replicas that lost records to damage and are not filled anew yet."),
    MetricDefinition(
      "memq_metadata_failed_volumes", .gauge,
      "Volumes that their nodes reported as failed; their replicas are fenced."),
    MetricDefinition(
      "memq_metadata_image_revision", .gauge, "Revision of the newest cluster image."),
  ]

  static let replication: [MetricDefinition] = [
    MetricDefinition(
      "memq_replication_append_batches_total", .counter, "Record batches appended as leader."),
    MetricDefinition(
      "memq_replication_append_bytes_total", .counter, "Bytes of record batches appended as leader."
    ),
    MetricDefinition(
      "memq_replication_append_duration_seconds", .histogram,
      "Time from a batch's arrival at its leader to its acknowledgement, in seconds."),
    MetricDefinition(
      "memq_replication_append_duplicates_total", .counter,
      "Batches of idempotent producers that were in the log already."),
    MetricDefinition(
      "memq_replication_append_parked", .gauge,
      "Append streams that wait because too much is in flight."),
    MetricDefinition(
      "memq_replication_append_refused_total", .counter, labels: ["reason"],
      "Batches refused, by error code."),
    .init(
      "memq_replication_append_slowed_total", .counter,
      "Batches whose answer waited because their partition neared local.retention.bytes."),
    MetricDefinition(
      "memq_replication_follow_bytes_total", .counter,
      "Bytes of record batches written as follower."),
    MetricDefinition("memq_replication_partitions", .gauge, "Replicas on this node."),
    MetricDefinition(
      "memq_replication_push_bytes_total", .counter, labels: ["from"],
      "Bytes of record batches pushed to followers, from memory or from the disk."),
    MetricDefinition(
      "memq_replication_read_bytes_total", .counter, "Bytes of record batches read from this node."),
    MetricDefinition(
      "memq_replication_replica_lag_records", .gauge,
      "Records that the follower furthest behind lacks, over the partitions led here."),
    MetricDefinition(
      "memq_replication_streams", .gauge, labels: ["role"],
      "Streams between this node's replicas and others', two for each follower volume and leader."),
    MetricDefinition(
      "memq_replication_under_replicated_partitions", .gauge,
      "Partitions led here with fewer replicas in sync than assigned."),
    MetricDefinition(
      "memq_replication_volumes_failed", .gauge,
      "Volumes out of use: they could not be opened, or a write or sync failed."),
    MetricDefinition(
      "memq_replication_volumes_stalled", .gauge,
      "Volumes whose disk has not answered a write or sync for 10 s or longer."),
    MetricDefinition(
      "memq_replication_partitions_damaged", .gauge,
      "Partitions of which records on this node's volumes do not read."),
  ]

  static let ingest: [MetricDefinition] = [
    MetricDefinition(
      "memq_ingest_produce_records_total", .counter, "Records taken from producers."),
    MetricDefinition(
      "memq_ingest_produce_bytes_total", .counter, "Bytes of record batches taken from producers."),
    MetricDefinition(
      "memq_ingest_produce_duration_seconds", .histogram,
      "Time from a produce request's arrival to its acknowledgement, in seconds."),
    MetricDefinition(
      "memq_ingest_produce_in_flight_bytes", .gauge,
      "Bytes taken from producers and not acknowledged yet."),
    MetricDefinition(
      "memq_ingest_produce_refused_total", .counter, labels: ["code"],
      "Produce requests refused, by error code."),
    MetricDefinition(
      "memq_ingest_produce_retries_total", .counter, labels: ["code"],
      "Appends tried again at another leader or a later time, by error code."),
    MetricDefinition(
      "memq_ingest_fetch_bytes_total", .counter, labels: ["tier"],
      "Bytes of record batches given to consumers, from SSD or from objects."),
    MetricDefinition("memq_ingest_file_puts", .gauge, "File puts under way."),
    MetricDefinition("memq_ingest_file_put_bytes_total", .counter, "Bytes of files taken."),
    MetricDefinition(
      "memq_ingest_file_put_duration_seconds", .histogram,
      "Time from a put's first message to its end, in seconds."),
    MetricDefinition(
      "memq_ingest_file_put_failed_total", .counter, labels: ["code"],
      "File puts that failed, by error code."),
    MetricDefinition("memq_ingest_file_get_bytes_total", .counter, "Bytes of files given."),
    MetricDefinition(
      "memq_ingest_quarantined_batches_total", .counter, labels: ["result"],
      "Record batches refused for malware, by what became of their copy: copied, failed."),
    MetricDefinition(
      "memq_ingest_file_finisher_total", .counter, labels: ["result"],
      "Puts that nobody drove any more and this ingest took over, by how they ended."),
  ]

  static let uploader: [MetricDefinition] = [
    MetricDefinition("memq_uploader_objects_total", .counter, "Objects announced."),
    MetricDefinition("memq_uploader_object_bytes_total", .counter, "Bytes of announced objects."),
    MetricDefinition("memq_uploader_records_total", .counter, "Records in accepted ranges."),
    MetricDefinition(
      "memq_uploader_refused_ranges_total", .counter,
      "Ranges that metadata refused: their bytes are dead."),
    MetricDefinition(
      "memq_uploader_upload_duration_seconds", .histogram,
      "Time from a gathered object to its announcement, in seconds."),
    MetricDefinition(
      "memq_uploader_failures_total", .counter, labels: ["step"],
      "Attempts that failed and are tried again: read, put, commit, lease, collect."),
    MetricDefinition("memq_uploader_leases", .gauge, "Upload groups held."),
    MetricDefinition(
      "memq_uploader_waiting_bytes", .gauge,
      "Committed bytes that wait for their object, by estimate."),
    MetricDefinition("memq_uploader_bodies_total", .counter, "File bodies made whole."),
    MetricDefinition("memq_uploader_body_bytes_total", .counter, "Bytes of file bodies written."),
    MetricDefinition(
      "memq_uploader_collected_total", .counter, labels: ["kind"],
      "Things deleted from the object store: object, orphan, body."),
  ]

  static let scanner: [MetricDefinition] = [
    MetricDefinition("memq_scanner_scanned_bytes_total", .counter, "Bytes judged."),
    MetricDefinition(
      "memq_scanner_scan_duration_seconds", .histogram,
      "Time an engine took for one thing, in seconds."),
    MetricDefinition(
      "memq_scanner_verdicts_total", .counter, labels: ["reason", "verdict"],
      "Verdicts: clean, infected, or not_scanned with its reason."),
  ]

  static let rebalancer: [MetricDefinition] = [
    MetricDefinition(
      "memq_rebalancer_moves_total", .counter, labels: ["result"],
      "Moves of plans, by result: done, failed, skipped.")
  ]
}
