// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Rules that every YARA engine has, the same as services/scanner/rules/eicar.yar.
enum BuiltInRules {
  static let name = "built-in"

  /// The test string stands in hexadecimal, so that neither this source nor a binary is a finding of other scanners.
  static let text = """
    rule Eicar_Test_File {
      meta:
        description = "The EICAR test file as eicar.org defines it: the 68 bytes first, white space after"
      strings:
        $eicar = { 58 35 4F 21 50 25 40 41 50 5B 34 5C 50 5A 58 35 34 28 50 5E 29 37 43 43 29 37 7D 24
                   45 49 43 41 52 2D 53 54 41 4E 44 41 52 44 2D 41 4E 54 49 56 49 52 55 53 2D 54 45 53
                   54 2D 46 49 4C 45 21 24 48 2B 48 2A }
      condition:
        $eicar at 0 and filesize <= 128
    }

    rule Eicar_Test_String {
      meta:
        description = "The EICAR test string anywhere, as inside an archive that does not compress or in a record"
      strings:
        $eicar = { 58 35 4F 21 50 25 40 41 50 5B 34 5C 50 5A 58 35 34 28 50 5E 29 37 43 43 29 37 7D 24
                   45 49 43 41 52 2D 53 54 41 4E 44 41 52 44 2D 41 4E 54 49 56 49 52 55 53 2D 54 45 53
                   54 2D 46 49 4C 45 21 24 48 2B 48 2A }
      condition:
        $eicar
    }

    """
}
