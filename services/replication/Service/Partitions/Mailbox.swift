// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore
import Synchronization

/// Hands values from any thread to one event loop, in order, with one wake-up for all that came since.
///
/// It holds what the senders may have on their way: stream windows and the volume's pending bytes bound it.
final class Mailbox<Element: Sendable>: Sendable {
  private let waiting = Mutex<[Element]>([])
  private let loop: any EventLoop
  private let deliver: @Sendable ([Element]) -> Void

  init(on loop: any EventLoop, deliver: @escaping @Sendable ([Element]) -> Void) {
    self.loop = loop
    self.deliver = deliver
  }

  func post(_ element: Element) {
    let isFirst = self.waiting.withLock { waiting in
      waiting.append(element)
      return waiting.count == 1
    }
    if isFirst { self.loop.execute { self.drain() } }
  }

  private func drain() {
    let elements = self.waiting.withLock { waiting in
      defer { waiting = [] }
      return waiting
    }
    self.deliver(elements)
  }
}
