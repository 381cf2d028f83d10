// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
public import MemQRPC
import MemQRuntime
import MemQSystem
import NIOCore
import SwiftProtobuf

extension IngestNode {
  /// Everything the public port serves: as `registerPublic`.
  public func register(on router: inout RPCRouter) { self.registerPublic(on: &router) }

  /// The public port: ingest, files, health, and the public calls of the other services, passed on.
  public func registerPublic(on router: inout RPCRouter) {
    self.registerRecords(on: &router)
    self.registerGroups(on: &router)
    self.registerFiles(on: &router)
    self.registerForwards(on: &router)
    self.health.register(on: &router)
  }

  private func registerRecords(on router: inout RPCRouter) {
    router.callback(IngestMethods.produce.rpc) { call in ProduceStream(call, self.produceContext) }
    router.handleHotServerStream(IngestMethods.fetch) { request, _, writer in
      let running = try self.whileRunning()
      let topic = try await self.topics.find(request.topic)
      try await FetchCall(
        reader: running.reader, clock: self.service.clock, metrics: self.metrics,
        readsMax: self.configuration.fetchReadsMax, topic: topic, request: request, writer: writer
      ).run()
    }
    router.handle(IngestMethods.offsets) { request, _ in
      let running = try self.whileRunning()
      let topic = try await self.topics.find(request.topic)
      return try await OffsetsCall(reader: running.reader, cluster: self.clusterView)
        .run(request, topic)
    }
    router.handle(IngestMethods.deleteRecords) { request, _ in
      let running = try self.whileRunning()
      let topic = try await self.topics.find(request.topic)
      return try await DeleteRecordsCall(reader: running.reader, cluster: self.clusterView)
        .run(request, topic)
    }
    router.handle(MetadataMethods.describeTopic) { request, context in
      try await self.describeTopic(request, within: context.remaining)
    }
    self.passOn(IngestMethods.initProducer, to: MetadataMethods.initProducer, on: &router) {
      request throws(MemQError) in
      guard request.producerID >= 0 else {
        throw MemQError(
          .invalidArgument, "a producer id is positive, or 0 for a new one", subject: "producer_id",
          limit: 0, actual: request.producerID)
      }
    }
  }

  /// How long metadata may take to describe a topic before this ingest answers by its image.
  private static let describeWait: Duration = .seconds(1)

  /// Metadata's own answer is the newest. While it is away the image's is good enough for clients to begin to read and write.
  private func describeTopic(
    _ request: Memq_V1_DescribeTopicRequest, within remaining: Duration?
  ) async throws(MemQError) -> Memq_V1_DescribeTopicResponse {
    do throws(MemQError) {
      return try await self.clusterView.metadata.call(
        MetadataMethods.describeTopic, request,
        timeout: min(remaining ?? Self.describeWait, Self.describeWait))
    } catch {
      let image = self.clusterView.image
      switch error.code {
      case .unavailable, .deadlineExceeded, .shuttingDown: break
      default: throw error
      }
      guard let topic = image.topic(named: request.name) else { throw error }
      return .with {
        $0.topic = topic.wire
        $0.partitions = image.partitions(of: topic.id).map(\.wire)
        for setting in topic.settings.effective {
          $0.effectiveSettings[setting.name] = setting.value
        }
      }
    }
  }

  private func registerFiles(on router: inout RPCRouter) {
    router.handleHotBidirectional(FileMethods.put) { reader, _, writer in
      let running = try self.whileRunning()
      let call = PutCall(self.putContext(running.appender), reader, writer)
      try await self.watching(call)
    }
    router.handleHotServerStream(FileMethods.get) { request, _, writer in
      try await self.fileReads(try self.whileRunning()).get(request, writer)
    }
    router.handle(FileMethods.stat) { request, _ in
      try await self.fileReads(try self.whileRunning()).stat(request)
    }
    router.handleServerStream(FileMethods.list) { request, _, writer in
      try await self.fileReads(try self.whileRunning()).list(request, writer)
    }
    router.handle(FileMethods.delete) { request, _ in
      try await self.fileReads(try self.whileRunning()).delete(request)
      return Memq_V1_DeleteResponse()
    }
  }

  /// Runs a put and ends it when its client has been silent for too long.
  private func watching(_ call: PutCall) async throws(MemQError) {
    let silenceMax = self.configuration.putSilenceMax
    let result: Result<Void, MemQError> = await withTaskGroup(of: Result<Void, MemQError>?.self) {
      group in
      group.addTask { await Result { () async throws(MemQError) in try await call.run() } }
      group.addTask {
        while true {
          let silent = call.silence.lasts(self.service.clock.monotonic)
          guard silent < silenceMax else {
            return .failure(
              MemQError(
                .deadlineExceeded, "the client sent nothing for too long; start again to go on",
                limit: silenceMax.milliseconds, actual: silent.milliseconds))
          }
          guard (try? await Task.sleep(for: silenceMax - silent)) != nil else { return nil }
        }
      }
      let first = await group.next() ?? nil
      group.cancelAll()
      return first ?? .failure(MemQError(.cancelled, "the put was cancelled"))
    }
    try result.get()
  }

  private func registerForwards(on router: inout RPCRouter) {
    let metadata = [
      MetadataMethods.createTopic.rpc, MetadataMethods.listTopics.rpc,
      MetadataMethods.alterTopic.rpc, MetadataMethods.deleteTopic.rpc,
      MetadataMethods.describeCluster.rpc, MetadataMethods.initProducer.rpc,
      MetadataMethods.reassignPartition.rpc, MetadataMethods.cancelReassignment.rpc,
    ]
    let uploader = [UploaderMethods.status.rpc, UploaderMethods.flush.rpc]
    let scanner = [
      ScannerMethods.status.rpc, ScannerMethods.listQuarantine.rpc,
      ScannerMethods.releaseQuarantine.rpc, ScannerMethods.deleteQuarantine.rpc,
    ]
    let rebalancer = [
      RebalancerMethods.plan.rpc, RebalancerMethods.start.rpc, RebalancerMethods.status.rpc,
      RebalancerMethods.cancel.rpc,
    ]
    let table: [(ServiceKind, [RPCMethod])] = [
      (.metadata, metadata), (.uploader, uploader), (.scanner, scanner), (.rebalancer, rebalancer),
    ]
    for (service, methods) in table {
      for method in methods {
        router.forward(method) {
          do throws(MemQError) {
            return try self.clusterView.channel(service, lane: .control)
          } catch {
            throw RPCStatus(error)
          }
        }
      }
    }
  }

  /// A call that metadata answers, checked here first.
  func passOn<Q, R>(
    _ method: Method<Q, R>, to inner: Method<Q, R>, on router: inout RPCRouter,
    _ check: @escaping @Sendable (Q) throws(MemQError) -> Void
  ) {
    router.handle(method) { request, context in
      try check(request)
      let longest = Duration.seconds(10)
      return try await self.clusterView.metadata.call(
        inner, request, timeout: min(context.remaining ?? longest, longest))
    }
  }
}
