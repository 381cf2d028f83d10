// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQObjectStore
public import MemQRuntime

extension UploaderNode.Configuration {
  /// Keys of an uploader beyond those every node has.
  public static let keys: [ConfigurationKey] = [
    ConfigurationKey(
      "upload.object.bytes", .size, default: "64MiB",
      "An object is full at so many bytes, 1MiB to 512MiB; larger ones cost fewer requests and more memory."
    ),
    ConfigurationKey(
      "upload.linger", .duration, default: "60s",
      "The oldest waiting record goes into an object after this long."),
    ConfigurationKey(
      "upload.groups.max", .integer(1...10_000), default: "64", "Upload groups held at most."),
    ConfigurationKey(
      "upload.objects.max", .integer(1...64), default: "4",
      "Objects gathered and written at a time; memory is this times upload.object.bytes."),
    ConfigurationKey(
      "upload.observe.interval", .duration, default: "1s",
      "How often leaders are asked what is committed."),
    ConfigurationKey(
      "upload.collect.interval", .duration, default: "30s",
      "How often deleted topics, expired objects and dropped bodies are collected."),
    ConfigurationKey(
      "upload.orphans.interval", .duration, default: "1h",
      "How often the store is searched for objects that were never announced."),
    ConfigurationKey(
      "upload.bodies.max", .integer(1...10_000), default: "256",
      "File bodies written at a time; more are refused, to be tried again."),
    ConfigurationKey(
      "upload.put.timeout", .duration, default: "300s", "Longest time one object's PUT may take."),
  ]

  /// - Throws: `.configurationInvalid` naming the key.
  public init(_ loaded: LoadedConfiguration, objects: String) throws(MemQError) {
    self.init(
      objects: try ObjectStoreConfiguration(loaded, objects: objects))
    self.objectBytes = loaded.bytes("upload.object.bytes")
    self.linger = loaded.duration("upload.linger")
    self.groupsMax = loaded.integer("upload.groups.max")
    self.objectsMax = loaded.integer("upload.objects.max")
    self.observeInterval = loaded.duration("upload.observe.interval")
    self.collectInterval = loaded.duration("upload.collect.interval")
    self.orphanInterval = loaded.duration("upload.orphans.interval")
    self.bodiesMax = loaded.integer("upload.bodies.max")
    self.putTimeout = loaded.duration("upload.put.timeout")
    try self.validate()
  }
}
