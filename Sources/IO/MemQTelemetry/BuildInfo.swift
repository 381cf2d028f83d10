// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Which build this is.
public enum BuildInfo {
  /// Semantic version of the whole suite; all six services and the command line share it.
  public static let version = "0.1.0"
  #if DEBUG
  public static let configuration = "debug"
  #else
  public static let configuration = "release"
  #endif
}
