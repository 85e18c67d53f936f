"""One pass over every row, counted: what is kept, what is left out and why, how long it is, what repeats."""

import hashlib
import json
import math
import time
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from engine.config.run import DatasetConfig
from engine.data.contract import CheckProgress, DatasetReport, Histogram, RowProblem, SourceReport, TokenLengths
from engine.data.passes.reader import DatasetReader, DatasetRow, Pace, Renderer
from engine.data.passes.split import draw_split
from engine.data.records import ProblemKind, Record
from engine.data.render.template import tokenizer_fingerprint
from engine.data.source import SourceOptions
from engine.errors import DatasetError, StorageError
from engine.files import write_atomically

MAX_LISTED = 1000  # problems, notices and duplicates that a report lists; it counts them all
_ROW_NUMBERS = "I"  # up to four thousand million rows


class Counts:
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

    def add(self, row: DatasetRow) -> None:
        """Count one row."""
        self.rows += 1
        self.part_rows[row.part] += 1
        record = row.record
        if row.kind is not None:
            self.problem_counts[row.kind] += 1
            if len(self.problems) < MAX_LISTED:
                self.problems.append(_problem(record, row.kind, row.problem, dropped=True))
            return
        self.kept_rows.append(record.row)
        self.kept_parts.append(row.part)
        self.digests.append(row.digest)
        for kind, notice in row.notices:
            self.notice_counts[kind] += 1
            if len(self.notices) < MAX_LISTED:
                self.notices.append(_problem(record, kind, notice, dropped=False))
        if row.rendering is None:
            return
        self.notes.update(row.rendering.notes)
        for sequence in row.rendering.rows:
            self.lengths.append(sequence.uncut_tokens)
            self.length_rows.append(record.row)
            self.total_tokens += len(sequence.input_ids)
            self.trained_tokens += sequence.trained_tokens
            self.lost_trained_tokens += sequence.lost_trained_tokens

    @property
    def kept(self) -> int:
        return len(self.kept_rows)

    def duplicate_rows(self) -> list[int]:
        """Return rows that repeat an earlier one exactly, in order.

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
        """Return a sha256 over the content of the kept rows, in order; the same for any kind of file."""
        digests = np.frombuffer(self.digests, dtype=np.uint64)
        return hashlib.sha256(digests.astype("<u8").tobytes()).hexdigest()

    def rows_by_length(self, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the rows with the longest and with the shortest sequences, `count` of each, the extreme first."""
        lengths = np.frombuffer(self.lengths, dtype=np.uint32) if self.lengths else np.zeros(0, dtype=np.uint32)
        order = np.argsort(lengths, kind="stable")
        longest = (self.length_rows[int(index)] for index in order[::-1][:count])
        shortest = (self.length_rows[int(index)] for index in order[:count])
        return tuple(dict.fromkeys(longest)), tuple(dict.fromkeys(shortest))


def _problem(record: Record, kind: ProblemKind, problem: str, *, dropped: bool) -> RowProblem:
    return RowProblem(
        row=record.row, line=record.line, problem=problem, kind=kind, dropped=dropped, sample=record.sample()
    )


_BINS = 48


def length_statistics(lengths: Sequence[int], max_length: int | None) -> TokenLengths | None:
    """Summarise lengths in tokens; None if there are none.

    Percentiles are values that occur (nearest rank): p50 is the shortest length that at least half of the sequences do
    not exceed.
    """
    if not lengths:
        return None
    ordered = np.sort(np.asarray(lengths, dtype=np.int64))
    count = len(ordered)

    def nearest_rank(share: float) -> int:
        return int(ordered[max(0, math.ceil(share * count) - 1)])

    return TokenLengths(
        min=int(ordered[0]),
        p50=nearest_rank(0.50),
        p95=nearest_rank(0.95),
        max=int(ordered[-1]),
        over_max_length=0 if max_length is None else int(count - np.searchsorted(ordered, max_length, side="right")),
        histogram=_histogram(ordered),
    )


def _histogram(ordered: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Histogram:
    """Return bins of equal, whole width from 0 beyond the longest."""
    width = max(1, math.ceil((int(ordered[-1]) + 1) / _BINS))
    edges = np.arange(0, int(ordered[-1]) + width + 1, width)
    counts, _ = np.histogram(ordered, bins=edges)
    return Histogram(edges=tuple(int(edge) for edge in edges), counts=tuple(int(value) for value in counts))


_EXTREME_ROWS = 50
Steps = Generator[CheckProgress | None, None, DatasetReport]  # None only gives the turn away


def check_steps(
    config: DatasetConfig,
    options: SourceOptions,
    *,
    seed: int,
    renderer: Renderer | None = None,
    on_kept: Callable[[DatasetRow], None] | None = None,
) -> Steps:
    """Check a dataset; yields dozens of times a second, some of them with its progress, and closing it stops the check.

    Args:
        config: The dataset.
        options: With a home, a report that was made before is returned at once.
        seed: Draws the held-out rows.
        renderer: Counts tokens.
        on_kept: Gets every row that is kept, in order; the cache is then not used.

    Raises:
        DatasetError: If the source cannot be read, or no row of it can be trained on.
    """
    started = time.monotonic()
    reader = DatasetReader(config, options, renderer)
    cache_file = _cache_file(config, options, reader, seed, renderer)
    if on_kept is None and (known := _cached(cache_file)) is not None:
        return known
    counts = Counts(len(reader.parts))
    pace = Pace()
    for row in reader.rows():
        counts.add(row)
        if on_kept is not None and row.kind is None:
            on_kept(row)
        if pace.turn_is_over():
            yield _progress(reader, counts) if pace.report_is_due() else None
    if not counts.kept:
        raise _nothing_kept(reader, counts)
    report = _report(config, reader, counts, seed, renderer, time.monotonic() - started)
    _remember(cache_file, report)
    return report


def _progress(reader: DatasetReader, counts: Counts) -> CheckProgress:
    return CheckProgress(
        rows=counts.rows, bytes_read=reader.bytes_read, size_bytes=reader.size_bytes, tokens=counts.total_tokens
    )


def check_dataset(
    config: DatasetConfig, options: SourceOptions, *, seed: int = 42, renderer: Renderer | None = None
) -> DatasetReport:
    """Check a dataset in one go; see `check_steps`."""
    steps = check_steps(config, options, seed=seed, renderer=renderer)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            report: DatasetReport = end.value
            return report


def _report(
    config: DatasetConfig, reader: DatasetReader, counts: Counts, seed: int, renderer: Renderer | None, seconds: float
) -> DatasetReport:
    duplicates = counts.duplicate_rows()
    split = draw_split(counts.digests, config, seed, parts=counts.kept_parts, weights=reader.weights)
    longest, shortest = counts.rows_by_length(_EXTREME_ROWS)
    counted = renderer is not None
    detection = reader.detection
    return DatasetReport(
        source=config.source,
        kind=reader.parts[0].source.kind,
        format=detection.format,
        format_reason=detection.reason,
        format_sure=detection.sure,
        columns=reader.columns,
        column_map=dict(detection.columns),
        fingerprint=counts.fingerprint(),
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
        kept=counts.kept,
        dropped=counts.rows - counts.kept,
        problems=tuple(counts.problems),
        problem_counts=dict(counts.problem_counts),
        notices=tuple(counts.notices),
        notice_counts=dict(counts.notice_counts),
        notes=(*reader.notes(), *(f"{note} Rows: {count:,}." for note, count in counts.notes.items())),
        duplicates=len(duplicates),
        duplicate_rows=tuple(duplicates[:MAX_LISTED]),
        train_rows=len(split.train),
        held_out_rows=len(split.held_out),
        model=renderer.model if renderer is not None else None,
        max_length=renderer.max_length if renderer is not None else None,
        train_on=config.train_on,
        sequences=len(counts.lengths) if counted else None,
        token_lengths=length_statistics(counts.lengths, renderer.max_length) if renderer is not None else None,
        total_tokens=counts.total_tokens if counted else None,
        trained_tokens=counts.trained_tokens if counted else None,
        masked_tokens=counts.total_tokens - counts.trained_tokens if counted else None,
        lost_trained_tokens=counts.lost_trained_tokens if counted else None,
        longest_rows=longest,
        shortest_rows=shortest,
        size_bytes=reader.size_bytes,
        seconds=seconds,
    )


def _nothing_kept(reader: DatasetReader, counts: Counts) -> DatasetError:
    first = counts.problems[0]
    where = f"line {first.line:,}" if first.line is not None else f"row {first.row:,}"
    name = reader.parts[0].source.name
    rows = f"none of the {counts.rows:,} rows" if counts.rows > 1 else "the only row"
    return DatasetError(
        f"Nothing to train on in {name}: {rows} can be used; {where}: {first.problem}.",
        f"It was read as {reader.detection.format.replace('_', ' ')}. Correct the data, or choose another format, "
        "column mapping or max_length.",
    )


def _cache_file(
    config: DatasetConfig, options: SourceOptions, reader: DatasetReader, seed: int, renderer: Renderer | None
) -> Path | None:
    if options.cache_folder is None:
        return None
    settings = [
        _code_fingerprint(),
        reader.fingerprint(),
        config.model_dump(mode="json"),
        seed,
        [renderer.model, renderer.max_length, tokenizer_fingerprint(renderer.tokenizer)] if renderer else None,
    ]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return options.cache_folder / f"{key}.report.json"


@lru_cache(maxsize=1)
def _code_fingerprint() -> str:
    """Return a hash of this package's code: a report never outlives the code that made it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _cached(cache_file: Path | None) -> DatasetReport | None:
    if cache_file is None:
        return None
    try:
        return DatasetReport.model_validate_json(cache_file.read_bytes())
    except (OSError, ValidationError):
        return None


def _remember(cache_file: Path | None, report: DatasetReport) -> None:
    if cache_file is None:
        return
    try:
        cache_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(cache_file, report.model_dump_json())
    except (OSError, StorageError):
        return  # a cache that cannot be written costs time, nothing else
