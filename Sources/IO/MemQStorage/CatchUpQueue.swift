// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import Glibc
import MemQLog
import MemQModel
import MemQSystem
import Synchronization

/// Reads far behind the log's end: on threads of their own that give way to all others, a segment at a time.
///
/// Reads that wait for the same segment are served by one pass over it, in the order of the log: ten followers and an uploader
/// that are equally far behind cost one reading of the segment, not eleven. Bounded are the reads that wait and the bytes of
/// each thread's pass.
final class CatchUpQueue: Sendable {
  typealias Outcome = SegmentReader.Outcome

  /// One read of one partition, or several of one segment that are served together and may come out short.
  struct Job: Sendable {
    let number: UInt64
    let plans: [ReadPlan]
    let limits: [Int]
    /// Of the whole job, where it may come out short.
    let passBytes: Int?
    let since: MonotonicInstant
    let deadline: MonotonicInstant
    let complete: @Sendable (Result<[Outcome], MemQError>) -> Void

    var segment: SegmentSequence { self.plans[0].place!.segment }
    var isAlone: Bool { self.passBytes != nil }
  }

  private struct State {
    var waiting: Deque<Job> = []
    var nextNumber: UInt64 = 0
    /// Jobs of passes that run and are given up.
    var cancelled: Set<UInt64> = []
    var isStopped = false
  }

  /// Reads that wait; more are refused, retriable. The largest node has about as many partitions.
  static let jobsMax = 16_384
  /// Reads of one pass.
  private static let passJobsMax = 4_096
  /// Bytes of one pass, and so of one thread: longer ones would let others wait.
  static let passBytesMax = 16 << 20
  /// One pread: while appends keep the disk busy short enough not to be felt by one that comes meanwhile.
  private static let (readBytesMax, busyReadBytesMax): (Int64, Int64) = (1 << 20, 256 << 10)
  /// Between two of them while appends keep the disk busy, to the time that one takes: a fifth of the disk is enough to catch up with, and
  /// appends hardly feel it. A read takes longer on a disk that is slow or has much to do, and so do its pauses.
  private static let pausePerRead = 4.0
  private static let pauseMax: Duration = .milliseconds(20)
  private static let lookMicroseconds: UInt32 = 250
  /// So long after a sync the disk is idle: between two groups there is less.
  private static let idleAfter: Duration = .milliseconds(5)
  /// Weight about a tenth of other threads'.
  private static let niceness: Int32 = 10

  private let reader: SegmentReader
  private let state: Monitor<State>
  private let threads: Monitor<[OwnThread]>

  init(_ reader: SegmentReader, threadCount: Int) {
    self.reader = reader
    let state = Monitor(State())
    self.state = state
    self.threads = Monitor([])
    let started = (0..<threadCount).map { index in
      OwnThread(name: "memq-catch-up-\(index)") {
        OwnThread.giveWay(niceness: Self.niceness)
        Self.loop(reader, state)
      }
    }
    self.threads.withLock { $0 = started }
  }

  /// Runs a job and waits for it; cancelled, it ends at once where it still waits, and between two preads where it runs.
  ///
  /// - Throws: `.cancelled`; `.deadlineExceeded` when its turn did not come in time; retriable `.resourceExhausted`; `.shuttingDown`.
  func run(
    _ plans: [ReadPlan], limits: [Int], passBytes: Int?, since: MonotonicInstant,
    deadline: MonotonicInstant
  ) async throws(MemQError) -> [Outcome] {
    let number = self.state.withLock { state in
      defer { state.nextNumber += 1 }
      return state.nextNumber
    }
    let result: Result<[Outcome], MemQError> = await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        self.submit(
          Job(
            number: number, plans: plans, limits: limits, passBytes: passBytes, since: since,
            deadline: deadline, complete: { continuation.resume(returning: $0) }))
      }
    } onCancel: {
      self.cancel(number)
    }
    if Task.isCancelled { self.state.withLock { _ = $0.cancelled.remove(number) } }
    return try result.get()
  }

  private func submit(_ job: Job) {
    let refusal: MemQError? = self.state.withLock { state in
      if state.isStopped { return Self.stopped }
      guard state.waiting.count < Self.jobsMax else {
        return MemQError(
          .resourceExhausted, "too many reads far behind wait for the disk", subject: "catch-up",
          limit: Int64(Self.jobsMax), actual: Int64(state.waiting.count + 1))
      }
      // Cancelled before it came here.
      if state.cancelled.remove(job.number) != nil { return Self.cancelled }
      state.waiting.append(job)
      return nil
    }
    if let refusal { return job.complete(.failure(refusal)) }
    self.state.signal()
  }

  private func cancel(_ number: UInt64) {
    let job: Job? = self.state.withLock { state in
      guard let index = state.waiting.firstIndex(where: { $0.number == number }) else {
        state.cancelled.insert(number)
        return nil
      }
      return state.waiting.remove(at: index)
    }
    job?.complete(.failure(Self.cancelled))
  }

  private static var cancelled: MemQError { MemQError(.cancelled, "the reader is gone") }
  private static var stopped: MemQError { MemQError(.shuttingDown, "the volume is closing") }

  /// Reads that wait.
  var waitingCount: Int { self.state.withLock { $0.waiting.count } }

  // MARK: - On a thread

  private static func loop(_ reader: SegmentReader, _ state: Monitor<State>) {
    // How long the last pread took: the next one waits for it, of whichever job.
    var lastRead: Duration = .zero
    while true {
      let jobs: [Job] = state.await { state in
        guard !state.waiting.isEmpty else {
          return state.isStopped ? .done([]) : .wait(until: nil)
        }
        let jobs = Self.next(&state)
        return .done(jobs)
      }
      guard !jobs.isEmpty else { return }
      Self.serve(jobs, reader, state, &lastRead)
    }
  }

  /// The job that waits longest, and others of its segment.
  private static func next(_ state: inout State) -> [Job] {
    let first = state.waiting.removeFirst()
    guard !first.isAlone else { return [first] }
    var jobs = [first]
    var rest: Deque<Job> = []
    for job in state.waiting {
      if !job.isAlone, job.segment == first.segment, jobs.count < Self.passJobsMax {
        jobs.append(job)
      } else {
        rest.append(job)
      }
    }
    state.waiting = rest
    return jobs
  }

  /// Appends keep the disk busy.
  private static func isBusy(_ engine: VolumeEngine) -> Bool {
    let last = MonotonicInstant(nanoseconds: engine.reading.lastSyncAt.load(ordering: .relaxed))
    return engine.reading.syncsUnderWay.load(ordering: .relaxed) > 0
      || engine.clock.monotonic < last + Self.idleAfter
  }

  /// Waits after a read that took so long, as long as the disk is busy.
  private static func giveWay(_ engine: VolumeEngine, read: Duration) {
    let end = engine.clock.monotonic + min(read * Self.pausePerRead, Self.pauseMax)
    while engine.clock.monotonic < end, Self.isBusy(engine) { usleep(Self.lookMicroseconds) }
  }

  private static func serve(
    _ jobs: [Job], _ reader: SegmentReader, _ state: Monitor<State>, _ lastRead: inout Duration
  ) {
    let now = reader.engine.clock.monotonic
    let (live, late) = (
      jobs.filter { $0.deadline > now }, jobs.filter { $0.deadline <= now }
    )
    for job in live { reader.engine.metrics.catchUpWaited(now - job.since) }
    var outcomes: [Outcome] = []
    if !live.isEmpty {
      let first = live[0]
      let clock = reader.engine.clock
      // The kernel's own read-ahead may be 8 MiB, for which an append would wait 10 ms.
      let isBusy = Self.isBusy(reader.engine)
      var begun: MonotonicInstant?
      outcomes = reader.run(
        live.flatMap(\.plans), limits: live.flatMap(\.limits),
        passBytes: first.passBytes ?? Self.passBytesMax, leader: first.isAlone ? nil : 0,
        readBytes: isBusy ? Self.busyReadBytesMax : Self.readBytesMax, readsAhead: !isBusy
      ) {
        if let begun { lastRead = clock.monotonic - begun }
        Self.giveWay(reader.engine, read: lastRead)
        begun = clock.monotonic
        return state.withLock { state in
          !live.allSatisfy { state.cancelled.contains($0.number) }
        }
      }
      if let begun { lastRead = clock.monotonic - begun }
    }
    var answers: [(Job, Result<[Outcome], MemQError>)] = []
    for job in late {
      answers.append(
        (
          job,
          .failure(
            MemQError(
              .deadlineExceeded, "the read's turn did not come in time",
              subject: "segment \(job.segment)", limit: (job.deadline - job.since).milliseconds,
              actual: (now - job.since).milliseconds))
        ))
    }
    var again: [Job] = []
    var next = 0
    for job in live {
      let own = Array(outcomes[next..<(next + job.plans.count)])
      next += job.plans.count
      if !job.isAlone, case .notReached = own[0] {
        again.append(job)
      } else {
        answers.append((job, .success(own)))
      }
    }
    let gone: [Job] = state.withLock { state in
      var gone: [Job] = state.isStopped ? again : []
      for job in again.reversed() where !state.isStopped {
        if state.cancelled.contains(job.number) {
          gone.append(job)
        } else {
          state.waiting.prepend(job)
        }
      }
      for job in jobs { state.cancelled.remove(job.number) }
      return gone
    }
    if again.count > gone.count { state.signal() }
    for job in gone { job.complete(.failure(Self.cancelled)) }
    for (job, answer) in answers { job.complete(answer) }
  }

  /// Ends the threads; what waits is refused. Not from one of them.
  func stop() {
    self.abandon()
    let threads = self.threads.withLock { threads in
      defer { threads = [] }
      return threads
    }
    for thread in threads { thread.join() }
  }

  /// Tells the threads to end, without waiting for them.
  func abandon() {
    let waiting = self.state.withLock { state in
      state.isStopped = true
      defer { state.waiting = [] }
      return state.waiting
    }
    self.state.broadcast()
    for job in waiting { job.complete(.failure(Self.stopped)) }
  }
}
