// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Every metric there is. docs/operations/metrics.md is made from it, and a test finds metrics that are missing here.
public enum MetricCatalogue {
  public static let all: [MetricDefinition] =
    process + runtime + storage + metadata + replication + ingest + uploader + scanner + rebalancer

  static let process: [MetricDefinition] = [
    MetricDefinition(
      "memq_build_info", .gauge, labels: ["configuration", "service", "version"],
      "Always 1; its labels say which build runs."),
    MetricDefinition("memq_uptime_seconds", .gauge, "Seconds since the process started."),
    MetricDefinition(
      "process_cpu_seconds_total", .counter, "User and system processor time, in seconds."),
    MetricDefinition("process_open_fds", .gauge, "Open file descriptors."),
    MetricDefinition("process_resident_memory_bytes", .gauge, "Resident memory, in bytes."),
    MetricDefinition(
      "process_start_time_seconds", .gauge, "When the process started, in seconds since 1970."),
    MetricDefinition("process_threads", .gauge, "Threads of the process."),
    MetricDefinition("process_virtual_memory_bytes", .gauge, "Virtual memory, in bytes."),
    MetricDefinition(
      "memq_telemetry_series_folded_total", .counter,
      "Label sets that were folded into \"other\" or refused, because a limit was reached."),
  ]

  static let runtime: [MetricDefinition] = [
    MetricDefinition(
      "memq_rpc_calls_total", .counter, labels: ["code", "method"],
      "Calls that ended, by method and gRPC status code."),
    MetricDefinition(
      "memq_rpc_call_duration_seconds", .histogram, labels: ["method"],
      "Time from a call's headers to its status, in seconds; streams last long."),
    MetricDefinition(
      "memq_rpc_calls_in_flight", .gauge, "Calls that were begun and are not over."),
    MetricDefinition(
      "memq_rpc_messages_total", .counter, labels: ["direction", "method"],
      "Messages of calls that ended, received and sent."),
    MetricDefinition(
      "memq_rpc_message_bytes_total", .counter, labels: ["direction", "method"],
      "Bytes of those messages, uncompressed."),
    MetricDefinition(
      "memq_rpc_resets_total", .counter, labels: ["reason"],
      "Calls that ended without an answer of their handler, by what ended them."),
    MetricDefinition(
      "memq_rpc_client_calls_total", .counter, labels: ["code", "method"],
      "Calls to other nodes that ended, by method and gRPC status code; several attempts are one call."
    ),
    MetricDefinition(
      "memq_rpc_client_call_duration_seconds", .histogram, labels: ["method"],
      "Time from the start of a call to another node to its status, in seconds."),
    MetricDefinition(
      "memq_rpc_client_calls_in_flight", .gauge, "Calls to other nodes that are not over."),
    MetricDefinition(
      "memq_rpc_client_messages_total", .counter, labels: ["direction", "method"],
      "Messages of calls to other nodes that ended, received and sent."),
    MetricDefinition(
      "memq_rpc_client_message_bytes_total", .counter, labels: ["direction", "method"],
      "Bytes of those messages, uncompressed."),
    MetricDefinition(
      "memq_rpc_client_resets_total", .counter, labels: ["reason"],
      "Calls to other nodes that ended without an answer, by what ended them."),
    MetricDefinition("memq_rpc_connections", .gauge, "Connections open on the gRPC port."),
    MetricDefinition(
      "memq_rpc_receive_pauses_total", .counter,
      "Times a connection stopped reading: 1 GiB received over all of them was not taken yet."),
    MetricDefinition(
      "memq_rpc_peers_expelled_total", .counter, labels: ["why"],
      "Connections ended for what the peer did: too_many_pings, control_frames (a flood of them), frame_timeout (begun and not ended)."
    ),
    MetricDefinition(
      "memq_rpc_tls_expiry_seconds", .gauge, labels: ["side"],
      "When the certificate in use expires, in seconds since 1970: the one of the port (server), the one shown to others (client)."
    ),
    MetricDefinition(
      "memq_rpc_tls_reload_failures_total", .counter, labels: ["side"],
      "Times new files of certificates, keys or roots could not be used; the old ones stayed."),
    MetricDefinition(
      "memq_rpc_tls_handshake_failures_total", .counter, labels: ["side"],
      "Connections that ended in the TLS handshake."),
  ]
}
