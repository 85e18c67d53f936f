"""Rows whose text is also in others: duplicates, near-duplicates, and leaks of what must not be trained on.

Similar texts are found with MinHash of pairs of words, by rensa. Where a share p of the words is changed, (1-p)² of the pairs stay, so
texts have a Jaccard similarity of s/(2-s) with s = (1-p)²: 0.68, 0.47, 0.32 and 0.14 for 1, 2, 3 and 5 words of ten; texts about other
things have about 0.01. A text is a signature of 192 bytes. Those that agree in three bytes of a band are candidates: with 64 bands, 82% of
the pairs with a similarity of 0.3, 99.9% with 0.47. Source: Broder 1997 (MinHash); Leskovec et al., Mining of Massive Datasets, 3.4 (bands).
"""

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

import numpy as np
from rensa import RMinHash

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.records import one_line
from loratory.engine.data.workshop.checks.base import CheckContext, CheckedRow, RowCheck, RowFinding

BANDS, BAND_BYTES = 64, 3
NEIGHBOURS = 3  # of a row in each band, before and after it
_BYTES = BANDS * BAND_BYTES
_SEED = 1997
MIN_PROMPT_WORDS = 8  # shorter ones occur by chance
BELOW, MOST_BELOW = 0.1, 3  # similarity below the threshold, and pairs that are listed there


class SimilarRows:
    """The rows of a pass by the digests of their texts, and by signatures that similar texts share."""

    def __init__(self) -> None:
        self.rows, self.digests, self._signatures = array("I"), array("Q"), array("B")
        self.answers = array("I")  # characters of each
        self.pairs: list[tuple[int, int]] = []  # similar rows, as checks find them

    def add(self, row: int, word_list: Sequence[str], answer: int = 0) -> None:
        """Add a text by its words."""
        self.answers.append(answer)
        minhash = RMinHash(_BYTES, _SEED)
        minhash.update(list(map(" ".join, pairwise(word_list))) or word_list)
        self._signatures.frombytes(np.array(minhash.digest(), np.uint32).astype(np.uint8).tobytes())
        text = " ".join(word_list).encode("utf-8", "surrogatepass")
        self.digests.append(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()))
        self.rows.append(row)

    def closest(
        self, is_left: np.ndarray, is_right: np.ndarray, least: float, *, after: bool
    ) -> Iterator[tuple[int, int, float]]:
        """Yield left rows, each with the closest right one before it, or also `after` it, and the share that they have in common.

        It is `least` or more, give or take 0.03.
        """
        signatures = np.asarray(self._signatures).reshape(-1, _BYTES)
        shares, others = np.zeros(len(self.rows)), np.zeros(len(self.rows), np.int64)
        for band in range(0, _BYTES, BAND_BYTES):
            keys = signatures[:, band : band + BAND_BYTES].astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32)
            order = np.argsort(keys, kind="stable")  # rows with equal keys stay in order
            lefts, rights = np.flatnonzero(is_left[order]), np.flatnonzero(is_right[order])
            start = np.searchsorted(rights, lefts)
            for step in range(-NEIGHBOURS, NEIGHBOURS + 1 if after else 0):
                is_there = (start + step >= 0) & (start + step < len(rights))
                left, right = order[lefts[is_there]], order[rights[(start + step)[is_there]]]
                is_near = (keys[left] == keys[right]) & (left != right)
                left, right = left[is_near], right[is_near]
                # Bytes of unlike texts agree in one case of 256.
                share = ((signatures[left] == signatures[right]).mean(axis=1) * 256 - 1) / 255
                is_closer = (share >= least) & (share > shares[left])
                shares[left[is_closer]], others[left[is_closer]] = share[is_closer], right[is_closer]
        for row in np.flatnonzero(shares):
            yield self.rows[row], self.rows[others[row]], shares[row]


class Duplicates(RowCheck):
    """Rows that equal an earlier row apart from case, punctuation and white space."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self.similar: SimilarRows = context.shared.setdefault(SimilarRows, SimilarRows())

    def add(self, row: CheckedRow) -> None:
        is_there = row.number in self.similar.rows[-1:]  # from another check
        if not is_there and (word_list := row.split_words(self.settings.over)):
            self.similar.add(row.number, word_list, sum(len(t.text) for t in row.turns if t.role == "assistant"))

    def finish(self) -> None:
        rows = self.similar.rows
        _, first, group, sizes = np.unique(self.similar.digests, True, True, True)
        for index in np.flatnonzero(first[group] != np.arange(len(rows))):
            original = rows[first[group[index]]]
            why = f"Equals row {original + 1:,}; {sizes[group[index]]:,} rows are equal."
            self.report_pair(rows[index], original, 1.0, kind="exact", why=why)
        self.cluster()

    def report_pair(self, row: int, other: int, share: float, **facts: str) -> None:
        """Report that a row is similar to another one."""
        self.report(row, partners=(other,), similarity=share, **facts)
        self.similar.pairs.append((row, other))

    def cluster(self, without: Collection[int] = ()) -> None:
        """Put the rows that it reported together with what is similar to them."""
        groups: dict[int, list[int]] = {}
        for pair in self.similar.pairs:
            small, large = sorted((groups.setdefault(row, [row]) for row in pair), key=len)
            if small is not large:
                large += small
                groups |= dict.fromkeys(small, large)
        numbers, answers, own = self.similar.rows, self.similar.answers, set(self.rows)
        for group in {id(group): group for group in groups.values()}.values():
            if not own.isdisjoint(group):
                rows = [row for row in group if row not in without]
                self.clusters.append(sorted(rows, key=lambda row: (-answers[bisect_left(numbers, row)], row)))


class NearDuplicates(Duplicates):
    """Rows that have much of their text in common with an earlier row, and are not exact duplicates."""

    def finish(self) -> None:
        is_first = np.isin(np.arange(len(self.similar.rows)), np.unique(self.similar.digests, return_index=True)[1])
        least = self.settings.similarity
        for row, other, share in self.similar.closest(is_first, is_first, least - BELOW, after=False):
            why = f"Has {share:.0%} in common with row {other + 1:,}."
            if share >= least:
                self.report_pair(row, other, share, kind="near", why=why)
            else:
                self.below.append(RowFinding(row=row, kind="near", why=why, partners=(other,), similarity=share))
        self.below = sorted(self.below, key=lambda finding: -(finding.similarity or 0))[:MOST_BELOW]
        self.cluster()


class Leakage(Duplicates):
    """Held-out rows that are also trained on, and rows with prompts of a dataset that must not be trained on."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._prompts = SimilarRows()  # of that dataset, then of the rows
        source = self.settings.against
        for row in DatasetReader(DatasetConfig(source=source), context.options).rows() if source else ():
            if len(word_list := CheckedRow.from_row(row).split_words("prompts")) >= MIN_PROMPT_WORDS:
                self._prompts.add(row.record.row, word_list)
        self._count = len(self._prompts.rows)

    def add(self, row: CheckedRow) -> None:
        super().add(row)
        if self._count and (word_list := row.split_words("prompts")):
            self._prompts.add(row.number, word_list)

    def finish(self) -> None:
        least, split, numbers = self.settings.similarity, self.context.result.split, self.context.result.kept_rows
        held_out, trained = (np.isin(self.similar.rows, np.take(numbers, at)) for at in (split.held_out, split.train))
        for row, other, share in self.similar.closest(held_out, trained, least, after=True):
            why = f"Is held out and has {share:.0%} in common with row {other + 1:,}, which is trained on."
            self.report_pair(row, other, share, kind="held_out", why=why)
        self.similar.pairs += (pair[:2] for pair in self.similar.closest(trained, held_out, least, after=True))
        self.cluster(without=set(np.asarray(self.similar.rows)[held_out].tolist()))
        is_of_rows = np.arange(len(self._prompts.rows)) >= self._count
        for row, other, share in self._prompts.closest(is_of_rows, ~is_of_rows, least, after=False):
            where = f"row {other + 1:,} of {one_line(self.settings.against or '')}"
            self.report(row, "against", f"Has {share:.0%} in common with the prompt in {where}.")
