// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQObjectStore
import MemQRuntime

extension UploaderNode {
  /// What one uploader is told at its start.
  public struct Configuration: Sendable {
    public var objects: ObjectStoreConfiguration
    /// An object is full at so many bytes of batches; also the memory one group takes while it gathers.
    public var objectBytes: Int64 = 64 << 20
    /// The oldest waiting record goes into an object after this long.
    public var linger: Duration = .seconds(60)
    /// Upload groups held at most. Each may gather one object at a time.
    public var groupsMax = 64
    /// Objects gathered and written at a time, over all groups: bounds memory at `objectBytes` times this.
    public var objectsMax = 4
    /// How often leaders are asked what is committed.
    public var observeInterval: Duration = .seconds(1)
    /// How often deleted topics, expired objects and dropped bodies are collected.
    public var collectInterval: Duration = .seconds(30)
    /// How often the store is searched for objects that were never announced.
    public var orphanInterval: Duration = .seconds(3_600)
    /// File bodies written at a time; more are refused, to be tried again.
    public var bodiesMax = 256
    /// One object's PUT.
    public var putTimeout: Duration = .seconds(300)
    /// Any other request to the object store.
    public var storeTimeout: Duration = .seconds(60)

    public init(objects: ObjectStoreConfiguration) { self.objects = objects }

    /// - Throws: `.configurationInvalid` naming the key.
    public func validate() throws(MemQError) {
      try self.objects.validate()
      try ValueRange.check("upload.object.bytes", self.objectBytes, 1 << 20...512 << 20)
      try ValueRange.check("upload.linger", self.linger.milliseconds, 100...86_400_000)
      try ValueRange.check("upload.groups.max", self.groupsMax, 1...10_000)
      try ValueRange.check("upload.objects.max", self.objectsMax, 1...64)
      try ValueRange.check(
        "upload.observe.interval", self.observeInterval.milliseconds, 50...60_000)
      try ValueRange.check(
        "upload.collect.interval", self.collectInterval.milliseconds, 100...86_400_000)
      try ValueRange.check(
        "upload.orphans.interval", self.orphanInterval.milliseconds, 1_000...604_800_000)
      try ValueRange.check("upload.bodies.max", self.bodiesMax, 1...10_000)
      try ValueRange.check("upload.put.timeout", self.putTimeout.milliseconds, 1_000...3_600_000)
    }
  }
}
