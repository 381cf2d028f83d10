// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

extension Memq_V1_LogTruncation {
  public init(_ truncation: LogTruncation) {
    self.init()
    self.epoch = truncation.epoch.rawValue
    self.endOffset = truncation.end.rawValue
    self.resumeOffset = truncation.resume.rawValue
    if let epoch = truncation.resumeEpoch { self.resumeEpoch = epoch.rawValue }
  }
}

extension LogTruncation {
  public init(_ wire: Memq_V1_LogTruncation) {
    self.init(
      epoch: LeaderEpoch(wire.epoch), end: Offset(wire.endOffset),
      resume: Offset(wire.resumeOffset),
      resumeEpoch: wire.hasResumeEpoch ? LeaderEpoch(wire.resumeEpoch) : nil)
  }
}
