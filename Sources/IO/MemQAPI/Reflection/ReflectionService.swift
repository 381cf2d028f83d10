// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import MemQModel
public import MemQRPC
import SwiftProtobuf

/// `grpc.reflection.v1.ServerReflection`, and the same as `v1alpha`, which older clients speak: tells clients without stubs which
/// services a port serves, and of what their messages are made.
public enum ReflectionService {
  /// v1 first. The messages of both are the same on the wire.
  public static let methods = ["v1", "v1alpha"].map { version in
    RPCMethod(
      service: "grpc.reflection.\(version).ServerReflection", name: "ServerReflectionInfo",
      kind: .bidirectional)
  }

  /// A question names a file, a type or a symbol: longer ones end the call.
  public static let questionBytesMax = 16 << 10
}

extension RPCRouter {
  /// Adds reflection for the services registered so far, and for itself, unless it is there already.
  ///
  /// - Parameter descriptors: where their messages are described. Services that are not in it are listed all the same.
  public mutating func addReflection(_ descriptors: DescriptorIndex = .memq) {
    let missing = ReflectionService.methods.filter { !self.methods.contains($0) }
    let services = Set(self.methods.map(\.service)).union(missing.map(\.service)).sorted()
    let answers = ReflectionAnswers(services: services, descriptors: descriptors)
    for method in missing {
      self.bidirectional(method) { reader, _, writer in
        // One at a time: who does not read the answers is not read either.
        while let question = try await reader.next() {
          try await writer.send(try answers.answer(question))
        }
      }
    }
  }
}

/// Questions in, answers out.
struct ReflectionAnswers: Sendable {
  private typealias Answer = Grpc_Reflection_V1_ServerReflectionResponse.OneOf_MessageResponse

  let services: [String]
  let descriptors: DescriptorIndex

  func answer(_ message: RPCMessage) throws(RPCStatus) -> RPCMessage {
    guard message.byteCount <= ReflectionService.questionBytesMax else {
      throw .overLimit(
        "question", limit: ReflectionService.questionBytesMax, actual: message.byteCount)
    }
    let question: Grpc_Reflection_V1_ServerReflectionRequest
    do throws(MemQError) {
      question = try Grpc_Reflection_V1_ServerReflectionRequest(decoding: message)
    } catch {
      throw RPCStatus(error)
    }
    var response = Grpc_Reflection_V1_ServerReflectionResponse()
    response.validHost = question.host
    response.originalRequest = question
    response.messageResponse = self.answer(question)
    return response.encoded()
  }

  private func answer(_ question: Grpc_Reflection_V1_ServerReflectionRequest) -> Answer {
    switch question.messageRequest {
    case .fileByFilename(let name):
      return Self.files(self.descriptors.files(named: name), "file \(name)")
    case .fileContainingSymbol(let symbol):
      return Self.files(self.descriptors.files(declaring: symbol), "symbol \(symbol)")
    case .fileContainingExtension(let wanted):
      let (type, number) = (wanted.containingType, wanted.extensionNumber)
      return Self.files(
        self.descriptors.files(extending: type, number: number), "extension \(number) of \(type)")
    case .allExtensionNumbersOfType(let type):
      guard let numbers = self.descriptors.extensionNumbers(of: type) else {
        return Self.error(.notFound, "no message \(type) here")
      }
      var answer = Grpc_Reflection_V1_ExtensionNumberResponse()
      answer.baseTypeName = type
      answer.extensionNumber = numbers
      return .allExtensionNumbersResponse(answer)
    case .listServices:
      var answer = Grpc_Reflection_V1_ListServiceResponse()
      answer.service = self.services.map { name in
        var service = Grpc_Reflection_V1_ServiceResponse()
        service.name = name
        return service
      }
      return .listServicesResponse(answer)
    case nil: return Self.error(.invalidArgument, "the request asks for nothing")
    }
  }

  private static func files(_ files: [Data]?, _ what: String) -> Answer {
    guard let files else { return Self.error(.notFound, "no \(what) here") }
    var answer = Grpc_Reflection_V1_FileDescriptorResponse()
    answer.fileDescriptorProto = files
    return .fileDescriptorResponse(answer)
  }

  private static func error(_ code: RPCCode, _ text: String) -> Answer {
    var answer = Grpc_Reflection_V1_ErrorResponse()
    answer.errorCode = Int32(code.rawValue)
    answer.errorMessage = text
    return .errorResponse(answer)
  }
}
