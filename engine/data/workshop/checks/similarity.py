"""Which texts have most in common: MinHash of short pieces gives candidates.

Pieces are five letters in a row, so scripts without spaces are compared as well. Of each row 20 band keys and a signature are stored,
160 bytes. Source: Broder 1997 (MinHash); Leskovec et al., Mining of Massive Datasets, section 3.4 (bands).
"""

from array import array

import numpy as np
from numpy.typing import NDArray

PIECE = 5  # letters
BANDS, BAND_ROWS = 20, 4  # at 60% in common, a pair is a candidate with 94%; at 70%, with 99.6%; at 30%, with 15%

SIGNATURE_MARGIN = 0.2  # more than three standard deviations of what a signature shows

Hashes = NDArray[np.uint32]
Mask = NDArray[np.bool_]
_FACTORS = np.random.default_rng(1997).integers(2**32, size=(BANDS * BAND_ROWS, 1), dtype=np.uint32) | np.uint32(1)
_BATCH = 1024  # hashes that meet all factors at a time, in one buffer that stays in the processor's cache


def piece_hashes(text: str, size: int = PIECE) -> Hashes:
    """Return 32 bits for each different run of `size` letters, in ascending order."""
    codes = np.frombuffer(text.ljust(size).encode("utf-32-le", "surrogatepass"), np.uint32)
    count = len(codes) - size + 1
    hashes = np.zeros(count, np.uint32)
    for start in range(size):
        hashes *= np.uint32(0x01000193)
        hashes ^= codes[start : start + count] * np.uint32(0x85EBCA6B)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):  # lowbias32 by Chris Wellons
        hashes ^= hashes >> np.uint32(shift)
        hashes *= np.uint32(factor)
    hashes.sort()
    return hashes[_is_new(hashes)]


def _is_new(ascending: Hashes) -> Mask:
    """Return which values differ from the one before; for few values, this is faster than np.unique."""
    return np.append(True, ascending[1:] != ascending[:-1])


def jaccard(left: Hashes, right: Hashes, limit: int) -> float:
    """Return the share of common pieces; of longer texts, an estimate from the `limit` smallest hashes of both."""
    both = np.sort(np.concatenate((left, right)))
    is_new = _is_new(both)
    union = both[is_new][:limit]
    return float(np.count_nonzero(both[~is_new] <= union[-1]) / len(union))


class SimilarRows:
    """The rows of a pass by the digests of their texts, and by keys that similar texts share."""

    def __init__(self) -> None:
        self.rows, self.digests, self._keys, self._signatures = array("I"), array("Q"), array("I"), array("B")
        self._products = np.empty((len(_FACTORS), _BATCH), np.uint32)

    def add(self, row: int, text: str, digest: int) -> None:
        """Add a text by its digest and one key for each band."""
        self.rows.append(row)
        self.digests.append(digest)
        smallest, hashes = np.full(len(_FACTORS), 2**32 - 1, np.uint32), piece_hashes(text)
        for start in range(0, len(hashes), _BATCH):
            part = hashes[start : start + _BATCH]
            np.multiply(part, _FACTORS, out=self._products[:, : len(part)])
            np.minimum(smallest, self._products[:, : len(part)].min(axis=1), out=smallest)
        keys = np.zeros(BANDS, np.uint32)
        for column in smallest.reshape(BANDS, BAND_ROWS).T:
            keys = keys * np.uint32(0x9E3779B1) ^ column
        self._keys.frombytes(keys.tobytes())
        self._signatures.frombytes(smallest.astype(np.uint8).tobytes())

    def candidates(self, is_left: Mask, is_right: Mask, least: float) -> list[tuple[int, int]]:
        """Return row numbers: each left row with the next right rows, before and after it, of the same digest or key.

        Pairs whose signatures show that they have far less than `least` in common are left out.
        """
        signatures = np.asarray(self._signatures).reshape(-1, len(_FACTORS))
        pairs = []
        for keys in (np.asarray(self.digests), *np.asarray(self._keys).reshape(-1, BANDS).T):
            ascending = np.argsort(keys, kind="stable")
            for order in (ascending, ascending[::-1]):
                last = np.maximum.accumulate(np.where(is_right[order], np.arange(len(order)), -1))
                before = np.append(-1, last[:-1])
                is_pair = is_left[order] & (before >= 0)
                left, right = order[is_pair], order[before[is_pair]]
                near = np.stack([left, right], axis=1)[keys[left] == keys[right]]
                common = (signatures[near[:, 0]] == signatures[near[:, 1]]).mean(axis=1)
                pairs.append(near[common > least - SIGNATURE_MARGIN])
        rows = np.asarray(self.rows)[np.unique(np.concatenate(pairs), axis=0)]
        return [(left, right) for left, right in rows.tolist()]
