// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRPC
import MemQReplication
import MemQRuntime
import MemQSystem
import NIOCore
import SwiftProtobuf

/// The Append call on its connection's loop: batches in, answers out.
///
/// A message's credit returns once its partition's volume took it, or it was refused: what waits for a busy disk
/// stays in the sender's window, and so does whatever would follow it.
final class AppendStream: RPCServerHandler, @unchecked Sendable {
  /// What a partition's owner says to the stream.
  enum Note: Sendable {
    case credit(Int)
    /// The end of one request; nil: it asked for no answer.
    case done(Memq_V1_AppendResponse?)
  }

  private let call: RPCServerCall
  private let node: ReplicationNode
  private var notes: Mailbox<Note>!
  private var inFlight = 0
  private var isHalfClosed = false
  private var isEnded = false
  /// Bytes of messages that were taken and not given back to the sender's window yet.
  private var heldCredit = 0

  init(_ call: RPCServerCall, node: ReplicationNode) {
    self.call = call
    self.node = node
    self.notes = Mailbox(on: call.eventLoop) { [weak self] notes in self?.take(notes) }
  }

  /// From any thread.
  func post(_ note: Note) { self.notes.post(note) }

  func received(_ message: RPCMessage) {
    guard !self.isEnded else { return }
    self.inFlight += 1
    let hot: Hot<Memq_V1_AppendRequest>
    do throws(MemQError) {
      hot = try Hot(decoding: message)
    } catch {
      // Without a request id there is nobody to answer: the stream is not what it should be.
      self.isEnded = true
      return self.call.finish(RPCStatus(error))
    }
    do throws(MemQError) {
      try self.node.submit(try self.inbound(hot, messageBytes: message.byteCount))
    } catch {
      self.credit(message.byteCount)
      self.refuse(hot.header, error)
    }
  }

  /// Answers that the sender does not take: above it, it may send no more either.
  private static let queuedBytesMax = 1 << 20

  /// Gives a message's bytes back to the sender's window, once it takes its answers.
  private func credit(_ bytes: Int) {
    self.heldCredit += bytes
    self.releaseCredit()
  }

  private func releaseCredit() {
    guard !self.isEnded, self.heldCredit > 0, self.call.queuedBytes <= Self.queuedBytesMax else {
      return
    }
    self.call.consumed(self.heldCredit)
    self.heldCredit = 0
  }

  private func refuse(_ request: Memq_V1_AppendRequest, _ error: MemQError) {
    self.node.metrics.refused(error.code)
    guard request.acks != .none else { return self.finished(nil) }
    self.finished(
      .with {
        $0.requestID = request.requestID
        $0.baseOffset = -1
        $0.endOffset = -1
        $0.error = Memq_V1_ErrorDetail(error)
      })
  }

  private func inbound(
    _ hot: Hot<Memq_V1_AppendRequest>, messageBytes: Int
  ) throws(MemQError) -> InboundAppend {
    let request = hot.header
    let batch = hot.payload.slices
    let now = self.node.clock.monotonic
    let partition = try TopicPartition(request.topicPartition)
    guard (0...Int32(InboundAppend.timeoutMax.milliseconds)).contains(request.timeoutMs) else {
      throw MemQError(
        .invalidArgument, "timeout_ms is out of range", subject: "timeout_ms",
        limit: InboundAppend.timeoutMax.milliseconds, actual: Int64(request.timeoutMs))
    }
    let timeout: Duration =
      request.timeoutMs == 0 ? InboundAppend.timeoutDefault : .milliseconds(request.timeoutMs)
    return InboundAppend(
      stream: self, requestID: request.requestID, partition: partition,
      leaderEpoch: request.leaderEpoch < 0 ? nil : LeaderEpoch(request.leaderEpoch),
      acks: try Acks(request.acks), deadline: now + timeout, receivedAt: now,
      header: try BatchCheck.header(of: batch, byteCount: hot.payload.byteCount), batch: batch,
      messageBytes: messageBytes)
  }

  private func take(_ notes: [Note]) {
    for note in notes {
      switch note {
      case .credit(let bytes): self.credit(bytes)
      case .done(let response): self.finished(response)
      }
    }
  }

  private func finished(_ response: Memq_V1_AppendResponse?) {
    self.inFlight -= 1
    guard !self.isEnded else { return }
    if let response { self.call.send(response.encoded()) }
    self.finishIfDone()
  }

  private func finishIfDone() {
    guard self.isHalfClosed, self.inFlight == 0, !self.isEnded else { return }
    self.isEnded = true
    self.call.finish(RPCStatus(.ok, ""))
  }

  func halfClosed() {
    self.isHalfClosed = true
    self.finishIfDone()
  }

  func writable() { self.releaseCredit() }

  func ended(_ status: RPCStatus) { self.isEnded = true }
}

extension Acks {
  init(_ wire: Memq_V1_Acks) throws(MemQError) {
    switch wire {
    case .unspecified, .all: self = .all
    case .leader: self = .leader
    case .none: self = .none
    case .UNRECOGNIZED(let number):
      throw MemQError(.invalidArgument, "no such acks", subject: "acks", actual: Int64(number))
    }
  }
}
