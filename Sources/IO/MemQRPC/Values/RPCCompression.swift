// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// How the messages of one direction of a call are encoded on the wire (`grpc-encoding`).
///
/// The work is done on the event loop, in one go for each message: right for control messages and text, not for bulk data.
/// Between sides of one process nothing is encoded.
public enum RPCCompression: Sendable {
  case identity
  /// Each message by itself, at zlib's fastest level. Messages below 128 bytes, those it would not make smaller, and those that are not
  /// ``RPCMessage/mayBeCompressed`` go as they are.
  case gzip
}
