// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Metrics
import Synchronization

/// What metadata measures. All names begin with `memq_metadata_`.
struct MetadataMetrics: Sendable {
  /// Commands that were asked again because another was faster.
  let conflicts = Counter(label: "memq_metadata_conflicts_total")
  /// Changes of a partition's leader.
  let elections = Counter(label: "memq_metadata_elections_total")
  /// Elections that may have lost committed records.
  let uncleanElections = Counter(label: "memq_metadata_unclean_elections_total")
  /// Elections among replicas that all restarted uncleanly, by what they said of their logs.
  let recoveryElections = Counter(label: "memq_metadata_recovery_elections_total")
  /// Nodes fenced for silence.
  let fencedNodes = Counter(label: "memq_metadata_fenced_nodes_total")
  /// Group members taken out for silence.
  let expiredMembers = Counter(label: "memq_metadata_expired_members_total")
  /// Group members that did not give partitions back in time and were taken out.
  let overdueMembers = Counter(label: "memq_metadata_overdue_members_total")
  /// Members of all groups.
  let groupMembers = Gauge(label: "memq_metadata_group_members")
  /// Heartbeats of group members that wait for something to tell.
  let heldHeartbeats = Gauge(label: "memq_metadata_held_heartbeats")
  /// Writes of committed offsets, and the commits they made durable.
  let offsetWrites = Counter(label: "memq_metadata_offset_writes_total")
  let offsetCommits = Counter(label: "memq_metadata_offset_commits_total")
  /// Whole images sent to watchers.
  let fullImages = Counter(label: "memq_metadata_full_images_total")
  /// Snapshots written into the object store.
  let snapshots = Counter(label: "memq_metadata_snapshots_total")
  /// Open watches of the image.
  let watchers = Meter(label: "memq_metadata_watchers")
  /// 1 while this instance decides.
  let isController = Gauge(label: "memq_metadata_is_controller")
  let nodes = Gauge(label: "memq_metadata_nodes")
  let topics = Gauge(label: "memq_metadata_topics")
  let partitions = Gauge(label: "memq_metadata_partitions")
  let leaderlessPartitions = Gauge(label: "memq_metadata_leaderless_partitions")
  let damagedReplicas = Gauge(label: "memq_metadata_damaged_replicas")
  let failedVolumes = Gauge(label: "memq_metadata_failed_volumes")
  let imageRevision = Gauge(label: "memq_metadata_image_revision")
  /// Syncs of the store, and the transactions they made durable.
  let syncs = Counter(label: "memq_metadata_store_syncs_total")
  let transactions = Counter(label: "memq_metadata_store_transactions_total")

  private let commands = CommandTimers()

  /// Time of one command, its wait for the sync included.
  func command(_ name: String, took duration: Duration) {
    self.commands.timer(name).recordNanoseconds(duration.nanoseconds)
  }
}

/// One timer per command, made when it is first used.
private final class CommandTimers: Sendable {
  private let timers = Mutex<[String: Metrics.Timer]>([:])

  func timer(_ name: String) -> Metrics.Timer {
    self.timers.withLock { timers in
      if let known = timers[name] { return known }
      let made = Metrics.Timer(
        label: "memq_metadata_command_duration_seconds", dimensions: [("command", name)])
      timers[name] = made
      return made
    }
  }
}
