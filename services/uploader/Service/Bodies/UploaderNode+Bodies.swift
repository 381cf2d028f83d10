// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRPC

extension UploaderNode {
  func registerBodies(on router: inout RPCRouter) {
    router.handleHotBidirectional(UploaderMethods.writeBody) { requests, _, replies in
      try await self.whileRunning().bodies.write(requests, replies)
    }
    router.handle(UploaderMethods.deleteBody) { request, _ in
      try await self.whileRunning().bodies.delete(try BodyWrites.bodyKey(request.bodyKey))
      return Memq_V1_DeleteBodyResponse()
    }
  }
}
