"""Check every row of a dataset in one pass: rows kept and left out, lengths and duplicates."""

import hashlib
import json
import math
import time
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from loratory.engine.config.objectives import ROW_KINDS
from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import (
    CheckProgress,
    DatasetReport,
    Histogram,
    RowLengths,
    RowProblem,
    SourceReport,
    TokenLengths,
)
from loratory.engine.data.files.access import write_cached
from loratory.engine.data.passes.preferences import PreferenceCounts
from loratory.engine.data.passes.reader import DatasetReader, DatasetRow, Pace, Renderer
from loratory.engine.data.passes.split import Positions, Split, draw_split
from loratory.engine.data.records import ProblemKind, Record, row_label
from loratory.engine.data.render.template import tokenizer_fingerprint
from loratory.engine.data.render.tokenize import IGNORED_LABEL, RenderedRow
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import DatasetError
from loratory.engine.files import read_model

Result = TypeVar("Result")
MAX_LENGTHS = 2048  # of sequences that a report holds
MAX_LISTED = 1000  # problems, notices and duplicates that a report lists; it counts them all
_CLOSING_TOKENS = 4  # that a template writes after the last answer, at most


class Counts:
    """The counts of a pass so far."""

    def __init__(self, parts: int) -> None:
        self.rows = 0
        self.part_rows = [0] * parts
        self.problems: list[RowProblem] = []
        self.problem_counts: Counter[str] = Counter()
        self.notices: list[RowProblem] = []
        self.notice_counts: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.unknown_roles: dict[str, tuple[int, str]] = {}
        self.kept_rows = array("I")  # row numbers up to four thousand million
        self.kept_parts = array("b")
        self.held_out = array("I")  # positions of kept rows that their set holds out
        self.digests = array("Q")
        self.groups = array("Q")
        self.preferences = PreferenceCounts()
        self.lengths = array("I")  # of sequences, before the cut
        self.length_rows = array("I")  # the row of each sequence
        self.uncut_trained = array("I")  # trained tokens of each sequence, before the cut
        self.pixels = array("Q")  # of the images of each sequence
        self.largest_image = 0  # pixels
        self.first_sequences = array("Q")  # of each kept row, the number of its first one
        self.longest_prompt = 0  # tokens of what is answered, which is the whole row where there are several answers
        self.total_tokens = 0
        self.trained_tokens = 0
        self.lost_trained_tokens = 0

    def add(self, row: DatasetRow) -> None:
        """Count one row."""
        self.rows += 1
        self.part_rows[row.part] += 1
        record = row.record
        if row.kind is not None:
            self.problem_counts[row.kind] += 1
            _list(self.problems, record, row.kind, row.problem, is_dropped=True)
            for name, sample in row.unknown_roles.items():
                rows, first = self.unknown_roles.get(name, (0, sample))
                self.unknown_roles |= {name: (rows + 1, first)} if rows or len(self.unknown_roles) < MAX_LISTED else {}
            return
        if record.is_held_out:
            self.held_out.append(len(self.kept_rows))
        self.kept_rows.append(record.row)
        self.kept_parts.append(row.part)
        self.digests.append(row.digest)
        self.groups.append(row.group)
        if row.example is not None:
            self.preferences.add(record.row, row.example, row.group, row.rendering)
        for kind, notice in row.notices:
            self.notice_counts[kind] += 1
            _list(self.notices, record, kind, notice, is_dropped=False)
        if row.rendering is None:
            return
        self.first_sequences.append(len(self.lengths))
        self.notes.update(row.rendering.notes)
        for sequence in row.rendering.rows:
            self.lengths.append(sequence.uncut_tokens)
            self.length_rows.append(record.row)
            self.total_tokens += len(sequence.input_ids)
            self.trained_tokens += sequence.trained_tokens
            self.longest_prompt = max(self.longest_prompt, _prompt_tokens(sequence))
            self.lost_trained_tokens += sequence.lost_trained_tokens
            self.uncut_trained.append(sequence.trained_tokens + sequence.lost_trained_tokens)
            pixels = sequence.image_pixels
            self.pixels.append(sum(pixels))
            self.largest_image = max(self.largest_image, *pixels, 0)

    def progress(self, reader: DatasetReader) -> CheckProgress:
        """Return how far the pass is."""
        return CheckProgress(
            rows=self.rows, bytes_read=reader.bytes_read, size_bytes=reader.size_bytes, tokens=self.total_tokens,
            unknown_roles=dict(sorted(self.unknown_roles.items(), key=lambda role: -role[1][0])[:20]),
        )  # fmt: skip

    def duplicate_rows(self) -> list[int]:
        """Return rows that repeat an earlier one exactly, in order.

        Sorting an array of digests takes a tenth of the memory that a set of them would.
        """
        digests = np.asarray(self.digests)
        order = np.argsort(digests, kind="stable").astype(np.uint32)  # rows with equal digests stay in order
        sorted_digests = digests[order]
        repeats = order[1:][sorted_digests[1:] == sorted_digests[:-1]]
        rows: list[int] = np.sort(np.asarray(self.kept_rows)[repeats]).tolist()
        return rows

    def fingerprint(self) -> str:
        """Return a sha256 over the content of the kept rows, in order; the same for any kind of file."""
        return hashlib.sha256(np.asarray(self.digests).astype("<u8").tobytes()).hexdigest()

    def rows_by_length(self, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the rows with the longest and with the shortest sequences, `count` of each, the extreme first."""
        rows = np.asarray(self.length_rows)[np.argsort(np.asarray(self.lengths), kind="stable")]
        return tuple(dict.fromkeys(rows[::-1][:count].tolist())), tuple(dict.fromkeys(rows[:count].tolist()))

    def row_lengths(self, split: Split) -> RowLengths | None:
        """Return the lengths of the sequences to train on; None where there is none."""
        numbers = self._sequences_of(split.train)
        if not numbers.size:
            return None
        lengths = np.asarray(self.lengths)
        held_out = lengths[self._sequences_of(split.held_out)]
        kind, shared = self.preferences.kind, np.asarray(self.preferences.shared)
        per_row = ROW_KINDS[kind].sequences
        numbers = numbers.reshape(-1, per_row)
        count = len(numbers)
        if count * per_row > MAX_LENGTHS:
            by_length = numbers[np.argsort(lengths[numbers].sum(axis=1), kind="stable")]
            numbers = by_length[np.linspace(0, count - 1, MAX_LENGTHS // per_row).round().astype(np.int64)]
        return RowLengths(
            tokens=tuple(lengths[numbers].ravel().tolist()),
            trained=tuple(np.asarray(self.uncut_trained)[numbers].ravel().tolist()),
            count=count,
            longest_held_out=int(held_out.max(initial=0)),
            per_row=per_row,
            kind=kind,
            longest_prompt=self.longest_prompt,
            shared=tuple(shared[numbers[:, 0] // per_row].tolist()) if per_row > 1 else (),
            pixels=tuple(np.asarray(self.pixels)[numbers].ravel().tolist()) if self.largest_image else (),
            largest_image=self.largest_image,
        )

    def _sequences_of(self, rows: Positions) -> np.ndarray:
        """Return the numbers of the sequences of rows, given the positions of these."""
        ends = np.append(np.asarray(self.first_sequences)[1:], len(self.lengths)).astype(np.int64)
        starts = np.asarray(self.first_sequences, dtype=np.int64)[rows]
        sizes = ends[rows] - starts
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        sequences: np.ndarray = np.repeat(starts, sizes) + within
        return sequences


def _prompt_tokens(sequence: RenderedRow) -> int:
    """Return the tokens before the answer of a row that has one, and all tokens of any other row; before the cut."""
    answer = sequence.trained_tokens + sequence.lost_trained_tokens
    first = next((index for index, label in enumerate(sequence.labels) if label != IGNORED_LABEL), 0)
    return first if first + answer + _CLOSING_TOKENS >= sequence.uncut_tokens else sequence.uncut_tokens


def _list(problems: list[RowProblem], record: Record, kind: ProblemKind, problem: str, *, is_dropped: bool) -> None:
    if len(problems) < MAX_LISTED:
        problems.append(
            RowProblem(
                row=record.row, line=record.line, problem=problem, kind=kind, dropped=is_dropped, sample=record.sample()
            )
        )


def length_statistics(lengths: Sequence[int], max_length: int | None) -> TokenLengths | None:
    """Summarise lengths in tokens; None if there are none.

    Percentiles are values that occur (nearest rank): p50 is the shortest length that at least half of the sequences do
    not exceed. The histogram has at most 48 bins of equal, whole width from 0 beyond the longest.
    """
    if not lengths:
        return None
    values = np.asarray(lengths, dtype=np.int64)
    shortest, p50, p95, longest = map(int, np.quantile(values, (0.0, 0.5, 0.95, 1.0), method="inverted_cdf"))
    width = max(1, math.ceil((longest + 1) / 48))
    edges = np.arange(0, longest + width + 1, width)
    counts, _ = np.histogram(values, bins=edges)
    return TokenLengths(
        min=shortest,
        p50=p50,
        p95=p95,
        max=longest,
        over_max_length=0 if max_length is None else int(np.count_nonzero(values > max_length)),
        histogram=Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist())),
    )


class CheckResult(NamedTuple):
    """The result of a pass over every row."""

    report: DatasetReport
    split: Split
    kept_rows: Sequence[int]  # numbers of the rows that the positions of the split mean


def check_steps(
    config: DatasetConfig, options: SourceOptions, *, seed: int, renderer: Renderer | None = None
) -> Generator[CheckProgress | None, None, DatasetReport]:
    """Check a dataset; yields many times a second, sometimes with its progress. Closing the iterator stops the check.

    The seed selects the held-out rows. With a home, a cached report is returned at once.

    Raises:
        DatasetError: If the source cannot be read, or no row of it can be trained on.
    """
    reader = DatasetReader(config, options, renderer)
    cache_file = _cache_file(reader, seed)
    report = read_model(cache_file, DatasetReport) if cache_file is not None else None
    if report is None:
        report = (yield from pass_steps(reader, seed)).report
        if not reader.images.reads_files:  # files of images may change, and the dataset's own fingerprint stays
            write_cached(cache_file, report)
    return report


def pass_steps(
    reader: DatasetReader, seed: int, on_kept: Callable[[DatasetRow], None] | None = None
) -> Generator[CheckProgress | None, None, CheckResult]:
    """Read every row; yields as `check_steps` does. `on_kept` gets every row that is kept, in order."""
    started, source_fingerprint = time.monotonic(), reader.fingerprint()
    counts = Counts(len(reader.parts))
    pace = Pace()
    for row in reader.rows():
        counts.add(row)
        if on_kept is not None and row.kind is None:
            on_kept(row)
        if pace.turn_is_over():
            yield counts.progress(reader) if pace.report_is_due() else None
    if not counts.kept_rows:
        yield counts.progress(reader)
        raise _nothing_kept(reader, counts)
    split = draw_split(
        counts.groups, reader.config, seed, parts=counts.kept_parts, weights=reader.weights, chosen=counts.held_out
    )
    report = _report(reader, source_fingerprint, counts, split, time.monotonic() - started)
    return CheckResult(report, split, counts.kept_rows)


def finish(
    steps: Generator[CheckProgress | None, None, Result], on_progress: Callable[[CheckProgress], None] | None = None
) -> Result:
    """Run steps to their end."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
        if on_progress is not None and progress is not None:
            on_progress(progress)


def _report(
    reader: DatasetReader, source_fingerprint: str, counts: Counts, split: Split, seconds: float
) -> DatasetReport:
    duplicates = counts.duplicate_rows()
    form = reader.form_facts()
    form["notes"] += tuple(f"{note} Rows: {count:,}." for note, count in counts.notes.items())
    form["notes"] += counts.preferences.length_bias()
    form |= counts.preferences.report(MAX_LISTED)
    why_none = _why_none_held_out(reader.config, counts, split)
    form["notes"] += (why_none,) if why_none else ()
    renderer = reader.renderer
    if renderer is not None:
        longest, shortest = counts.rows_by_length(50)
        form |= {
            "model": renderer.model,
            "max_length": renderer.max_length,
            "sequences": len(counts.lengths),
            "token_lengths": length_statistics(counts.lengths, renderer.max_length),
            "total_tokens": counts.total_tokens,
            "trained_tokens": counts.trained_tokens,
            "masked_tokens": counts.total_tokens - counts.trained_tokens,
            "lost_trained_tokens": counts.lost_trained_tokens,
            "longest_rows": longest,
            "shortest_rows": shortest,
            "row_lengths": counts.row_lengths(split),
        }
    return DatasetReport(
        **form,
        source=reader.config.source,
        fingerprint=counts.fingerprint(),
        source_fingerprint=source_fingerprint,
        parts=tuple(
            SourceReport(
                source=part.source.name,
                kind=part.source.kind,
                format=part.detection.format,
                rows=counts.part_rows[number],
                kept=counts.kept_parts.count(number),
                weight=reader.weights[number],
            )
            for number, part in enumerate(reader.parts)
        ),
        rows=counts.rows,
        kept=len(counts.kept_rows),
        dropped=counts.rows - len(counts.kept_rows),
        problems=tuple(counts.problems),
        problem_counts=dict(counts.problem_counts),
        unknown_roles=counts.progress(reader).unknown_roles,
        notices=tuple(counts.notices),
        notice_counts=dict(counts.notice_counts),
        duplicates=len(duplicates),
        duplicate_rows=tuple(duplicates[:MAX_LISTED]),
        train_rows=len(split.train),
        held_out_rows=len(split.held_out),
        why_none_held_out=why_none,
        train_on=reader.config.train_on,
        size_bytes=reader.size_bytes,
        seconds=seconds,
    )


def _why_none_held_out(config: DatasetConfig, counts: Counts, split: Split) -> str:
    if config.eval_fraction == 0 or len(split.held_out):
        return ""
    rows = len(np.unique(split.train))
    if rows < 2:
        return "No held-out rows: there is one row."
    share_prompt = counts.preferences.kind != "answers"
    return f"No held-out rows: all {rows:,} rows {'share one prompt' if share_prompt else 'are equal'}."


def _nothing_kept(reader: DatasetReader, counts: Counts) -> DatasetError:
    first = counts.problems[0]
    rows = f"none of the {counts.rows:,} rows can" if counts.rows > 1 else "the only row cannot"
    return DatasetError(
        f"Nothing to train on in {reader.name}: {rows} be used; {row_label(first.row, first.line)}: {first.problem}.",
        f"It was read as {reader.detection.format.replace('_', ' ')}. Correct the data, or choose another format, "
        "column or role mapping, or max_length.",
    )


def _cache_file(reader: DatasetReader, seed: int) -> Path | None:
    if reader.cache_folder is None:
        return None
    renderer = reader.renderer
    settings = [
        _code_fingerprint(),
        reader.fingerprint(),
        reader.config.model_dump(mode="json"),
        seed,
        [renderer.model, renderer.max_length, tokenizer_fingerprint(renderer.tokenizer)] if renderer else None,
    ]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return reader.cache_folder / f"{key}.report.json"


@cache
def _code_fingerprint() -> str:
    """Return a hash of this package's code, so a cached report is not used by other code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
