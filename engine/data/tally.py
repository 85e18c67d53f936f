"""Counting while a dataset passes by: what its report will say, in a few bytes a row."""

import hashlib
from array import array
from collections import Counter

import numpy as np

from engine.data.examine import Examined
from engine.data.problems import ProblemKind, RowProblem
from engine.data.records import Record

MAX_LISTED = 1000  # problems, notices and duplicates that a report lists; it counts them all

_ROW_NUMBERS = "I"  # up to four thousand million rows


class Tally:
    """What a pass has seen so far."""

    def __init__(self, parts: int) -> None:
        self.rows = 0
        self.part_rows = [0] * parts
        self.problems: list[RowProblem] = []
        self.problem_counts: Counter[str] = Counter()
        self.notices: list[RowProblem] = []
        self.notice_counts: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.kept_rows = array(_ROW_NUMBERS)
        self.kept_parts = array("b")
        self.digests = array("Q")
        self.lengths = array("I")  # of sequences, before the cut
        self.length_rows = array(_ROW_NUMBERS)  # the row of each sequence
        self.total_tokens = 0
        self.trained_tokens = 0
        self.lost_trained_tokens = 0

    def add(self, examined: Examined) -> None:
        """Count one row."""
        self.rows += 1
        self.part_rows[examined.part] += 1
        record = examined.record
        if examined.kind is not None:
            self.problem_counts[examined.kind] += 1
            if len(self.problems) < MAX_LISTED:
                self.problems.append(_problem(record, examined.kind, examined.problem, dropped=True))
            return
        self.kept_rows.append(record.row)
        self.kept_parts.append(examined.part)
        self.digests.append(examined.digest)
        for kind, notice in examined.notices:
            self.notice_counts[kind] += 1
            if len(self.notices) < MAX_LISTED:
                self.notices.append(_problem(record, kind, notice, dropped=False))
        if examined.rendering is None:
            return
        self.notes.update(examined.rendering.notes)
        for sequence in examined.rendering.rows:
            self.lengths.append(sequence.uncut_tokens)
            self.length_rows.append(record.row)
            self.total_tokens += len(sequence.input_ids)
            self.trained_tokens += sequence.trained_tokens
            self.lost_trained_tokens += sequence.lost_trained_tokens

    @property
    def kept(self) -> int:
        return len(self.kept_rows)

    def duplicate_rows(self) -> list[int]:
        """Rows that repeat an earlier one exactly, in order.

        Sorting an array of digests takes a tenth of the memory that a set of them would.
        """
        digests = np.frombuffer(self.digests, dtype=np.uint64)
        order = np.argsort(digests).astype(np.uint32)
        ordered = digests[order]
        as_before = np.zeros(len(order) + 1, dtype=np.bool_)
        as_before[1:-1] = ordered[1:] == ordered[:-1]
        shared = as_before[:-1] | as_before[1:]  # digests that several rows have: few, in most datasets
        positions, keys = order[shared], ordered[shared]
        del order, ordered
        by_key = np.lexsort((positions, keys))
        repeats = positions[by_key][1:][keys[by_key][1:] == keys[by_key][:-1]]
        rows = np.frombuffer(self.kept_rows, dtype=np.uint32)
        return [int(row) for row in np.sort(rows[repeats])]

    def fingerprint(self) -> str:
        """Sha256 over what the kept rows say, in order; the same on every machine and however the file is wrapped."""
        digests = np.frombuffer(self.digests, dtype=np.uint64)
        return hashlib.sha256(digests.astype("<u8").tobytes()).hexdigest()

    def rows_by_length(self, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The rows with the longest and with the shortest sequences, `count` of each, the extreme first."""
        lengths = np.frombuffer(self.lengths, dtype=np.uint32) if self.lengths else np.zeros(0, dtype=np.uint32)
        order = np.argsort(lengths, kind="stable")
        longest = (self.length_rows[int(index)] for index in order[::-1][:count])
        shortest = (self.length_rows[int(index)] for index in order[:count])
        return tuple(dict.fromkeys(longest)), tuple(dict.fromkeys(shortest))


def _problem(record: Record, kind: ProblemKind, problem: str, *, dropped: bool) -> RowProblem:
    return RowProblem(
        row=record.row, line=record.line, problem=problem, kind=kind, dropped=dropped, sample=record.sample()
    )
