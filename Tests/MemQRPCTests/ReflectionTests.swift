// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import MemQRPC
import SwiftProtobuf
import Testing

@testable import MemQAPI

private typealias Question = Grpc_Reflection_V1_ServerReflectionRequest
private typealias Answer = Grpc_Reflection_V1_ServerReflectionResponse

/// What a client without stubs learns.
@Suite(.timeLimit(.minutes(10))) struct ReflectionTests {
  private func ask(_ bed: TestBed, _ questions: [Question], version: Int) async throws -> [Answer] {
    let stream = try await bed.channel.bidirectional(ReflectionService.methods[version])
    for question in questions { try await stream.send(question.encoded()) }
    try await stream.halfClose()
    var answers: [Answer] = []
    for try await message in stream.responses { answers.append(try Answer(decoding: message)) }
    return answers
  }

  @Test(arguments: [0, 1])
  func `only the services of the port are listed, and each of them is described`(
    version: Int
  ) async throws {
    var router = RPCRouter()
    HealthService().register(on: &router)
    router.unary(IngestMethods.offsets.rpc) { request, _ in request }
    router.addReflection()
    // A second time changes nothing.
    router.addReflection()
    try await withBed(.network, router) { bed in
      let listed = try await self.ask(
        bed, [.with { $0.listServices = "" }], version: version)[0].listServicesResponse
      let names = listed.service.map(\.name)
      #expect(
        names == [
          "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
          "grpc.reflection.v1alpha.ServerReflection", "memq.v1.IngestService",
        ])
      let answers = try await self.ask(
        bed, names.map { name in .with { $0.fileContainingSymbol = name } }, version: version)
      for (name, answer) in zip(names, answers) {
        #expect(answer.originalRequest.fileContainingSymbol == name)
        let files = try answer.fileDescriptorResponse.fileDescriptorProto.map {
          try Google_Protobuf_FileDescriptorProto(serializedBytes: $0)
        }
        let services = files[0].service.map { "\(files[0].package).\($0.name)" }
        #expect(services.contains(name))
        // Every file that is needed comes along, once.
        let sent = files.map(\.name)
        #expect(Set(sent).count == sent.count)
        #expect(files.flatMap(\.dependency).allSatisfy { sent.contains($0) })
      }
    }
  }

  @Test func `what is not there is an error of that question alone`() async throws {
    var router = RPCRouter()
    router.addReflection()
    try await withBed(.network, router) { bed in
      let answers = try await self.ask(
        bed,
        [
          .with { $0.fileByFilename = "no/such.proto" },
          .with { $0.fileContainingSymbol = "memq.v1.Nothing" },
          .with { $0.fileContainingExtension.containingType = "memq.v1.Record" },
          .with { $0.allExtensionNumbersOfType = "memq.v1.Nothing" },
          Question(),
          .with { $0.fileByFilename = "memq/v1/types.proto" },
        ], version: 0)
      #expect(answers.map(\.errorResponse.errorCode) == [5, 5, 5, 5, 3, 0])
      #expect(answers[5].fileDescriptorResponse.fileDescriptorProto.count == 1)
    }
  }

  @Test func `a question that is too long, or none, ends the call`() async throws {
    var router = RPCRouter()
    router.addReflection()
    try await withBed(.network, router) { bed in
      let long = String(repeating: "x", count: ReflectionService.questionBytesMax)
      let tooLong = await status {
        _ = try await self.ask(bed, [.with { $0.fileByFilename = long }], version: 0)
      }
      #expect(tooLong.code == .resourceExhausted)
      let stream = try await bed.channel.bidirectional(ReflectionService.methods[0])
      try await stream.send(RPCMessage(bytes: [0xff, 0xff]))
      let broken = await status { _ = try await stream.responses.next() }
      #expect(broken.code == .invalidArgument)
    }
  }

  @Test func `extensions and nested names are found in the file that declares them`() throws {
    var base = Google_Protobuf_FileDescriptorProto()
    base.name = "base.proto"
    base.package = "p"
    base.messageType = [
      .with {
        $0.name = "Open"
        $0.nestedType = [.with { $0.name = "Inner" }]
        $0.enumType = [
          .with {
            $0.name = "Kind"
            $0.value = [.with { $0.name = "GOOD" }]
          }
        ]
      }
    ]
    var more = Google_Protobuf_FileDescriptorProto()
    more.name = "more.proto"
    more.dependency = ["base.proto"]
    more.extension = [Int32(7), 3].map { number in
      .with {
        $0.name = "extra\(number)"
        $0.number = number
        $0.extendee = ".p.Open"
      }
    }
    let set = Google_Protobuf_FileDescriptorSet.with { $0.file = [base, more] }
    let bytes: Data = try set.serializedBytes()
    let index = DescriptorIndex(base64: bytes.base64EncodedString()).merging(.memq)
    #expect(index.extensionNumbers(of: "p.Open") == [3, 7])
    #expect(index.extensionNumbers(of: "p.Open.Inner") == [])
    #expect(index.extensionNumbers(of: "p.Nothing") == nil)
    #expect(index.files(extending: "p.Open", number: 7)?.count == 2)
    #expect(index.files(extending: "p.Open", number: 8) == nil)
    #expect(index.files(declaring: "extra3")?.count == 2)
    #expect(index.files(declaring: "p.Open.Inner")?.count == 1)
    #expect(index.files(declaring: "p.Open.GOOD") != nil)
    #expect(index.files(declaring: "memq.v1.IngestService.Produce") != nil)
  }
}
