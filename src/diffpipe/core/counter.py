"""What was seen, a number each: for millions of texts in a few bytes an item."""

from __future__ import annotations

from array import array
from hashlib import blake2b


class Tally:
    """Text -> a whole number of at least 1; 0 for what was never set.

    An open-addressing table (linear probing) of 64-bit digests and numbers of 32 bits (`large`: 64): 12 bytes a slot
    (16), at most two thirds of them full. A set of a million texts takes five times the memory. Of a million texts,
    two share a digest by chance in one run of 37 million.
    """

    def __init__(self, slots: int = 1 << 10, *, large: bool = False) -> None:
        self._large = large
        self._digests = array("Q", [0]) * slots
        self._numbers = array("Q" if large else "I", [0]) * slots
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def __getitem__(self, text: str) -> int:
        return self._numbers[self._slot(_digest(text))]

    def __setitem__(self, text: str, number: int) -> None:
        self._set(_digest(text), number)

    def add(self, text: str) -> int:
        """How often a text was added, this time included."""
        digest = _digest(text)
        number = self._numbers[self._slot(digest)] + 1
        self._set(digest, number)
        return number

    def _set(self, digest: int, number: int) -> None:
        slot = self._slot(digest)
        if not self._digests[slot]:
            self._used += 1
        self._digests[slot], self._numbers[slot] = digest, number
        if self._used * 3 > len(self._digests) * 2:
            self._grow()

    def _slot(self, digest: int) -> int:
        """Where a digest lies, or would: the first free slot from its own on."""
        mask = len(self._digests) - 1
        slot = digest & mask
        while self._digests[slot] not in (0, digest):
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        digests, numbers = self._digests, self._numbers
        self.__init__(2 * len(digests), large=self._large)  # type: ignore[misc]
        for digest, number in zip(digests, numbers, strict=True):
            if digest:
                self._set(digest, number)


def _digest(text: str) -> int:
    """64 bits, none of them the 0 that marks a free slot."""
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little") or 1
