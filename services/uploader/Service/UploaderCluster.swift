// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime

/// What an uploader needs of the cluster: who it is, the image, and ways to others. Tests bring their own.
protocol UploaderCluster: Sendable {
  var nodeID: NodeID { get }
  var nodeEpoch: NodeEpoch { get }
  var image: ClusterImage { get }
  var metadata: any RPCChannel { get }
  func channel(to node: NodeID, lane: Lane) throws(MemQError) -> any RPCChannel
}

extension ClusterSession: UploaderCluster {}
