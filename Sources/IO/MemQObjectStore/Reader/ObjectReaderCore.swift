// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQModel
import MemQPacking
import MemQSystem
import Metrics
import NIOCore

/// Owns the reader's index and caches. Requests run in tasks of their own, one for each thing wanted.
actor ObjectReaderCore {
  typealias Flight<T: Sendable> = Task<Result<T, MemQError>, Never>

  /// What is known of one upload group.
  private struct Group {
    var index = RunIndex()
    var objects: SortedMap<Int64, ObjectRef> = [:]
    /// Announced objects whose footer can't be read: offsets that nobody else holds may stand there.
    var damaged: SortedMap<Int64, (object: ObjectRef, error: MemQError)> = [:]
    var refresh: Flight<Void>?
  }

  private struct SpanKey: Hashable {
    let object: ObjectID
    let position: Int64
  }

  private let store: any ObjectStore
  private let configuration: ObjectReader.Configuration
  private let logger: Logger
  private let uploaded: UploadedOffsets
  private let lister: ObjectLister
  private let gate: RequestGate
  private var groups: [Int32: Group] = [:]
  private var footers: BoundedCache<ObjectID, ObjectFooter>
  private var footerFlights: [ObjectID: Flight<ObjectFooter>] = [:]
  private var spans: BoundedCache<SpanKey, ByteBuffer>
  private var spanFlights: [SpanKey: Flight<ByteBuffer>] = [:]
  private let hits = Counter(label: "memq_object_reader_span_hits_total")
  private let misses = Counter(label: "memq_object_reader_span_misses_total")

  init(
    store: any ObjectStore, configuration: ObjectReader.Configuration, logger: Logger,
    uploaded: @escaping UploadedOffsets, lister: @escaping ObjectLister
  ) {
    self.store = store
    self.configuration = configuration
    self.logger = logger
    self.uploaded = uploaded
    self.lister = lister
    self.gate = RequestGate(runningMax: configuration.requestsMax, waitingMax: 1_024)
    self.footers = BoundedCache(byteCountMax: configuration.footerCacheBytes)
    self.spans = BoundedCache(byteCountMax: configuration.spanCacheBytes)
  }

  // MARK: Reading

  func read(
    _ partition: TopicPartition, group: Int32, from offset: Offset, maxBytes: Int
  ) async throws(MemQError) -> ColdRead {
    let object = try await self.object(group, of: partition, wanted: offset) {
      $0.entry(partition, holding: offset)
    }
    do throws(MemQError) {
      let footer = try await self.footer(of: object)
      guard let run = footer.run(of: partition), run.contains(offset) else {
        throw Self.outOfRange(partition, offset)
      }
      let block = run.block(holding: offset)
      let span = SpanPlan(run, holding: block, spanBytes: self.configuration.spanBytes)
      let bytes = try await self.span(span, of: run, in: object)
      return try span.cut(bytes, run: run, block: block, from: offset, maxBytes: maxBytes)
    } catch {
      throw await self.judge(error, object, partition, offset)
    }
  }

  func offset(
    _ partition: TopicPartition, group: Int32, atOrAfter timestamp: Timestamp
  ) async throws(MemQError) -> Offset? {
    try await self.refresh(group)
    guard let entry = self.groups[group]?.index.entry(partition, atOrAfter: timestamp),
      let object = self.groups[group]?.objects[entry.sequence]
    else { return nil }
    do throws(MemQError) {
      let footer = try await self.footer(of: object)
      guard let run = footer.run(of: partition),
        let block = run.blocks.firstIndex(where: { $0.maxTimestamp >= timestamp })
      else { return nil }
      let span = SpanPlan(run, holding: block, spanBytes: self.configuration.spanBytes)
      let bytes = try await self.span(span, of: run, in: object)
      return try span.offset(bytes, run: run, block: block, atOrAfter: timestamp)
    } catch {
      throw await self.judge(error, object, partition, entry.baseOffset)
    }
  }

  private static func outOfRange(_ partition: TopicPartition, _ offset: Offset) -> MemQError {
    MemQError(
      .offsetOutOfRange, "no object holds this offset", subject: "\(partition)",
      actual: offset.rawValue)
  }

  /// An object that is gone from the store and from the list was collected: its offsets lie below the log start.
  private func judge(
    _ error: MemQError, _ object: ObjectRef, _ partition: TopicPartition, _ offset: Offset
  ) async -> MemQError {
    guard error.code == .objectNotFound else { return error }
    do throws(MemQError) {
      guard try await !self.isListed(object) else { return Self.bytesGone(object) }
    } catch {
      return error
    }
    self.groups[object.groupID]?.index.remove(sequence: object.sequence)
    self.groups[object.groupID]?.objects[object.sequence] = nil
    return Self.outOfRange(partition, offset)
  }

  /// Whether it is announced, asked anew.
  private func isListed(_ object: ObjectRef) async throws(MemQError) -> Bool {
    try await self.lister(object.groupID, object.sequence - 1).objects.first?.sequence
      == object.sequence
  }

  private static func bytesGone(_ object: ObjectRef) -> MemQError {
    MemQError(
      .objectCorrupt, "the object is announced, but its bytes are gone", subject: object.key)
  }

  // MARK: The index

  func entry(
    _ group: Int32, of partition: TopicPartition, holding offset: Offset
  ) -> RunIndex.Entry? {
    self.groups[group]?.index.entry(partition, holding: offset)
  }

  /// The live runs that are known, by offset.
  func entries(_ group: Int32, of partition: TopicPartition) -> [RunIndex.Entry] {
    self.groups[group]?.index.entries(of: partition) ?? []
  }

  func object(_ group: Int32, _ sequence: Int64) -> ObjectRef? {
    self.groups[group]?.objects[sequence]
  }

  private func object(
    _ group: Int32, of partition: TopicPartition, wanted: Offset,
    _ find: (RunIndex) -> RunIndex.Entry?
  ) async throws(MemQError) -> ObjectRef {
    if let found = self.known(group, find) { return found }
    try await self.refresh(group)
    if let found = self.known(group, find) { return found }
    if let damage = try await self.damage(group, partition, wanted) { throw damage }
    throw Self.outOfRange(partition, wanted)
  }

  /// Why the offset can't be read, when an unreadable object may hold it: one between those that hold what lies before and
  /// behind it, and only below the uploaded offset.
  private func damage(
    _ group: Int32, _ partition: TopicPartition, _ wanted: Offset
  ) async throws(MemQError) -> MemQError? {
    if let uploaded = self.uploaded(partition), wanted >= uploaded { return nil }
    guard let state = self.groups[group] else { return nil }
    let gap = state.index.gap(partition, around: wanted)
    for damaged in state.damaged.values
    where damaged.object.sequence > gap.after && damaged.object.sequence < gap.before {
      if try await self.isListed(damaged.object) { return damaged.error }
      // Collected since.
      self.groups[group]?.damaged[damaged.object.sequence] = nil
    }
    return nil
  }

  private func known(_ group: Int32, _ find: (RunIndex) -> RunIndex.Entry?) -> ObjectRef? {
    guard let state = self.groups[group], let entry = find(state.index) else { return nil }
    return state.objects[entry.sequence]
  }

  /// Folds in the objects announced since the last time. Callers at the same time share one pass.
  private func refresh(_ group: Int32) async throws(MemQError) {
    if let running = self.groups[group]?.refresh { return try await running.value.get() }
    let flight = Flight<Void> {
      let result = await Result { () async throws(MemQError) in try await self.load(group) }
      self.groups[group]?.refresh = nil
      return result
    }
    self.groups[group, default: Group()].refresh = flight
    try await flight.value.get()
  }

  private func load(_ group: Int32) async throws(MemQError) {
    while true {
      let after = self.groups[group]?.index.lastSequence ?? 0
      let page = try await self.lister(group, after)
      for object in page.objects where object.sequence > after { try await self.fold(object) }
      guard page.hasMore, let last = page.objects.last, last.sequence > after else { return }
    }
  }

  private func fold(_ object: ObjectRef) async throws(MemQError) {
    do throws(MemQError) {
      let footer = try await self.footer(of: object)
      self.groups[object.groupID]?.objects[object.sequence] = object
      self.groups[object.groupID]?.index.add(footer.runs, sequence: object.sequence)
    } catch {
      guard [.objectNotFound, .objectCorrupt, .feature].contains(error.code) else { throw error }
      var damage = error
      if error.code == .objectNotFound {
        // Gone from the list meanwhile: collected. Else its records were acknowledged, and must not be passed over.
        guard try await self.isListed(object) else {
          self.groups[object.groupID]?.index.skip(sequence: object.sequence)
          return
        }
        damage = Self.bytesGone(object)
      }
      self.groups[object.groupID]?.index.skip(sequence: object.sequence)
      self.groups[object.groupID]?.damaged[object.sequence] = (object, damage)
      self.logger.error(
        "An object's footer can't be read",
        metadata: ["object.key": "\(object.key)", "error": "\(damage)"])
    }
  }

  // MARK: Footers and spans

  func footer(of object: ObjectRef) async throws(MemQError) -> ObjectFooter {
    if let footer = self.footers.value(object.id) { return footer }
    if let running = self.footerFlights[object.id] { return try await running.value.get() }
    let flight = Flight<ObjectFooter> {
      let result = await Result { () async throws(MemQError) in try await self.fetchFooter(object) }
      self.footerFlights[object.id] = nil
      if case .success(let footer) = result {
        self.footers.insert(footer, byteCount: Int(footer.footerByteCount) * 2, for: object.id)
      }
      return result
    }
    self.footerFlights[object.id] = flight
    return try await flight.value.get()
  }

  private func fetchFooter(_ object: ObjectRef) async throws(MemQError) -> ObjectFooter {
    guard object.footerByteCount <= object.byteCount,
      (1...Int64(ObjectLayout.footerByteCountMax)).contains(object.footerByteCount)
    else {
      throw MemQError(
        .objectCorrupt, "the announced footer length is out of range", subject: object.key,
        limit: Int64(ObjectLayout.footerByteCountMax), actual: object.footerByteCount)
    }
    let start = object.byteCount - object.footerByteCount
    let tail = try await self.get(object, start..<object.byteCount)
    do throws(MemQError) {
      let footer = try ObjectFooter(
        decodingTail: Array(buffer: tail), objectByteCount: object.byteCount)
      guard footer.identity.objectID == object.id else {
        throw MemQError(.objectCorrupt, "the object under this key is another one")
      }
      return footer
    } catch {
      throw error.about(object.key)
    }
  }

  private func span(
    _ span: SpanPlan, of run: ObjectRun, in object: ObjectRef
  ) async throws(MemQError) -> ByteBuffer {
    let key = SpanKey(object: object.id, position: span.range.lowerBound)
    if let bytes = self.spans.value(key) {
      self.hits.increment()
      return bytes
    }
    if let running = self.spanFlights[key] { return try await running.value.get() }
    self.misses.increment()
    let flight = Flight<ByteBuffer> {
      let result = await Result { () async throws(MemQError) in
        let bytes = try await self.get(object, span.range)
        do throws(MemQError) { try span.verify(bytes, run) } catch { throw error.about(object.key) }
        return bytes
      }
      self.spanFlights[key] = nil
      if case .success(let bytes) = result {
        self.spans.insert(bytes, byteCount: bytes.storageCapacity, for: key)
      }
      return result
    }
    self.spanFlights[key] = flight
    return try await flight.value.get()
  }

  /// Up to three attempts; a reader further up tries again if it wants to.
  private func get(_ object: ObjectRef, _ range: Range<Int64>) async throws(MemQError) -> ByteBuffer
  {
    let key = try ObjectKey(object.key)
    try await self.gate.enter()
    var backoff = JitteredBackoff(max: .seconds(1))
    for attempt in 1... {
      do throws(MemQError) {
        let bytes = try await self.store.get(
          key, range: range, timeout: self.configuration.requestTimeout)
        await self.gate.leave()
        return bytes
      } catch {
        guard error.code == .objectStoreUnavailable, attempt < 3 else {
          await self.gate.leave()
          throw error
        }
        try? await Task.sleep(for: backoff.next())
      }
    }
    preconditionFailure("the loop ends by itself")
  }
}

extension MemQError {
  fileprivate func about(_ subject: String) -> MemQError {
    var error = self
    if error.subject.isEmpty { error.subject = subject }
    return error
  }
}
