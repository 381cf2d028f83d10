// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Rows for people: columns as wide as their widest cell, numbers to the right.
struct TextTable {
  private let titles: [String]
  private let rightAligned: Set<Int>
  private var rows: [[String]] = []

  /// - Parameter titles: those that begin with ">" stand to the right.
  init(_ titles: String...) {
    self.titles = titles.map { $0.hasPrefix(">") ? String($0.dropFirst()) : $0 }
    self.rightAligned = Set(titles.indices.filter { titles[$0].hasPrefix(">") })
  }

  var isEmpty: Bool { self.rows.isEmpty }

  mutating func add(_ cells: String...) {
    precondition(cells.count == self.titles.count)
    self.rows.append(cells.map { $0.isEmpty ? "-" : Self.printable($0) })
  }

  var text: String {
    let widths = self.titles.indices.map { column in
      ([self.titles] + self.rows).map { $0[column].count }.max()!
    }
    return ([self.titles] + self.rows).map { self.line($0, widths) }.joined()
  }

  private func line(_ cells: [String], _ widths: [Int]) -> String {
    var line = ""
    for (column, cell) in cells.enumerated() {
      if column > 0 { line += "  " }
      let pad = String(repeating: " ", count: widths[column] - cell.count)
      if self.rightAligned.contains(column) {
        line += pad + cell
      } else {
        line += column == cells.count - 1 ? cell : cell + pad
      }
    }
    return line + "\n"
  }

  /// Control characters in a name must not reach the terminal.
  static func printable(_ text: String) -> String {
    guard text.unicodeScalars.contains(where: { $0.value < 0x20 || $0.value == 0x7F }) else {
      return text
    }
    return String(
      String.UnicodeScalarView(
        text.unicodeScalars.map { $0.value < 0x20 || $0.value == 0x7F ? "\u{FFFD}" : $0 }))
  }
}
