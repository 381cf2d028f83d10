// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

/// Who sends and receives.
enum Address: Hashable {
  case node(Int)
  case metadata
  case client(Int)

  /// A place in the network's tables.
  func index(nodes: Int) -> Int {
    switch self {
    case .metadata: 0
    case .node(let at): 1 + at
    case .client(let at): 1 + nodes + at
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
  case register(node: Int, attempt: Int)
  case registered(attempt: Int, NodeEpoch)
  case alive(node: Int, NodeEpoch)
  case fenced(NodeEpoch)
  case image([PartitionAssignment])
  case propose(node: Int, partition: Int, ISRProposal)
  case proposalAnswered(Int, ISRProposal, ISRAnswer)
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
    case .image: "image"
    case .propose: "propose"
    case .proposalAnswered: "proposal answered"
    case .whereIs: "where is"
    case .leaderIs: "leader is"
    case .produce: "produce"
    case .produced: "produced"
    }
  }
}

struct ProduceRequest {
  var attempt: Int
  var values: [UInt64]
  var producerID: ProducerID
  var baseSequence: Int32
  var acks: Acks
  var leaderEpoch: LeaderEpoch
}
