// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Numbers reserved at once. A crash loses what is left of a block; numbers are not reused.
private let blockSize: Int64 = 1_000

extension MetadataState {
  /// Reserves the next block of producer ids. Those of files begin at 2^62.
  ///
  /// - Throws: `.limitReached` when the numbers are used up.
  public func reserveProducerIDs(
    _ counter: Counter
  ) throws(MemQError) -> Plan<Range<Int64>> {
    let known = self.counters[counter.rawValue]
    let first = known?.value.next ?? (counter == .fileProducers ? 1 << 62 : 1)
    let (end, overflow) = first.addingReportingOverflow(blockSize)
    guard !overflow, counter != .producers || end <= 1 << 62 else {
      throw MemQError(
        .limitReached, "producer ids are used up", subject: counter.rawValue, actual: first)
    }
    var transaction = Transaction()
    transaction.replace(.counter(counter), known, with: CounterRecord(next: end))
    return Plan([transaction], outcome: first..<end)
  }

  /// The next epoch of a producer id.
  ///
  /// - Returns: nil when its epochs are used up: it gets a new id.
  /// - Throws: `.unknownProducer` for an id that was never given out.
  public func nextProducerEpoch(
    _ id: ProducerID, known: Versioned<ProducerEpochRecord>?
  ) throws(MemQError) -> Plan<ProducerEpoch?> {
    let end = self.counters[Counter.producers.rawValue]?.value.next ?? 1
    guard id.rawValue >= 1, id.rawValue < end else {
      throw MemQError(
        .unknownProducer, "that producer id was never given out", subject: "\(id)")
    }
    // One that was given out and forgotten, because the store was restored, is not given out again.
    let current = max(
      known?.value.epoch.rawValue ?? 0,
      Restoration.producerEpochFloor(self.cluster?.value.incarnation))
    guard current < Int16.max else { return Plan(outcome: nil) }
    let epoch = ProducerEpoch(current + 1)
    var transaction = Transaction()
    transaction.replace(.producerEpoch(id), known, with: ProducerEpochRecord(epoch: epoch))
    return Plan([transaction], outcome: epoch)
  }
}
