// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// What calls made while a call is handled take over from it: the deadline, and the trace.
///
/// Set for async handlers and whatever tasks they start. Work that must go on without its caller begins ``beyondCall``.
public enum RPCScope {
  @TaskLocal static var call: RPCServerCall?

  /// The call the current task handles, if any.
  public static var context: RPCContext? { self.call?.context }

  /// Calls that `body`, and the tasks it starts, make are nobody's: neither a deadline nor a trace is taken over.
  @discardableResult
  public static func beyondCall<R>(_ body: () throws -> R) rethrows -> R {
    try self.$call.withValue(nil) { try body() }
  }
}

extension RPCCallOptions {
  /// With what the call in progress, if there is one, hands on.
  func inheriting() -> RPCCallOptions {
    guard self.inherits, let call = RPCScope.call else { return self }
    var options = self
    options.inherits = false
    if let remaining = call.context.remaining {
      options.timeout = min(options.timeout ?? remaining, remaining)
    }
    if options.metadata[first: RPCTrace.metadataName] == nil {
      options.metadata.add(RPCTrace.metadataName, call.trace.child().traceparent)
      if let state = call.context.metadata[first: RPCTrace.stateName] {
        options.metadata.add(RPCTrace.stateName, state)
      }
    }
    return options
  }
}
