"""A counter of texts that takes a few bytes an item, so that millions of them fit."""

from __future__ import annotations

from array import array
from hashlib import blake2b


class CompactCounter:
    """A text -> a whole number, 0 for what was never set; as a collections.Counter that can forget the texts.

    An open-addressing table (linear probing) of 64-bit digests and numbers of 32 bits (`large`: 64): 12 bytes a slot
    (16), at most two thirds of them full. A set of a million texts takes five times the memory. Of a million texts,
    two share a digest by chance in one run of 37 million. `slots` is a power of two.
    """

    def __init__(self, slots: int = 1 << 10, *, large: bool = False) -> None:
        self._large = large
        self._used = 0
        self._digests, self._numbers = self._table(slots)

    def _table(self, slots: int) -> tuple[array[int], array[int]]:
        return array("Q", [0]) * slots, array("Q" if self._large else "I", [0]) * slots

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
        self._digests, self._numbers = self._table(2 * len(digests))
        for digest, number in zip(digests, numbers, strict=True):
            if digest:
                slot = self._slot(digest)
                self._digests[slot], self._numbers[slot] = digest, number


def _digest(text: str) -> int:
    """64 bits, none of them the 0 that marks a free slot."""
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little") or 1
