// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Points in time as text: RFC 3339 in UTC.
enum TimeText {
  /// `2025-11-21T07:30:00.123Z`; "-" for none.
  static func iso(_ time: Timestamp) -> String {
    guard time.milliseconds > 0 else { return "-" }
    let (days, milliseconds) = time.milliseconds.quotientAndRemainder(dividingBy: 86_400_000)
    let (year, month, day) = Self.date(daysSince1970: days)
    func two(_ value: Int64) -> String { value < 10 ? "0\(value)" : "\(value)" }
    let fraction = milliseconds % 1_000
    let padding = fraction < 10 ? "00" : fraction < 100 ? "0" : ""
    let seconds = milliseconds / 1_000
    return "\(year)-\(two(month))-\(two(day))T\(two(seconds / 3_600)):\(two(seconds / 60 % 60))"
      + ":\(two(seconds % 60)).\(padding)\(fraction)Z"
  }

  /// Reads `2025-11-21`, `2025-11-21T07:30:00`, with a fraction, with `Z` or `+01:00`; without a zone it is UTC.
  static func parse(_ text: some StringProtocol) -> Timestamp? {
    var rest = Substring(text)
    guard let year = number(&rest, digits: 4), skip(&rest, "-"),
      let month = number(&rest, digits: 2),
      skip(&rest, "-"), let day = number(&rest, digits: 2), (1...12).contains(month),
      (1...Self.days(in: month, of: year)).contains(day)
    else { return nil }
    var total = Self.daysSince1970(year, month, day) * 86_400_000
    if rest.isEmpty { return Timestamp(milliseconds: total) }
    guard skip(&rest, "T") || skip(&rest, " "), let hour = number(&rest, digits: 2),
      skip(&rest, ":"), let minute = number(&rest, digits: 2), hour < 24, minute < 60
    else { return nil }
    total += (hour * 60 + minute) * 60_000
    if skip(&rest, ":") {
      guard let second = number(&rest, digits: 2), second < 61 else { return nil }
      total += second * 1_000
      if skip(&rest, ".") {
        guard let fraction = fraction(&rest) else { return nil }
        total += fraction
      }
    }
    guard let zone = zone(&rest), rest.isEmpty else { return nil }
    return Timestamp(milliseconds: total - zone * 60_000)
  }

  private static func skip(_ rest: inout Substring, _ character: Character) -> Bool {
    guard rest.first == character else { return false }
    rest.removeFirst()
    return true
  }

  private static func number(_ rest: inout Substring, digits: Int) -> Int64? {
    let part = rest.prefix(digits)
    guard part.count == digits, part.allSatisfy({ $0.isASCII && $0.isNumber }) else { return nil }
    rest.removeFirst(digits)
    return Int64(part)
  }

  /// Milliseconds of a fraction of any length.
  private static func fraction(_ rest: inout Substring) -> Int64? {
    let digits = rest.prefix { $0.isASCII && $0.isNumber }
    guard !digits.isEmpty else { return nil }
    rest.removeFirst(digits.count)
    return Int64((digits + "00").prefix(3))
  }

  /// Minutes east of UTC.
  private static func zone(_ rest: inout Substring) -> Int64? {
    if rest.isEmpty || skip(&rest, "Z") { return 0 }
    let sign: Int64 = rest.first == "-" ? -1 : 1
    guard skip(&rest, "+") || skip(&rest, "-"), let hours = number(&rest, digits: 2) else {
      return nil
    }
    _ = skip(&rest, ":")
    guard let minutes = number(&rest, digits: 2), hours < 24, minutes < 60 else { return nil }
    return sign * (hours * 60 + minutes)
  }

  private static func days(in month: Int64, of year: Int64) -> Int64 {
    let isLeap = year % 4 == 0 && year % 100 != 0 || year % 400 == 0
    return month == 2 ? (isLeap ? 29 : 28) : [4, 6, 9, 11].contains(month) ? 30 : 31
  }

  /// Howard Hinnant's civil calendar: years begin in March, so that the leap day comes last.
  static func daysSince1970(_ year: Int64, _ month: Int64, _ day: Int64) -> Int64 {
    let y = month <= 2 ? year - 1 : year
    let era = (y >= 0 ? y : y - 399) / 400
    let yearOfEra = y - era * 400
    let dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1
    let dayOfEra = yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear
    return era * 146_097 + dayOfEra - 719_468
  }

  private static func date(daysSince1970 days: Int64) -> (year: Int64, month: Int64, day: Int64) {
    let z = days + 719_468
    let era = (z >= 0 ? z : z - 146_096) / 146_097
    let dayOfEra = z - era * 146_097
    let yearOfEra = (dayOfEra - dayOfEra / 1_460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    let marchMonth = (5 * dayOfYear + 2) / 153
    let month = marchMonth < 10 ? marchMonth + 3 : marchMonth - 9
    return (
      yearOfEra + era * 400 + (month <= 2 ? 1 : 0), month,
      dayOfYear - (153 * marchMonth + 2) / 5 + 1
    )
  }
}

/// Bytes for people: `1.5 MiB`.
func byteText(_ bytes: Int64) -> String {
  let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
  var value = bytes
  var tenths: Int64 = 0
  var unit = 0
  while value >= 1_024, unit < units.count - 1 {
    tenths = value % 1_024 * 10 / 1_024
    value /= 1_024
    unit += 1
  }
  return unit == 0 || value >= 100 ? "\(value) \(units[unit])" : "\(value).\(tenths) \(units[unit])"
}
