// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Where a volume stands. Raw values are those of memq.v1.VolumeState.
public enum VolumeState: UInt8, Sendable {
  /// Its node has not opened it yet.
  case opening = 1
  case fit
  /// Out of use until its node registers again.
  case failed

  public var name: String { String(describing: self) }
}

/// One disk of a replication node.
public struct VolumeImage: Hashable, Sendable {
  public let id: VolumeID
  public var state: VolumeState
  /// Bytes that records may take, the reserve left out; 0: not told.
  public var capacityBytes: Int64
  /// Why it failed, for people.
  public var problem: String

  public init(
    _ id: VolumeID, _ state: VolumeState = .fit, capacityBytes: Int64 = 0, problem: String = ""
  ) {
    self.id = id
    self.state = state
    self.capacityBytes = capacityBytes
    self.problem = problem
  }
}

/// A replica that lost records to damage, by its node.
public struct DamagedReplica: Hashable, Sendable {
  public let node: NodeID
  /// Records below are whole.
  public var from: Offset

  public init(_ node: NodeID, from: Offset) {
    self.node = node
    self.from = from
  }
}

extension NodeImage {
  public func volume(_ id: VolumeID) -> VolumeImage? { self.volumes.first { $0.id == id } }

  /// Those that can be given replicas: fit ones where there are any.
  public var placeableVolumes: [VolumeImage] {
    let fit = self.volumes.filter { $0.state == .fit }
    return fit.isEmpty ? self.volumes.filter { $0.state == .opening } : fit
  }
}

extension PartitionImage {
  public func isDamaged(_ node: NodeID) -> Bool { self.damaged.contains { $0.node == node } }
}
