// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import SwiftProtobuf

/// Descriptions of proto files, found by what they declare. Immutable.
public struct DescriptorIndex: Sendable {
  private struct File {
    let bytes: Data
    let dependencies: [String]
  }

  private var files: [String: File] = [:]
  /// The file that declares a message, field, enum, enum value, oneof, service, method or extension of this full name.
  private var symbols: [String: String] = [:]
  /// By the full name of the extended message, then by number: the file.
  private var extensions: [String: [Int32: String]] = [:]

  /// The files of memq.v1, gRPC's health and gRPC's reflection.
  public static let memq = DescriptorIndex(base64: ProtoDescriptors.base64)

  /// - Parameter base64: an encoded google.protobuf.FileDescriptorSet, as scripts/protos writes it.
  /// - Precondition: it is one. It is generated code, not input.
  public init(base64: String) {
    guard let bytes = Data(base64Encoded: base64),
      let set = try? Google_Protobuf_FileDescriptorSet(serializedBytes: bytes)
    else { preconditionFailure("the generated descriptors are not a FileDescriptorSet") }
    for file in set.file { self.add(file) }
  }

  /// The files of both.
  public func merging(_ other: DescriptorIndex) -> DescriptorIndex {
    var merged = self
    merged.files.merge(other.files) { ours, _ in ours }
    merged.symbols.merge(other.symbols) { ours, _ in ours }
    for (type, numbers) in other.extensions {
      merged.extensions[type, default: [:]].merge(numbers) { ours, _ in ours }
    }
    return merged
  }

  // MARK: Finding

  /// The encoded file of this name, then all it needs, each once; nil: there is none.
  func files(named name: String) -> [Data]? {
    guard self.files[name] != nil else { return nil }
    var found: [Data] = []
    var seen: Set<String> = [name]
    var queue = [name]
    var next = 0
    while next < queue.count {
      if let file = self.files[queue[next]] {
        found.append(file.bytes)
        queue += file.dependencies.filter { seen.insert($0).inserted }
      }
      next += 1
    }
    return found
  }

  /// As ``files(named:)``, for the file that declares `symbol`.
  func files(declaring symbol: String) -> [Data]? {
    self.symbols[symbol].flatMap { self.files(named: $0) }
  }

  /// As ``files(named:)``, for the file that declares extension `number` of the message `type`.
  func files(extending type: String, number: Int32) -> [Data]? {
    self.extensions[type]?[number].flatMap { self.files(named: $0) }
  }

  /// Numbers of the extensions of the message `type`, ascending; nil: there is no such message.
  func extensionNumbers(of type: String) -> [Int32]? {
    if let numbers = self.extensions[type] { return numbers.keys.sorted() }
    return self.symbols[type] == nil ? nil : []
  }

  // MARK: Building

  private mutating func add(_ file: Google_Protobuf_FileDescriptorProto) {
    guard let bytes: Data = try? file.serializedBytes() else {
      preconditionFailure("\(file.name) cannot be encoded")
    }
    self.files[file.name] = File(bytes: bytes, dependencies: file.dependency)
    for message in file.messageType { self.add(message, in: file.package, file.name) }
    for type in file.enumType { self.add(type, in: file.package, file.name) }
    self.add(file.extension, in: file.package, file.name)
    for service in file.service {
      let name = Self.join(file.package, service.name)
      self.symbols[name] = file.name
      for method in service.method { self.symbols[Self.join(name, method.name)] = file.name }
    }
  }

  private mutating func add(
    _ message: Google_Protobuf_DescriptorProto, in scope: String, _ file: String
  ) {
    let name = Self.join(scope, message.name)
    self.symbols[name] = file
    for field in message.field { self.symbols[Self.join(name, field.name)] = file }
    for oneof in message.oneofDecl { self.symbols[Self.join(name, oneof.name)] = file }
    for nested in message.nestedType { self.add(nested, in: name, file) }
    for type in message.enumType { self.add(type, in: name, file) }
    self.add(message.extension, in: name, file)
  }

  /// The values of an enum are its siblings, as in C++.
  private mutating func add(
    _ type: Google_Protobuf_EnumDescriptorProto, in scope: String, _ file: String
  ) {
    self.symbols[Self.join(scope, type.name)] = file
    for value in type.value { self.symbols[Self.join(scope, value.name)] = file }
  }

  private mutating func add(
    _ fields: [Google_Protobuf_FieldDescriptorProto], in scope: String, _ file: String
  ) {
    for field in fields {
      self.symbols[Self.join(scope, field.name)] = file
      let type = field.extendee.hasPrefix(".") ? String(field.extendee.dropFirst()) : field.extendee
      self.extensions[type, default: [:]][field.number] = file
    }
  }

  private static func join(_ scope: String, _ name: String) -> String {
    scope.isEmpty ? name : "\(scope).\(name)"
  }
}
