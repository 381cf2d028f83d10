// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQReplication

/// Who sends and receives.
enum Address: Hashable {
  case node(Int)
  /// A metadata instance.
  case metadata(Int)
  case store
  case client(Int)

  /// A place in the network's tables.
  func index(nodes: Int) -> Int {
    switch self {
    case .store: 0
    case .metadata(let at): 1 + at
    case .node(let at): 1 + World.instances + at
    case .client(let at): 1 + World.instances + nodes + at
    }
  }
}

/// What travels. Partitions are numbers here.
enum Message {
  // Between replicas
  case open(Int, OpenRequest)
  case answer(Int, OpenAnswer)
  case push(Int, Push, [UInt64])
  case heartbeat(Int, Heartbeat)
  case position(Int, FollowerPosition)
  // Nodes and metadata
  case register(node: Int, attempt: Int, isWhole: Bool)
  case registered(attempt: Int, NodeEpoch)
  case alive(node: Int, NodeEpoch, NodeState)
  case fenced(NodeEpoch)
  case volumeFailed(node: Int, NodeEpoch)
  case replicaDamaged(node: Int, NodeEpoch, Int, from: Offset?)
  case logEnds(node: Int, NodeEpoch, [LogEndStatement])
  /// Another instance is the controller.
  case notController
  case deregister(node: Int, NodeEpoch)
  case deregistered(NodeEpoch)
  case image(ClusterView)
  /// What an operator or the rebalancer asks for.
  case order(Command)
  case propose(node: Int, partition: Int, ISRProposal)
  case proposalAnswered(Int, ISRProposal, ISRAnswer)
  // Metadata and its store
  /// With those that a change takes for members in their present life, and with elections by what replicas said of their logs.
  case commit(UInt64, [Transaction], joining: [ReplicaMember], recovered: [SimRecovery])
  case committed(UInt64, [CommitVerdict])
  case claim(instance: Int, sentAt: Int64)
  case claimed(Revision?, sentAt: Int64)
  case pull(Revision)
  case changes(from: Revision, through: Revision, [StoreChange])
  case snapshot([StoredEntry], Revision)
  // Clients
  case whereIs(client: Int, partition: Int)
  case leaderIs(node: Int?, LeaderEpoch)
  case produce(client: Int, partition: Int, ProduceRequest)
  case produced(attempt: Int, AppendOutcome)

  var name: String {
    switch self {
    case .open: "open"
    case .answer: "answer"
    case .push: "push"
    case .heartbeat: "heartbeat"
    case .position: "position"
    case .register: "register"
    case .registered: "registered"
    case .alive: "alive"
    case .fenced: "fenced"
    case .volumeFailed: "volume failed"
    case .replicaDamaged: "replica damaged"
    case .logEnds: "log ends"
    case .notController: "not the controller"
    case .deregister: "deregister"
    case .deregistered: "deregistered"
    case .image: "image"
    case .order: "order"
    case .commit: "commit"
    case .committed: "committed"
    case .claim: "claim"
    case .claimed: "claimed"
    case .pull: "pull"
    case .changes: "changes"
    case .snapshot: "snapshot"
    case .propose: "propose"
    case .proposalAnswered: "proposal answered"
    case .whereIs: "where is"
    case .leaderIs: "leader is"
    case .produce: "produce"
    case .produced: "produced"
    }
  }
}

/// An election among replicas that all restarted uncleanly, and who had said where its log ends.
struct SimRecovery {
  var election: RecoveryElection
  var answered: [(node: NodeID, nodeEpoch: NodeEpoch)]
}

struct ProduceRequest {
  var attempt: Int
  var values: [UInt64]
  var producerID: ProducerID
  var producerEpoch: ProducerEpoch
  var baseSequence: Int32
  var acks: Acks
  var leaderEpoch: LeaderEpoch
}
