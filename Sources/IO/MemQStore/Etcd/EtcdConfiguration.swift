// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQRPC

extension EtcdStore {
  public struct Configuration: Sendable {
    /// `host:port` of the members' client ports; one at a time is used, the next when it fails.
    public var endpoints: [String]
    /// Before all keys; a cluster's own. Without a slash at its end.
    public var prefix: String
    /// Of this store among those of the cluster that live at the same time; the same again after a restart, so that little is left behind.
    public var name: String
    /// Nil: etcd asks for none.
    public var user: String?
    public var password: String?
    /// Nil: no TLS.
    public var tls: RPCTLS?
    /// One attempt of one call. A member whose leader has died answers nothing for seconds: another one is asked then.
    public var attemptTimeout: Duration = .seconds(2)
    /// One operation with all its attempts. An election of etcd's takes up to 2 s by default.
    public var operationTimeout: Duration = .seconds(8)
    /// How long opening waits for etcd.
    public var openTimeout: Duration = .seconds(120)
    /// First and longest wait between attempts.
    public var backoff: ClosedRange<Duration> = .milliseconds(25)...(.milliseconds(500))
    /// Transactions under way at once.
    public var transactionsMax = 64
    /// Transactions that may wait for that; more are refused with `.resourceExhausted`.
    public var waitingTransactionsMax = 16_384
    /// Keys asked for at once; fewer when their values are large.
    public var pageKeys = 4_096
    /// Largest answer taken. etcd's own limit of a request is 1.5 MiB, of an answer there is none.
    public var messageBytesMax = RPCLimits.messageBytesMax

    public init(endpoints: [String], prefix: String, name: String) {
      self.endpoints = endpoints
      self.prefix = prefix
      self.name = name
    }

    /// - Throws: `.configurationInvalid`.
    public func validate() throws(MemQError) {
      func check(_ isRight: Bool, _ key: String, _ want: String) throws(MemQError) {
        guard isRight else { throw MemQError(.configurationInvalid, want, subject: key) }
      }
      try check(!self.endpoints.isEmpty, "etcd.endpoints", "at least one address is needed")
      for endpoint in self.endpoints {
        if let problem = RPCNetworkChannel.problem(withTarget: endpoint) {
          throw MemQError(.configurationInvalid, problem, subject: "etcd.endpoints")
        }
      }
      let isPlain = self.prefix.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7F }
      try check(
        !self.prefix.isEmpty && self.prefix.utf8.count <= 256 && isPlain
          && !self.prefix.hasSuffix("/"),
        "etcd.prefix", "1 to 256 printable ASCII characters, without a slash at the end")
      try check(
        (self.user == nil) == (self.password == nil), "etcd.user", "user and password go together")
      try check(
        self.attemptTimeout >= .milliseconds(100) && self.operationTimeout >= self.attemptTimeout,
        "etcd.timeout", "at least 100 ms")
    }
  }
}
