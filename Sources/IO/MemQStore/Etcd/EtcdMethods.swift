// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQRPC

/// The calls of etcd that the store makes (proto/etcd). None says that it may run twice: the store decides that itself.
enum EtcdMethods {
  static let range = Method<EtcdRangeRequest, EtcdRangeResponse>(
    service: "etcdserverpb.KV", name: "Range", kind: .unary)
  static let txn = Method<EtcdTxnRequest, EtcdTxnResponse>(
    service: "etcdserverpb.KV", name: "Txn", kind: .unary)
  static let compact = Method<EtcdCompactionRequest, EtcdCompactionResponse>(
    service: "etcdserverpb.KV", name: "Compact", kind: .unary)
  static let watch = Method<EtcdWatchRequest, EtcdWatchResponse>(
    service: "etcdserverpb.Watch", name: "Watch", kind: .bidirectional)
  static let leaseGrant = Method<EtcdLeaseGrantRequest, EtcdLeaseGrantResponse>(
    service: "etcdserverpb.Lease", name: "LeaseGrant", kind: .unary)
  static let leaseRevoke = Method<EtcdLeaseRevokeRequest, EtcdLeaseRevokeResponse>(
    service: "etcdserverpb.Lease", name: "LeaseRevoke", kind: .unary)
  static let leaseKeepAlive = Method<EtcdLeaseKeepAliveRequest, EtcdLeaseKeepAliveResponse>(
    service: "etcdserverpb.Lease", name: "LeaseKeepAlive", kind: .bidirectional)
  static let status = Method<EtcdStatusRequest, EtcdStatusResponse>(
    service: "etcdserverpb.Maintenance", name: "Status", kind: .unary)
  static let authenticate = Method<EtcdAuthenticateRequest, EtcdAuthenticateResponse>(
    service: "etcdserverpb.Auth", name: "Authenticate", kind: .unary)
}
