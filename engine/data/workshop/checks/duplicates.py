"""Rows whose text is also in others: duplicates, near-duplicates, and leaks of what must not be trained on."""

import hashlib
from itertools import chain

import numpy as np

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.records import one_line
from loratory.engine.data.workshop.checks.base import CheckContext, CheckedRow, RowCheck, checked_row
from loratory.engine.data.workshop.checks.similarity import Hashes, Mask, jaccard, piece_hashes

PIECE_BYTES = 128 << 20  # for the pieces of all candidates; where they need more, each has its smallest ones
PROMPT_PIECE = 8  # letters; shorter pieces of a prompt are in most long texts
MIN_PROMPT_CHARACTERS, MAX_PROMPT_CHARACTERS = 30, 2000  # shorter prompts occur by chance
MAX_PROMPTS = 100_000


class Duplicates(RowCheck):
    """Rows that equal an earlier row apart from case, punctuation and white space."""

    def add(self, row: CheckedRow) -> None:
        similar = self.context.similar
        if row.number not in similar.rows[-1:] and (text := row.normalized(self.settings.over)):
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            similar.add(row.number, text, row.digest if row.is_cut else int.from_bytes(digest))

    def finish(self) -> None:
        rows = self.context.similar.rows
        _, first, group, sizes = np.unique(self.context.similar.digests, True, True, True)
        for index in np.flatnonzero(first[group] != np.arange(len(rows))):
            original = rows[first[group[index]]]
            why = f"Equals row {original + 1:,}; {sizes[group[index]]:,} rows are equal."
            self.report(rows[index], "exact", why, [original])

    def _pairs(self, is_left: Mask, is_right: Mask) -> list[tuple[float, int, int]]:
        """Return the share that each left row has in common with right ones, from the threshold on, the least first."""
        pairs, reader = (
            self.context.similar.candidates(is_left, is_right, self.settings.similarity),
            self.context.reader,
        )
        numbers = set(chain.from_iterable(pairs))
        limit = max(256, PIECE_BYTES // 4 // max(1, len(numbers)))
        texts = map(checked_row, reader.convert(reader.pick(sorted(numbers))))
        pieces = {row.number: piece_hashes(row.normalized(self.settings.over))[:limit].copy() for row in texts}
        shares = ((jaccard(pieces[left], pieces[right], limit), left, right) for left, right in pairs)
        return sorted(pair for pair in shares if pair[0] >= self.settings.similarity)


class NearDuplicates(Duplicates):
    """Rows that have most of their text in common with an earlier row, and are not exact duplicates."""

    def finish(self) -> None:
        similar = self.context.similar
        is_first = np.zeros(len(similar.rows), dtype=np.bool_)
        is_first[np.unique(similar.digests, return_index=True)[1]] = True
        pairs = self._pairs(is_first, is_first)
        roots: dict[int, int] = {}  # union-find: the first row stands for its group
        for _, *pair in pairs:
            low, high = sorted(_root(roots, row) for row in pair)
            roots[high] = low
        groups: dict[int, list[int]] = {}
        for row in sorted(roots):
            groups.setdefault(_root(roots, row), []).append(row)
        for row, (share, partner) in sorted({row: (share, partner) for share, row, partner in pairs}.items()):
            if row != (group := groups[_root(roots, row)])[0]:
                why = f"Has {share:.0%} in common with row {partner + 1:,}; {len(group):,} rows are similar."
                self.report(
                    row, "near", why, dict.fromkeys((partner, *(other for other in group[:20] if other != row)))
                )


def _root(roots: dict[int, int], row: int) -> int:
    while (parent := roots.setdefault(row, row)) != row:
        roots[row] = row = roots[parent]
    return row


class Leakage(Duplicates):
    """Held-out rows that are also trained on, and rows with prompts of a dataset that must not be trained on."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._matches: list[tuple[int, str, str, list[int]]] = []
        self._prompts: list[int] = []  # row numbers
        pieces: list[Hashes] = []
        if source := self.settings.against:
            for row in DatasetReader(DatasetConfig(source=source), context.options).rows():
                text = "" if row.example is None else checked_row(row).normalized("prompts")[:MAX_PROMPT_CHARACTERS]
                if len(text) >= MIN_PROMPT_CHARACTERS and len(pieces) < MAX_PROMPTS:
                    self._prompts.append(row.record.row)
                    pieces.append(piece_hashes(text, PROMPT_PIECE))
        self._sizes = np.array([len(hashes) for hashes in pieces], np.int64)
        every = np.concatenate([np.zeros(0, np.uint32), *pieces])
        order = np.argsort(every, kind="stable")
        self._pieces, self._owners = every[order], np.repeat(np.arange(len(pieces)), self._sizes)[order]

    def add(self, row: CheckedRow) -> None:
        super().add(row)
        if not self._prompts:
            return
        hashes = piece_hashes(row.normalized("both"), PROMPT_PIECE)
        starts, ends = (np.searchsorted(self._pieces, hashes, side) for side in ("left", "right"))
        spans = [self._owners[start:end] for start, end in zip(starts, ends, strict=True) if start < end]
        if spans:
            prompts, counts = np.unique(np.concatenate(spans), return_counts=True)
            share, prompt = max(zip(counts / self._sizes[prompts], prompts, strict=True))
            if share >= self.settings.similarity:
                where = f"row {self._prompts[prompt] + 1:,} of {one_line(self.settings.against or '')}"
                self._matches.append((row.number, "against", f"Contains {share:.0%} of the prompt in {where}.", []))

    def finish(self) -> None:
        numbers, split = np.asarray(self.context.result.kept_rows), self.context.result.split
        rows = np.asarray(self.context.similar.rows)
        pairs = self._pairs(np.isin(rows, numbers[split.held_out]), np.isin(rows, numbers[split.train]))
        for row, (share, partner) in {row: (share, partner) for share, row, partner in pairs}.items():
            why = f"Is held out and has {share:.0%} in common with row {partner + 1:,}, which is trained on."
            self._matches.append((row, "held_out", why, [partner]))
        for match in sorted(self._matches):
            self.report(*match)
