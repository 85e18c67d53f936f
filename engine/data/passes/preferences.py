"""Counts of preferences in a pass: lengths of both answers, contradicting pairs, labels and prompts."""

from array import array
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loratory.engine.config.objectives import RowKind
from loratory.engine.data.contract import Histogram, PairLengths
from loratory.engine.data.conversation import Example, LabeledCompletion, PreferencePair
from loratory.engine.data.passes.reader import digest_of
from loratory.engine.data.records import shared_length
from loratory.engine.data.render.tokenize import Rendering

_FEWEST_PAIRS = 20
_BIASED_SHARE = 0.9
_MOST_BINS = 41  # of differences, with one bin around zero
_MOST_GAPS = 50


class PreferenceCounts:
    """The counts of pairs and ratings of a pass so far."""

    def __init__(self) -> None:
        self._kinds: Counter[RowKind] = Counter()
        self.shared = array("I")  # tokens that both sequences of each pair begin with, before the cut
        self._rows = array("I")  # numbers of the pairs' rows
        self._differences = array("q")  # chosen minus rejected, in tokens or characters
        self._counts_tokens = False
        # Of each pair, its two sides in this order, and in the other.
        self._pairs, self._reversed_pairs = array("Q"), array("Q")
        self._ratings = array("b")
        self._prompts = array("Q")

    def add(self, row: int, example: Example, group: int, rendering: Rendering | None) -> None:
        """Count one row; `group` is equal for rows with one prompt."""
        self._kinds[example.kind] += 1
        if example.kind != "answers":
            self._prompts.append(group)
        if isinstance(example, LabeledCompletion):
            self._ratings.append(example.desirable)
        if not isinstance(example, PreferencePair):
            return
        self._rows.append(row)
        if rendering is not None:
            self.shared.append(shared_length(*(sequence.encoded.ids for sequence in rendering.rows)))
        self._differences.append(_length_difference(example, rendering))
        self._counts_tokens = rendering is not None
        chosen, rejected = map(digest_of, example.sides())
        self._pairs.append(_pair_digest(chosen, rejected))
        self._reversed_pairs.append(_pair_digest(rejected, chosen))

    @property
    def pairs(self) -> int:
        return len(self._rows)

    @property
    def kind(self) -> RowKind:
        """What all rows are; answers where they are of several kinds."""
        return next(iter(self._kinds)) if len(self._kinds) == 1 else "answers"

    def report(self, most_rows: int) -> dict[str, Any]:
        """Return the fields of a `DatasetReport` about preferences."""
        if not self._prompts:
            return {}
        facts: dict[str, Any] = {"prompts": len(np.unique(np.asarray(self._prompts)))}
        if self._ratings:
            facts["desirable"] = sum(self._ratings)
        if self._rows:
            contradictions = self._contradicting()
            order = np.argsort(-np.abs(np.asarray(self._differences)), kind="stable")[:_MOST_GAPS]
            facts |= {
                "pair_lengths": self._lengths(),
                "length_gap_rows": tuple(np.asarray(self._rows)[order].tolist()),
                "contradictions": len(contradictions),
                "contradicting_rows": tuple(contradictions[:most_rows].tolist()),
            }
        return facts

    def length_bias(self) -> tuple[str, ...]:
        """Return a note if one side of nearly all pairs is longer, since length alone would then separate them."""
        differences = np.asarray(self._differences)
        for side, longer in (("chosen", (differences > 0).sum()), ("rejected", (differences < 0).sum())):
            if self.pairs >= _FEWEST_PAIRS and longer >= _BIASED_SHARE * self.pairs:
                return (
                    f"The {side} answer is the longer one in {longer:,} of {self.pairs:,} pairs ({longer / self.pairs:.0%}), so a "
                    "model may learn length instead of quality.",
                )
        return ()

    def _contradicting(self) -> NDArray[np.uint32]:
        """Return the rows whose preference another row with the same prompt reverses."""
        is_reversed = np.isin(np.asarray(self._pairs), np.asarray(self._reversed_pairs))
        rows: NDArray[np.uint32] = np.asarray(self._rows)[is_reversed]
        return rows

    def _lengths(self) -> PairLengths:
        values = np.asarray(self._differences)
        furthest = int(np.abs(values).max())
        # Bins of one odd width around zero: the middle one has pairs of about equal length.
        half = max(1, min(_MOST_BINS // 2, furthest))
        width = max(1, -(-2 * furthest // (2 * half)) | 1)
        first = -(half * width + width // 2)
        edges = first + width * np.arange(2 * half + 2)
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1] - 1), bins=edges)
        return PairLengths(
            unit="tokens" if self._counts_tokens else "characters",
            chosen_longer=int((values > 0).sum()),
            rejected_longer=int((values < 0).sum()),
            equal=int((values == 0).sum()),
            median=int(np.quantile(values, 0.5, method="inverted_cdf")),
            histogram=Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist())),
        )


def _length_difference(pair: PreferencePair, rendering: Rendering | None) -> int:
    """Return the length difference of chosen and rejected answer: in trained tokens before the cut, else in characters."""
    if rendering is not None:
        chosen, rejected = (sequence.trained_tokens + sequence.lost_trained_tokens for sequence in rendering.rows)
    else:
        chosen, rejected = (sum(len(turn.content) for turn in side) for side in (pair.chosen, pair.rejected))
    return chosen - rejected


def _pair_digest(first: int, second: int) -> int:
    """Return a 64-bit digest of two digests that depends on their order."""
    return (first * 0x9E3779B97F4A7C15 + second) & 0xFFFFFFFFFFFFFFFF
