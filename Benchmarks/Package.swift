// swift-tools-version: 6.2
// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import PackageDescription

// Measurements, each against a floor taken in the same run. Not part of any test. How to run them: docs/performance.md.
let package = Package(
  name: "memq-benchmarks",
  dependencies: [
    .package(name: "memq", path: ".."),
    .package(url: "https://github.com/apple/swift-nio", exact: "2.101.2"),
    .package(url: "https://github.com/apple/swift-nio-ssl", exact: "2.37.6"),
    .package(url: "https://github.com/apple/swift-log", exact: "1.16.2"),
  ],
  targets: [
    .executableTarget(
      name: "bench-rpc",
      dependencies: [
        .product(name: "MemQRPC", package: "memq"),
        .product(name: "MemQRuntime", package: "memq"),
        .product(name: "MemQSystem", package: "memq"),
        .product(name: "MemQTelemetry", package: "memq"),
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "NIOPosix", package: "swift-nio"),
        .product(name: "NIOSSL", package: "swift-nio-ssl"),
        .product(name: "Logging", package: "swift-log"),
      ],
      path: "rpc",
      swiftSettings: [
        .swiftLanguageMode(.v6),
        .enableUpcomingFeature("ExistentialAny"),
        .enableUpcomingFeature("MemberImportVisibility"),
      ]),
    .target(name: "CBenchSync", path: "storage-sync"),
    .executableTarget(
      name: "bench-storage",
      dependencies: [
        "CBenchSync",
        .product(name: "MemQLog", package: "memq"),
        .product(name: "MemQModel", package: "memq"),
        .product(name: "MemQRecords", package: "memq"),
        .product(name: "MemQStorage", package: "memq"),
        .product(name: "MemQSystem", package: "memq"),
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "Logging", package: "swift-log"),
      ],
      path: "storage",
      swiftSettings: [
        .swiftLanguageMode(.v6),
        .enableUpcomingFeature("ExistentialAny"),
        .enableUpcomingFeature("MemberImportVisibility"),
      ]),
    .executableTarget(
      name: "bench-produce",
      dependencies: [
        .product(name: "MemQClient", package: "memq"),
        .product(name: "MemQRecords", package: "memq"),
        .product(name: "MemQModel", package: "memq"),
        .product(name: "MemQSystem", package: "memq"),
        .product(name: "Logging", package: "swift-log"),
      ],
      path: "produce",
      swiftSettings: [
        .swiftLanguageMode(.v6),
        .enableUpcomingFeature("ExistentialAny"),
        .enableUpcomingFeature("MemberImportVisibility"),
      ]),
  ]
)
