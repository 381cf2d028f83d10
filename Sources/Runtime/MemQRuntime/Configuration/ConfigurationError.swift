// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Everything that is wrong with a configuration, found in one pass.
public struct ConfigurationError: Error, Sendable, CustomStringConvertible {
  /// Never empty; each is `.configurationInvalid`.
  public let problems: [MemQError]

  public init(_ problems: [MemQError]) {
    precondition(!problems.isEmpty)
    self.problems = problems
  }

  public init(_ message: String, subject: String) {
    self.init([MemQError(.configurationInvalid, message, subject: subject)])
  }

  public var description: String { self.problems.map(\.description).joined(separator: "\n") }
}

/// Finds the names a person may have meant.
enum NearestNames {
  /// Suggestions for one mistake: more would be a list to read, not a hint.
  private static let countMax = 3

  static func hint(for name: String, among known: [String]) -> String {
    let found = Self.nearest(name, among: known)
    return found.isEmpty ? "" : "; did you mean \(found.joined(separator: ", "))?"
  }

  static func nearest(_ name: String, among known: [String]) -> [String] {
    let scored = known.compactMap { candidate -> (Int, String)? in
      let distance = Self.distance(Array(name.lowercased()), Array(candidate.lowercased()))
      // A third of the letters may be wrong; a part of the name alone also counts.
      if distance <= max(2, name.count / 3) { return (distance, candidate) }
      let isPart = name.count >= 3 && (candidate.contains(name) || name.contains(candidate))
      return isPart ? (100 + distance, candidate) : nil
    }
    return scored.sorted { $0 < $1 }.prefix(Self.countMax).map(\.1)
  }

  /// Letters to insert, delete or replace (Levenshtein).
  private static func distance(_ a: [Character], _ b: [Character]) -> Int {
    var row = Array(0...b.count)
    for (i, left) in a.enumerated() {
      var diagonal = row[0]
      row[0] = i + 1
      for (j, right) in b.enumerated() {
        let above = row[j + 1]
        row[j + 1] = min(min(above, row[j]) + 1, diagonal + (left == right ? 0 : 1))
        diagonal = above
      }
    }
    return row[b.count]
  }
}
