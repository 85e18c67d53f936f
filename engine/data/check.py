"""One pass over every row, counted: what is kept, what is left out and why, how long it is, what repeats."""

import time
from collections import Counter
from collections.abc import Callable, Generator

from engine.config.dataset import DatasetConfig
from engine.data.examine import DatasetReader, Examined, Rendered
from engine.data.problems import RowProblem, shortened
from engine.data.report import CheckProgress, DatasetReport
from engine.data.split import draw_sample, draw_split
from engine.data.statistics import length_statistics
from engine.errors import DatasetError

MAX_LISTED = 1000
_PROGRESS_SECONDS = 0.2


class CheckOptions:
    """How a check is made; filled in with the source layer."""


def check_steps(
    config: DatasetConfig,
    seed: int,
    rendered: Rendered | None = None,
    model: str | None = None,
    on_kept: Callable[[Examined], None] | None = None,
) -> Generator[CheckProgress, None, DatasetReport]:
    """Check a dataset, giving the turn away a few times a second.

    Raises:
        DatasetError: If the source cannot be read, or no row of it can be learned from.
    """
    started = last = time.monotonic()
    reader = DatasetReader(config, rendered)
    problems: list[RowProblem] = []
    notices: list[RowProblem] = []
    problem_counts: Counter[str] = Counter()
    notice_counts: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    digests: list[int] = []
    lengths: list[int] = []
    length_rows: list[int] = []
    rows = trained = total = lost = 0
    kept_rows: list[int] = []
    for examined in reader.rows():
        rows += 1
        record = examined.record
        if examined.kind is not None:
            problem_counts[examined.kind] += 1
            if len(problems) < MAX_LISTED:
                problems.append(
                    RowProblem(
                        row=record.row,
                        line=record.line,
                        problem=examined.problem,
                        kind=examined.kind,
                        sample=shortened(str(record.value), 80),
                    )
                )
        else:
            digests.append(examined.digest)
            kept_rows.append(record.row)
            if on_kept is not None:
                on_kept(examined)
            if examined.rendering is not None:
                notes.update(examined.rendering.notes)
                for kind, notice in examined.rendering.notices:
                    notice_counts[kind] += 1
                    if len(notices) < MAX_LISTED:
                        notices.append(
                            RowProblem(row=record.row, line=record.line, problem=notice, kind=kind, dropped=False)
                        )
                for sequence in examined.rendering.rows:
                    lengths.append(sequence.uncut_tokens)
                    length_rows.append(record.row)
                    trained += sequence.trained_tokens
                    total += len(sequence.input_ids)
                    lost += sequence.lost_trained_tokens
        now = time.monotonic()
        if now - last > _PROGRESS_SECONDS:
            last = now
            yield CheckProgress(rows=rows, bytes_read=0, size_bytes=None, tokens=total)
    if not digests:
        _raise_nothing_kept(config, rows, problems)
    seen: set[int] = set()
    duplicate_rows = []
    for row, digest in zip(kept_rows, digests, strict=True):
        if digest in seen:
            duplicate_rows.append(row)
        seen.add(digest)
    sample = draw_sample(len(digests), config.max_samples, seed)
    split = draw_split([digests[position] for position in sample], config.eval_fraction, seed)
    counted = rendered is not None
    statistics = length_statistics(lengths, rendered.options.max_length) if rendered is not None else None
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return DatasetReport(
        source=config.source,
        format=reader.detection.format,
        format_reason=reader.detection.reason,
        format_sure=reader.detection.sure,
        columns=reader.columns,
        column_map=dict(reader.detection.columns),
        fingerprint="",
        rows=rows,
        kept=len(digests),
        dropped=rows - len(digests),
        problems=tuple(problems),
        problem_counts=dict(problem_counts),
        notices=tuple(notices),
        notice_counts=dict(notice_counts),
        notes=tuple(f"{note} ({count:,} rows)" for note, count in notes.items()),
        duplicates=len(duplicate_rows),
        duplicate_rows=tuple(duplicate_rows[:MAX_LISTED]),
        train_rows=len(split.train),
        held_out_rows=len(split.held_out),
        model=model,
        max_length=rendered.options.max_length if rendered is not None else None,
        train_on=reader.train_on,
        sequences=len(lengths) if counted else None,
        token_lengths=statistics,
        total_tokens=total if counted else None,
        trained_tokens=trained if counted else None,
        masked_tokens=total - trained if counted else None,
        lost_trained_tokens=lost if counted else None,
        longest_rows=tuple(dict.fromkeys(length_rows[index] for index in reversed(order[-20:]))),
        shortest_rows=tuple(dict.fromkeys(length_rows[index] for index in order[:20])),
        seconds=time.monotonic() - started,
    )


def check_dataset(config: DatasetConfig, seed: int, rendered: Rendered | None = None) -> DatasetReport:
    """Check a dataset in one go; see `check_steps`."""
    steps = check_steps(config, seed, rendered)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            report: DatasetReport = end.value
            return report


def _raise_nothing_kept(config: DatasetConfig, rows: int, problems: list[RowProblem]) -> None:
    if not rows:
        raise DatasetError(f"{config.source} holds no rows.", "Choose a file with data in it.")
    first = problems[0]
    where = f"line {first.line}" if first.line is not None else f"row {first.row}"
    raise DatasetError(
        f"None of the {rows:,} rows of {config.source} can be learned from; {where}: {first.problem}.",
        "Correct the data, or choose another format or column mapping.",
    )
