// swift-tools-version: 6.2
// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import PackageDescription

/// The layers, lowest first. A module may use modules of lower layers and earlier ones of its own.
enum Layer: Int {
  case system, model, core, io, runtime, testing, services, memq, test
}

/// One row of the module table: everything the manifest knows about a target.
struct Module {
  enum Kind {
    case library, executable, test, cLibrary, systemLibrary(package: String, apt: String)
  }

  let name: String
  let layer: Layer
  let kind: Kind
  let path: String
  let uses: [String]
  let packages: [String]

  init(
    _ name: String, _ layer: Layer, _ path: String, kind: Kind = .library, uses: [String] = [],
    packages: [String] = []
  ) {
    self.name = name
    self.layer = layer
    self.kind = kind
    self.path = path
    self.uses = uses
    self.packages = packages
  }
}

let nio = ["NIOCore", "NIOPosix"]

let modules: [Module] = [
  // System libraries, from apt.
  Module(
    "CNghttp2", .system, "Sources/IO/CNghttp2",
    kind: .systemLibrary(package: "libnghttp2", apt: "libnghttp2-dev")),
  Module(
    "CYara", .system, "Sources/IO/CYara",
    kind: .systemLibrary(package: "yara", apt: "libyara-dev")),
  Module(
    "CCrypto", .system, "Sources/IO/CCrypto",
    kind: .systemLibrary(package: "libcrypto", apt: "libssl-dev")),
  Module(
    "CZlib", .system, "Sources/Model/CZlib",
    kind: .systemLibrary(package: "zlib", apt: "zlib1g-dev")),
  Module(
    "CZstd", .system, "Sources/Model/CZstd",
    kind: .systemLibrary(package: "libzstd", apt: "libzstd-dev")),
  Module(
    "CLz4", .system, "Sources/Model/CLz4",
    kind: .systemLibrary(package: "liblz4", apt: "liblz4-dev")),
  Module(
    "CSnappy", .system, "Sources/Model/CSnappy",
    kind: .systemLibrary(package: "", apt: "libsnappy-dev")),
  Module("CMemQSystem", .system, "Sources/IO/CMemQSystem", kind: .cLibrary),
  Module("CMemQChecksum", .system, "Sources/Model/CMemQChecksum", kind: .cLibrary),

  // Model: values, and bytes in, bytes out.
  Module("MemQModel", .model, "Sources/Model/MemQModel"),
  Module(
    "MemQRecords", .model, "Sources/Model/MemQRecords",
    uses: ["CMemQChecksum", "CZlib", "CZstd", "CLz4", "CSnappy", "MemQModel"]),

  // Core: pure rules. No I/O, no clock, no concurrency.
  Module("MemQLog", .core, "Sources/Core/MemQLog", uses: ["MemQModel", "MemQRecords"]),
  Module(
    "MemQReplication", .core, "Sources/Core/MemQReplication",
    uses: ["MemQModel", "MemQRecords"]),
  Module(
    "MemQMetadata", .core, "Sources/Core/MemQMetadata",
    uses: ["MemQModel", "MemQRecords"]),
  Module(
    "MemQPlacement", .core, "Sources/Core/MemQPlacement",
    uses: ["MemQModel", "MemQMetadata"]),
  Module("MemQPacking", .core, "Sources/Core/MemQPacking", uses: ["MemQModel", "MemQRecords"]),
  Module("MemQScreening", .core, "Sources/Core/MemQScreening", uses: ["MemQModel"]),

  // IO: the outside world, each part behind a small interface.
  Module(
    "MemQSystem", .io, "Sources/IO/MemQSystem", uses: ["CMemQSystem", "CCrypto", "MemQModel"]),
  Module(
    "MemQTelemetry", .io, "Sources/IO/MemQTelemetry", uses: ["MemQModel"],
    packages: ["Logging", "CoreMetrics", "Metrics"]),
  Module(
    "MemQRPC", .io, "Sources/IO/MemQRPC",
    uses: ["CNghttp2", "CZlib", "CCrypto", "MemQModel"],
    packages: nio + ["NIOSSL", "NIOTLS", "DequeModule", "Logging"]),
  Module(
    "MemQAPI", .io, "Sources/IO/MemQAPI",
    uses: ["MemQModel", "MemQRPC"], packages: ["SwiftProtobuf", "NIOCore"]),
  Module(
    "MemQStorage", .io, "Sources/IO/MemQStorage",
    uses: ["MemQModel", "MemQRecords", "MemQLog", "MemQSystem", "MemQTelemetry"],
    packages: ["Logging", "Metrics", "DequeModule", "NIOCore"]),
  Module(
    "MemQStore", .io, "Sources/IO/MemQStore",
    uses: ["MemQModel", "MemQMetadata", "MemQSystem", "MemQRPC", "MemQAPI"],
    packages: ["GRDB", "Logging", "DequeModule", "SwiftProtobuf", "NIOCore"]),
  Module(
    "MemQObjectStore", .io, "Sources/IO/MemQObjectStore",
    uses: ["MemQModel", "MemQRecords", "MemQPacking", "MemQSystem"],
    packages: ["Logging", "NIOCore", "NIOPosix", "NIOHTTP1", "AsyncHTTPClient", "Metrics"]),
  Module(
    "MemQEngines", .io, "Sources/IO/MemQEngines",
    uses: ["CYara", "MemQModel", "MemQScreening", "MemQSystem"], packages: ["Logging"]),

  // Runtime: what every service process needs, and the SDK.
  Module(
    "MemQRuntime", .runtime, "Sources/Runtime/MemQRuntime",
    uses: [
      "MemQModel", "MemQMetadata", "MemQPacking", "MemQSystem", "MemQTelemetry", "MemQRPC",
      "MemQAPI", "MemQObjectStore",
    ],
    packages: nio + [
      "Logging", "Metrics", "Configuration", "Hummingbird", "ServiceLifecycle", "UnixSignals",
      "SwiftProtobuf", "Yams",
    ]),
  Module(
    "MemQClient", .runtime, "Sources/Runtime/MemQClient",
    uses: ["MemQModel", "MemQRecords", "MemQRPC", "MemQAPI", "MemQSystem"],
    packages: nio + ["Logging", "SwiftProtobuf", "DequeModule"]),

  // Testing: the simulator, and what tests share.
  Module("MemQTestSupport", .testing, "Sources/Testing/MemQTestSupport"),
  Module(
    "MemQDiskSimulation", .testing, "Sources/Testing/MemQDiskSimulation",
    uses: ["MemQModel", "MemQRecords", "MemQLog", "MemQTestSupport"]),
  Module(
    "memq-volume-stress", .testing, "Sources/Testing/memq-volume-stress", kind: .executable,
    uses: [
      "MemQModel", "MemQLog", "MemQStorage", "MemQSystem", "MemQDiskSimulation", "MemQTestSupport",
    ],
    packages: ["Logging", "NIOCore"]),
  Module(
    "MemQSimulation", .testing, "Sources/Testing/MemQSimulation",
    uses: [
      "MemQModel", "MemQRecords", "MemQLog", "MemQReplication", "MemQMetadata",
      "MemQDiskSimulation", "MemQTestSupport",
    ]),
  Module(
    "memq-sim", .testing, "Sources/Testing/memq-sim", kind: .executable,
    uses: ["MemQModel", "MemQSimulation"], packages: ["ArgumentParser"]),
  Module(
    "MemQFuzzing", .testing, "Sources/Testing/MemQFuzzing",
    uses: [
      "MemQModel", "MemQRecords", "MemQLog", "MemQRPC", "MemQAPI", "MemQDiskSimulation",
      "MemQTestSupport",
    ],
    packages: ["NIOCore", "NIOEmbedded", "Logging", "SwiftProtobuf"]),
  Module(
    "memq-fuzz", .testing, "Sources/Testing/memq-fuzz", kind: .executable,
    uses: ["MemQFuzzing"], packages: ["ArgumentParser"]),
  Module(
    "memq-interop", .testing, "Sources/Testing/memq-interop", kind: .executable,
    uses: ["MemQModel", "MemQRPC", "MemQAPI"],
    packages: nio + ["ArgumentParser", "Logging", "SwiftProtobuf", "UnixSignals"]),

  // Services: a library and a thin executable each.
  Module(
    "MemQMetadataService", .services, "services/metadata/Service",
    uses: [
      "MemQModel", "MemQRecords", "MemQMetadata", "MemQStore", "MemQSystem", "MemQTelemetry",
      "MemQRPC", "MemQAPI", "MemQObjectStore", "MemQRuntime",
    ], packages: ["Logging", "CoreMetrics", "Metrics", "NIOCore", "SwiftProtobuf", "DequeModule"]),
  Module(
    "MemQReplicationService", .services, "services/replication/Service",
    uses: [
      "MemQModel", "MemQRecords", "MemQLog", "MemQReplication", "MemQMetadata", "MemQStorage",
      "MemQSystem", "MemQTelemetry", "MemQRPC", "MemQAPI", "MemQRuntime",
    ], packages: nio + ["Logging", "Metrics", "SwiftProtobuf", "DequeModule"]),
  Module(
    "MemQIngestService", .services, "services/ingest/Service",
    uses: [
      "MemQModel", "MemQRecords", "MemQMetadata", "MemQPacking", "MemQScreening", "MemQObjectStore",
      "MemQSystem", "MemQTelemetry", "MemQRPC", "MemQAPI", "MemQRuntime",
    ], packages: ["Logging", "Metrics", "NIOCore", "NIOPosix", "SwiftProtobuf", "DequeModule"]),
  Module(
    "MemQUploaderService", .services, "services/uploader/Service",
    uses: [
      "MemQModel", "MemQRecords", "MemQMetadata", "MemQPacking", "MemQObjectStore", "MemQSystem",
      "MemQTelemetry", "MemQRPC", "MemQAPI", "MemQRuntime",
    ], packages: ["Logging", "Metrics", "NIOCore", "SwiftProtobuf", "DequeModule"]),
  Module(
    "MemQScannerService", .services, "services/scanner/Service",
    uses: [
      "MemQModel", "MemQMetadata", "MemQScreening", "MemQEngines", "MemQObjectStore", "MemQSystem",
      "MemQTelemetry", "MemQRPC", "MemQAPI", "MemQRuntime",
    ], packages: ["Logging", "Metrics", "NIOCore", "NIOPosix", "SwiftProtobuf"]),
  Module(
    "MemQRebalancerService", .services, "services/rebalancer/Service",
    uses: [
      "MemQModel", "MemQMetadata", "MemQPlacement", "MemQSystem", "MemQTelemetry", "MemQRPC",
      "MemQAPI", "MemQRuntime",
    ], packages: ["Logging", "Metrics", "NIOCore", "SwiftProtobuf"]),

  Module(
    "memq-metadata", .services, "services/metadata/Main", kind: .executable,
    uses: ["MemQMetadataService", "MemQRuntime"]),
  Module(
    "memq-replication", .services, "services/replication/Main", kind: .executable,
    uses: ["MemQReplicationService", "MemQRuntime"]),
  Module(
    "memq-ingest", .services, "services/ingest/Main", kind: .executable,
    uses: ["MemQIngestService", "MemQRuntime"]),
  Module(
    "memq-uploader", .services, "services/uploader/Main", kind: .executable,
    uses: ["MemQUploaderService", "MemQRuntime"]),
  Module(
    "memq-scanner", .services, "services/scanner/Main", kind: .executable,
    uses: ["MemQScannerService", "MemQRuntime"]),
  Module(
    "memq-rebalancer", .services, "services/rebalancer/Main", kind: .executable,
    uses: ["MemQRebalancerService", "MemQRuntime"]),

  // memq: everything in one process, and the command line.
  Module(
    "MemQEmbedded", .memq, "services/memq/Embedded",
    uses: [
      "MemQModel", "MemQMetadata", "MemQSystem", "MemQTelemetry", "MemQRPC", "MemQAPI",
      "MemQRuntime", "MemQMetadataService", "MemQReplicationService", "MemQIngestService",
      "MemQUploaderService",
      "MemQScannerService", "MemQRebalancerService",
    ], packages: ["Logging", "NIOCore", "NIOPosix", "ServiceLifecycle"]),
  Module(
    "MemQCommands", .memq, "services/memq/Commands",
    uses: [
      "MemQModel", "MemQRecords", "MemQLog", "MemQMetadata", "MemQSystem", "MemQTelemetry",
      "MemQStorage", "MemQStore", "MemQRPC", "MemQRuntime", "MemQClient",
    ], packages: ["ArgumentParser", "Logging", "NIOCore"]),
  Module(
    "memq", .memq, "services/memq/Main", kind: .executable,
    uses: ["MemQEmbedded", "MemQCommands", "MemQRuntime"]),

  // Tests.
  Module("MemQModelTests", .test, "Tests/MemQModelTests", kind: .test, uses: ["MemQModel"]),
  Module(
    "MemQRecordsTests", .test, "Tests/MemQRecordsTests", kind: .test,
    uses: ["MemQModel", "MemQRecords", "MemQTestSupport"]),
  Module(
    "MemQLogTests", .test, "Tests/MemQLogTests", kind: .test,
    uses: ["MemQModel", "MemQRecords", "MemQLog", "MemQDiskSimulation", "MemQTestSupport"]),
  Module(
    "MemQStorageTests", .test, "Tests/MemQStorageTests", kind: .test,
    uses: [
      "MemQModel", "MemQRecords", "MemQLog", "MemQStorage", "MemQSystem", "MemQDiskSimulation",
      "MemQTestSupport",
    ],
    packages: ["Logging", "NIOCore"]),
  Module(
    "MemQReplicationTests", .test, "Tests/MemQReplicationTests", kind: .test,
    uses: ["MemQModel", "MemQRecords", "MemQReplication"]),
  Module(
    "MemQSimulationTests", .test, "Tests/MemQSimulationTests", kind: .test,
    uses: ["MemQModel", "MemQSimulation"]),
  Module(
    "MemQMetadataTests", .test, "Tests/MemQMetadataTests", kind: .test,
    uses: [
      "MemQModel", "MemQMetadata", "MemQStore", "MemQSystem", "MemQRPC", "MemQAPI", "MemQRuntime",
      "MemQObjectStore", "MemQMetadataService", "MemQTestSupport",
    ], packages: nio + ["Logging", "SwiftProtobuf"]),
  Module(
    "MemQPackingTests", .test, "Tests/MemQPackingTests", kind: .test,
    uses: [
      "MemQModel", "MemQRecords", "MemQPacking", "MemQObjectStore", "MemQSystem", "MemQTestSupport",
    ],
    packages: ["NIOCore", "Logging"]),
  Module(
    "MemQScreeningTests", .test, "Tests/MemQScreeningTests", kind: .test,
    uses: [
      "MemQModel", "MemQMetadata", "MemQScreening", "MemQEngines", "MemQPlacement", "MemQSystem",
    ],
    packages: ["Logging"]),
  Module(
    "MemQObjectStoreTests", .test, "Tests/MemQObjectStoreTests", kind: .test,
    uses: ["MemQModel", "MemQRecords", "MemQObjectStore", "MemQSystem"],
    packages: ["Logging", "NIOCore", "NIOHTTP1"]),
  Module(
    "MemQPlacementTests", .test, "Tests/MemQPlacementTests", kind: .test,
    uses: ["MemQModel", "MemQPlacement", "MemQTestSupport"]),
  Module(
    "MemQRPCTests", .test, "Tests/MemQRPCTests", kind: .test,
    uses: ["CNghttp2", "MemQModel", "MemQRPC", "MemQAPI", "MemQTestSupport", "MemQFuzzing"],
    packages: nio + ["NIOEmbedded", "NIOSSL", "Logging", "SwiftProtobuf"]),
  Module(
    "MemQRuntimeTests", .test, "Tests/MemQRuntimeTests", kind: .test,
    uses: ["MemQModel", "MemQSystem", "MemQTelemetry", "MemQRPC", "MemQRuntime"],
    packages: ["Logging", "CoreMetrics", "Metrics"]),
  Module(
    "MemQIngestTests", .test, "Tests/MemQIngestTests", kind: .test,
    uses: [
      "MemQModel", "MemQRecords", "MemQMetadata", "MemQPacking", "MemQScreening", "MemQObjectStore",
      "MemQSystem", "MemQRPC", "MemQAPI", "MemQRuntime", "MemQIngestService", "MemQTestSupport",
    ], packages: nio + ["Logging", "SwiftProtobuf"]),
  Module(
    "MemQClientTests", .test, "Tests/MemQClientTests", kind: .test,
    uses: ["MemQModel", "MemQRecords", "MemQRPC", "MemQAPI", "MemQClient", "MemQSystem"],
    packages: nio + ["Logging", "SwiftProtobuf", "DequeModule"]),
  Module(
    "MemQReplicationServiceTests", .test, "Tests/MemQReplicationServiceTests", kind: .test,
    uses: [
      "MemQModel", "MemQRecords", "MemQMetadata", "MemQReplication", "MemQSystem", "MemQRPC",
      "MemQAPI", "MemQLog", "MemQStorage",
      "MemQRuntime", "MemQMetadataService", "MemQReplicationService",
    ], packages: nio + ["Logging", "SwiftProtobuf"]),
  Module(
    "MemQUploaderTests", .test, "Tests/MemQUploaderTests", kind: .test,
    uses: [
      "MemQModel", "MemQRecords", "MemQMetadata", "MemQPacking", "MemQObjectStore", "MemQSystem",
      "MemQRPC", "MemQAPI", "MemQRuntime", "MemQMetadataService", "MemQReplicationService",
      "MemQUploaderService", "MemQScannerService",
    ], packages: nio + ["Logging", "SwiftProtobuf"]),
  Module(
    "MemQRebalancerTests", .test, "Tests/MemQRebalancerTests", kind: .test,
    uses: [
      "MemQModel", "MemQMetadata", "MemQSystem", "MemQRPC", "MemQAPI", "MemQRuntime",
      "MemQRebalancerService",
    ],
    packages: ["Logging", "NIOPosix", "SwiftProtobuf"]),
  Module(
    "MemQEmbeddedTests", .test, "Tests/MemQEmbeddedTests", kind: .test,
    uses: [
      "MemQModel", "MemQTelemetry", "MemQRPC", "MemQAPI", "MemQRuntime", "MemQMetadataService",
      "MemQReplicationService", "MemQIngestService", "MemQUploaderService", "MemQScannerService",
      "MemQRebalancerService", "MemQEmbedded", "memq-metadata", "memq-rebalancer",
    ],
    packages: nio + ["Logging", "SwiftProtobuf"]),
  Module(
    "MemQCommandsTests", .test, "Tests/MemQCommandsTests", kind: .test,
    uses: ["MemQModel", "MemQRecords", "MemQClient", "MemQCommands"], packages: ["ArgumentParser"]),
  Module("LayoutTests", .test, "Tests/LayoutTests", kind: .test),
]

/// Products of other packages, by the name they are used under.
let products: [String: (package: String, url: String, version: Version)] = {
  let apple = "https://github.com/apple/"
  let table: [(String, String, Version, [String])] = [
    ("swift-nio", apple, "2.101.2", ["NIOCore", "NIOPosix", "NIOEmbedded", "NIOHTTP1", "NIOTLS"]),
    ("swift-nio-ssl", apple, "2.37.6", ["NIOSSL"]),
    ("swift-protobuf", apple, "1.39.0", ["SwiftProtobuf"]),
    ("swift-argument-parser", apple, "1.8.2", ["ArgumentParser"]),
    ("swift-configuration", apple, "1.4.0", ["Configuration"]),
    ("swift-log", apple, "1.16.2", ["Logging"]),
    ("swift-metrics", apple, "2.13.0", ["CoreMetrics", "Metrics"]),
    ("swift-collections", apple, "1.6.0", ["DequeModule"]),
    ("GRDB.swift", "https://github.com/groue/", "7.10.0", ["GRDB"]),
    ("Yams", "https://github.com/jpsim/", "6.2.2", ["Yams"]),
    (
      "hummingbird", "https://github.com/hummingbird-project/", "2.28.1", ["Hummingbird"]
    ),
    ("async-http-client", "https://github.com/swift-server/", "1.37.0", ["AsyncHTTPClient"]),
    (
      "swift-service-lifecycle", "https://github.com/swift-server/", "2.13.0",
      ["ServiceLifecycle", "UnixSignals"]
    ),
  ]
  var products: [String: (package: String, url: String, version: Version)] = [:]
  for (package, base, version, names) in table {
    for name in names { products[name] = (package, base + package, version) }
  }
  return products
}()

// MARK: - The table is checked, then turned into targets

var position: [String: Int] = [:]
for (index, module) in modules.enumerated() {
  guard position.updateValue(index, forKey: module.name) == nil else {
    fatalError("module \(module.name) stands twice in the table")
  }
}

for (index, module) in modules.enumerated() {
  for used in module.uses {
    guard let at = position[used] else { fatalError("\(module.name) uses unknown module \(used)") }
    let below = modules[at]
    guard
      below.layer.rawValue < module.layer.rawValue || (below.layer == module.layer && at < index)
    else {
      fatalError(
        "\(module.name) (\(module.layer)) may not use \(used) (\(below.layer)): dependencies point down"
      )
    }
    if below.layer == .testing {
      guard module.layer == .testing || module.layer == .test else {
        fatalError("\(module.name) may not use \(used): only tests and memq-sim use Testing")
      }
    }
  }
}

/// `MEMQ_ONLY=A,B` limits the package to those modules and what they use: quick builds of one part.
let selected: [Module] = {
  guard let only = Context.environment["MEMQ_ONLY"], !only.isEmpty else { return modules }
  var wanted: Set<String> = []
  var queue = only.split(separator: ",").map(String.init)
  while let name = queue.popLast() {
    guard let at = position[name] else { fatalError("MEMQ_ONLY names unknown module \(name)") }
    if wanted.insert(name).inserted { queue += modules[at].uses }
  }
  return modules.filter { wanted.contains($0.name) }
}()

let swiftSettings: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("MemberImportVisibility"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .treatAllWarnings(as: .error),
]

/// Modules where the run-time checks of exclusive access cost calls measurably (docs/performance.md). Debug builds, and so the tests,
/// keep them.
let unchecked = ["MemQRPC", "MemQSimulation"]
let uncheckedInRelease = SwiftSetting.unsafeFlags(
  ["-enforce-exclusivity=unchecked"], .when(configuration: .release))

let targets: [Target] = selected.map { module in
  let dependencies: [Target.Dependency] =
    module.uses.map { .target(name: $0) }
    + module.packages.map { name in
      guard let product = products[name] else { fatalError("unknown product \(name)") }
      return .product(name: name, package: product.package)
    }
  switch module.kind {
  case .library:
    return .target(
      name: module.name, dependencies: dependencies, path: module.path,
      swiftSettings: swiftSettings + (unchecked.contains(module.name) ? [uncheckedInRelease] : []))
  case .executable:
    return .executableTarget(
      name: module.name, dependencies: dependencies, path: module.path,
      swiftSettings: swiftSettings)
  case .test:
    return .testTarget(
      name: module.name, dependencies: dependencies, path: module.path,
      swiftSettings: swiftSettings)
  case .cLibrary:
    return .target(
      name: module.name, dependencies: dependencies, path: module.path,
      cSettings: [.unsafeFlags(["-O2"])])
  case .systemLibrary(let package, let apt):
    return .systemLibrary(
      name: module.name, path: module.path, pkgConfig: package.isEmpty ? nil : package,
      providers: [.apt([apt])])
  }
}

let usedPackages = Set(selected.flatMap(\.packages).compactMap { products[$0]?.package })
var dependencies: [Package.Dependency] = []
for (package, url, version) in Set(products.values.map { [$0.package, $0.url] }).map({ pair in
  (pair[0], pair[1], products.values.first { $0.package == pair[0] }!.version)
}).sorted(by: { $0.0 < $1.0 }) where usedPackages.contains(package) {
  if package == "swift-configuration" {
    dependencies.append(.package(url: url, exact: version, traits: ["YAML"]))
  } else {
    dependencies.append(.package(url: url, exact: version))
  }
}

// What Benchmarks, a package of its own, uses from here.
let benchmarked = [
  "MemQRPC", "MemQModel", "MemQRecords", "MemQStorage", "MemQSystem", "MemQClient",
  "MemQTelemetry", "MemQRuntime", "MemQLog",
]
let libraries = selected.filter { benchmarked.contains($0.name) }

let package = Package(
  name: "memq",
  products: libraries.map { .library(name: $0.name, targets: [$0.name]) },
  dependencies: dependencies,
  targets: targets
)
