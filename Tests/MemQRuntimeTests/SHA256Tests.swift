// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQSystem
import Testing

@Suite struct SHA256Tests {
  @Test func `it gives the standard's digests`() {
    // FIPS 180-4, examples of one and two blocks, and the empty message.
    let cases = [
      ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
      ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
      (
        "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
      ),
    ]
    for (text, digest) in cases { #expect(hexText(SHA256.digest(of: Array(text.utf8))) == digest) }
  }

  @Test func `a stored state goes on where it was, at every length`() throws {
    let bytes = (0..<300).map { UInt8(truncatingIfNeeded: $0 &* 31) }
    let whole = SHA256.digest(of: bytes)
    for cut in 0...bytes.count {
      var first = SHA256()
      first.update(Array(bytes.prefix(cut)))
      #expect(first.state.count == SHA256.stateByteCount)
      var second = try SHA256(state: first.state)
      second.update(Array(bytes.suffix(from: cut)))
      #expect(second.digest() == whole)
    }
  }

  @Test func `a state of another size is refused`() {
    #expect(throws: MemQError.self) { try SHA256(state: []) }
    #expect(throws: MemQError.self) { try SHA256(state: [UInt8](repeating: 0xFF, count: 112)) }
  }
}
