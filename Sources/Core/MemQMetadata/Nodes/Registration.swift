// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// How a node introduces itself.
public struct NodeRegistration: Hashable, Sendable {
  public var uuid: NodeUUID
  public var service: ServiceKind
  public var address: String
  public var adminAddress: String
  public var rack: String
  public var host: String
  public var pid: Int64
  public var volumes: [VolumeImage]
  /// Nil: a fresh node.
  public var clusterID: ClusterID?

  public init(
    uuid: NodeUUID, service: ServiceKind, address: String, adminAddress: String = "",
    rack: String = "", host: String = "", pid: Int64 = 0, volumes: [VolumeImage] = [],
    clusterID: ClusterID? = nil
  ) {
    self.uuid = uuid
    self.service = service
    self.address = address
    self.adminAddress = adminAddress
    self.rack = rack
    self.host = host
    self.pid = pid
    self.volumes = volumes
    self.clusterID = clusterID
  }
}

/// Texts of a registration; an address is a host name (255 bytes) and a port at most.
private let nodeTextBytesMax = 300
/// Disks of one node.
private let volumesPerNodeMax = 64

// A node's states:
//
//     state                    event                               state
//     none, fenced, gone       register                            starting, next node epoch
//     starting, ready, drains  register (its earlier life ended)   fenced, then starting
//     starting                 heartbeat: ready                    ready
//     starting, ready          heartbeat: draining                 draining
//     starting, ready, drains  silence, or connections refused     fenced
//     starting, ready, drains  deregister                          gone; forgotten without replicas
extension MetadataState {
  /// Makes a new cluster in an empty store.
  public func createCluster(_ record: ClusterRecord) -> Plan<ClusterRecord> {
    guard self.cluster == nil else { return Plan(outcome: self.cluster!.value) }
    var transaction = Transaction()
    transaction.require(.absent(.cluster))
    transaction.put(.cluster, record)
    return Plan([transaction], outcome: record)
  }

  // MARK: Registration

  /// Before a node may register again, its earlier life ends: fenced, so that its leaderships pass on or lapse and come back
  /// under a new leader epoch. The plan is empty when there is no such life.
  public func fencePredecessors(of registration: NodeRegistration) -> Plan<[NodeID]> {
    var fenced: [NodeID] = []
    var transaction = Transaction()
    for node in self.nodes.values
    where self.isPredecessor(node.value, of: registration)
      && !self.weaknesses.contains(.skipFencing)
    {
      fenced.append(node.value.id)
      if node.value.uuid == registration.uuid || self.isPlaced(node.value) {
        guard node.value.state.isLive else { continue }
        var next = node.value
        next.state = .fenced
        transaction.replace(.node(next.id), node, with: next)
      } else {
        self.forget(node, in: &transaction)
      }
    }
    return Plan([transaction], outcome: fenced)
  }

  /// The same node, or one whose address it has taken over.
  private func isPredecessor(_ node: NodeImage, of registration: NodeRegistration) -> Bool {
    node.uuid == registration.uuid
      || node.service == registration.service && node.address == registration.address
  }

  /// Gives a node its number and epoch. Comes after `fencePredecessors` and reconciling.
  ///
  /// - Throws: `.wrongCluster`, `.limitReached`, `.invalidArgument`.
  public func register(_ registration: NodeRegistration) throws(MemQError) -> Plan<NodeImage> {
    try self.checkRegistration(registration)
    let known = self.nodes.values.first { $0.value.uuid == registration.uuid }
    var transaction = Transaction()
    var id = known?.value.id
    if id == nil {
      let counter = self.counters[Counter.nodes.rawValue]
      let next = counter?.value.next ?? 1
      id = NodeID(Int32(next))
      transaction.replace(.counter(.nodes), counter, with: CounterRecord(next: next + 1))
    }
    let node = NodeImage(
      id: id!, uuid: registration.uuid, service: registration.service,
      address: registration.address, adminAddress: registration.adminAddress,
      rack: registration.rack, host: registration.host, pid: registration.pid,
      epoch: known?.value.epoch.next ?? NodeEpoch(1), state: .starting,
      volumes: registration.volumes,
      restartedUncleanly: known.map { self.restartsUncleanly($0.value) } ?? false)
    transaction.replace(.node(id!), known, with: node)
    return Plan([transaction], outcome: node)
  }

  /// Its life before ended without a goodbye; or one before that did, and what it held then may still be elected: a goodbye in between
  /// makes no disk whole.
  private func restartsUncleanly(_ known: NodeImage) -> Bool {
    guard known.state == .gone else { return true }
    return known.restartedUncleanly
      && self.partitions.values.contains {
        ($0.value.leader == nil && $0.value.inSync.contains(known.id))
          || $0.value.eligible.contains(known.id)
      }
  }

  /// Whether the node may be registered. Throws as `register`.
  public func checkRegistration(_ registration: NodeRegistration) throws(MemQError) {
    guard let cluster = self.cluster?.value else {
      throw MemQError(.unavailable, "the cluster is not made yet")
    }
    if let claimed = registration.clusterID, claimed != cluster.id {
      throw MemQError(
        .wrongCluster,
        "the node's data belongs to cluster \(claimed), this is cluster \(cluster.id)",
        subject: registration.address)
    }
    let known = self.nodes.values.contains { $0.value.uuid == registration.uuid }
    guard known || self.nodes.count < self.limits.nodesMax else {
      throw MemQError(
        .limitReached, "no more nodes can join", subject: "nodes",
        limit: Int64(self.limits.nodesMax), actual: Int64(self.nodes.count + 1))
    }
    let texts = [
      registration.address, registration.adminAddress, registration.rack, registration.host,
    ]
    let longest = texts.map(\.utf8.count).max() ?? 0
    guard !registration.address.isEmpty, longest <= nodeTextBytesMax else {
      throw MemQError(
        .invalidArgument, "a node needs an address; its texts are bounded", subject: "address",
        limit: Int64(nodeTextBytesMax), actual: Int64(longest))
    }
    guard registration.volumes.count <= volumesPerNodeMax else {
      throw MemQError(
        .invalidArgument, "too many volumes", subject: "volumes",
        limit: Int64(volumesPerNodeMax), actual: Int64(registration.volumes.count))
    }
    guard Set(registration.volumes.map(\.id)).count == registration.volumes.count else {
      throw MemQError(.invalidArgument, "a volume is named twice", subject: "volumes")
    }
  }

  // MARK: States and the end of a session

  /// Takes over the state a heartbeat states.
  ///
  /// - Throws: `.nodeUnknown`, `.nodeFenced`, `.invalidArgument` for a state that is not the node's to state.
  public func setState(
    of id: NodeID, _ epoch: NodeEpoch, to state: NodeState
  ) throws(MemQError) -> Plan<Void> {
    let node = try self.session(id, epoch)
    guard state.isLive else {
      throw MemQError(.invalidArgument, "a node can't say so of itself", subject: state.name)
    }
    guard node.value.state != state else { return Plan(outcome: ()) }
    var next = node.value
    next.state = state
    var transaction = Transaction()
    transaction.replace(.node(id), node, with: next)
    return Plan([transaction], outcome: ())
  }

  /// Ends the session of a node that fell silent.
  ///
  /// - Parameter epoch: only in this life of it; nil: in any.
  public func fence(_ id: NodeID, _ epoch: NodeEpoch? = nil) -> Plan<Bool> {
    guard let node = self.nodes[id], node.value.state.isLive,
      epoch == nil || epoch == node.value.epoch
    else { return Plan(outcome: false) }
    var next = node.value
    next.state = .fenced
    var transaction = Transaction()
    transaction.replace(.node(id), node, with: next)
    return Plan([transaction], outcome: true)
  }

  /// A clean goodbye. A node that holds replicas stays known as gone; others are forgotten.
  ///
  /// - Throws: `.nodeUnknown`, `.nodeFenced` for an older epoch.
  public func deregister(_ id: NodeID, _ epoch: NodeEpoch) throws(MemQError) -> Plan<Void> {
    let node = try self.session(id, epoch)
    var transaction = Transaction()
    if self.isPlaced(node.value) {
      var next = node.value
      next.state = .gone
      transaction.replace(.node(id), node, with: next)
    } else {
      self.forget(node, in: &transaction)
    }
    return Plan([transaction], outcome: ())
  }

  /// Forgets a node that has no session and nothing of the cluster's.
  public func forget(_ id: NodeID) -> Plan<Bool> {
    guard let node = self.nodes[id], !node.value.state.isLive, !self.isPlaced(node.value) else {
      return Plan(outcome: false)
    }
    var transaction = Transaction()
    self.forget(node, in: &transaction)
    return Plan([transaction], outcome: true)
  }

  private func forget(_ node: Versioned<NodeImage>, in transaction: inout Transaction) {
    transaction.require(.revision(.node(node.value.id), node.revision))
    transaction.delete(.node(node.value.id))
  }

  /// Whether partitions name the node.
  private func isPlaced(_ node: NodeImage) -> Bool {
    guard node.service == .replication else { return false }
    return self.partitions.values.contains { partition in
      partition.value.replicas.contains { $0.node == node.id }
    }
  }
}
