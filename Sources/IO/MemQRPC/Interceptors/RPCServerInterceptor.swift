// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// Something that happens around the handlers of a router: authentication, metrics, tracing.
///
/// It is asked once for each method, when a server or an in-process channel is made of the router, and may keep what it knows of the method in the
/// closures it answers; nothing is looked up for each call. They run on event loops and must not block.
public struct RPCServerInterceptor: Sendable {
  public struct Hooks: Sendable {
    /// When the request's headers have come. It may add to the context, and refuse the call by throwing an ``RPCStatus``.
    public var before: (@Sendable (inout RPCContext) throws -> Void)?
    /// When the call is over, refused ones, too. Once for each `before`, in the opposite order.
    public var after: (@Sendable (RPCContext, RPCCallReport) -> Void)?

    public init(
      before: (@Sendable (inout RPCContext) throws -> Void)? = nil,
      after: (@Sendable (RPCContext, RPCCallReport) -> Void)? = nil
    ) {
      self.before = before
      self.after = after
    }
  }

  let prepare: @Sendable (RPCMethod) -> Hooks?

  /// - Parameter prepare: nil: not for this method.
  public init(_ prepare: @escaping @Sendable (RPCMethod) -> Hooks?) {
    self.prepare = prepare
  }
}

/// The hooks of one route.
final class RouteHooks: Sendable {
  private let befores: [@Sendable (inout RPCContext) throws -> Void]
  /// In the order in which they are called.
  private let afters: [@Sendable (RPCContext, RPCCallReport) -> Void]

  /// Nil: none.
  init?(_ interceptors: [RPCServerInterceptor], _ method: RPCMethod) {
    let hooks = interceptors.compactMap { $0.prepare(method) }
    if hooks.isEmpty { return nil }
    self.befores = hooks.compactMap(\.before)
    self.afters = hooks.reversed().compactMap(\.after)
  }

  /// - Parameter environment: tells what a status is of whatever was thrown.
  func before(_ context: inout RPCContext, _ environment: ServerEnvironment) -> RPCStatus? {
    for index in self.befores.indices {
      do {
        try self.befores[index](&context)
      } catch {
        return environment.status(for: error, in: context)
      }
    }
    return nil
  }

  func after(_ context: RPCContext, _ report: RPCCallReport) {
    for index in self.afters.indices { self.afters[index](context, report) }
  }
}

/// A call that hooks wait for: their part of it.
struct HookedCall {
  let hooks: RouteHooks
  let context: RPCContext
  let startedAt: NIODeadline

  func ended(_ code: RPCCode, _ core: CallCore) {
    self.hooks.after(
      self.context,
      RPCCallReport(
        code: code, end: core.end,
        duration: .nanoseconds((NIODeadline.now() - self.startedAt).nanoseconds),
        counts: core.counts))
  }
}

// MARK: - Identity

/// Who makes a call, as an interceptor has found out.
public final class RPCPrincipal: Sendable {
  /// Unique among principals.
  public let name: String
  /// What it may do, in the words of whoever asks.
  public let roles: Set<String>

  public init(name: String, roles: Set<String> = []) {
    self.name = name
    self.roles = roles
  }
}

extension RPCServerInterceptor {
  /// Health checks and reflection: load balancers and tools have no token.
  @Sendable public static func isOpenToAll(_ method: RPCMethod) -> Bool {
    method.service.hasPrefix("grpc.health.") || method.service.hasPrefix("grpc.reflection.")
  }

  /// Lets calls in that carry `authorization: Bearer TOKEN` with a token that `check` knows; ``RPCContext/principal`` is what it answers.
  /// Others end with `UNAUTHENTICATED`.
  ///
  /// - Parameters:
  ///   - exempt: methods anybody may call; asked once for each.
  ///   - check: must not block, and should compare in constant time.
  public static func bearer(
    exempt: (@Sendable (RPCMethod) -> Bool)? = nil,
    check: @escaping @Sendable (_ token: Substring) -> RPCPrincipal?
  ) -> RPCServerInterceptor {
    RPCServerInterceptor { method in
      if (exempt ?? Self.isOpenToAll)(method) { return nil }
      return Hooks(before: { context in
        guard let value = context.metadata[first: "authorization"] else {
          throw RPCStatus(.unauthenticated, "the call needs an authorization with a bearer token")
        }
        guard let token = Self.token(in: value) else {
          throw RPCStatus(.unauthenticated, "the authorization is no bearer token")
        }
        guard let principal = check(token) else {
          throw RPCStatus(.unauthenticated, "the bearer token is not valid")
        }
        context.principal = principal
      })
    }
  }
}

extension RPCServerInterceptor {
  /// What follows `Bearer `; the word's case counts for nothing (RFC 9110).
  private static func token(in value: String) -> Substring? {
    let scheme: StaticString = "bearer "
    let count = scheme.utf8CodeUnitCount
    var value = value
    let matches = value.withUTF8 { bytes in
      bytes.count > count && (0..<count).allSatisfy { bytes[$0] | 0x20 == scheme.utf8Start[$0] }
    }
    return matches ? Substring(value.utf8.dropFirst(count)) : nil
  }
}

// MARK: - Typed values

/// The type of a value that interceptors give to handlers.
public protocol RPCContextKey {
  associatedtype Value: Sendable
}

/// A few values, found by going through them.
struct RPCContextValues: Sendable {
  private var all: [(key: ObjectIdentifier, value: any Sendable)] = []

  subscript<Key: RPCContextKey>(key: Key.Type) -> Key.Value? {
    get {
      for entry in self.all where entry.key == ObjectIdentifier(key) {
        return entry.value as? Key.Value
      }
      return nil
    }
    set {
      self.all.removeAll { $0.key == ObjectIdentifier(key) }
      if let newValue { self.all.append((ObjectIdentifier(key), newValue)) }
    }
  }
}
