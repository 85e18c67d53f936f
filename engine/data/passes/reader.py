"""A dataset with its detected formats: reads, converts and renders every row, and reports each one."""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any, Self

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.conversation import Conversation, Example, RowWarning
from loratory.engine.data.formats import FORMATS, Converter, column_names, detect_format, unread_columns, unread_note
from loratory.engine.data.formats.base import Detection
from loratory.engine.data.media.row_images import RowImages
from loratory.engine.data.records import ProblemKind, Record, RowProblemError, RowSource, one_line, row_label
from loratory.engine.data.render.template import ChatTokenizer
from loratory.engine.data.render.tokenize import Rendering, RenderOptions, render_many
from loratory.engine.data.source import SeveralSources, SourceOptions, open_source
from loratory.engine.errors import DatasetError

_TURN_SECONDS = 0.03
_REPORT_SECONDS = 0.2


class Pace:
    """The clock of one pass, cheap enough to check for every row."""

    def __init__(self) -> None:
        self._turn = self._report = time.monotonic()

    def turn_is_over(self) -> bool:
        """Return whether to yield now; if so, the next turn begins."""
        now = time.monotonic()
        if now - self._turn < _TURN_SECONDS:
            return False
        self._turn = now
        return True

    def report_is_due(self) -> bool:
        """Return whether to report progress now, which is less often than turns end."""
        if self._turn - self._report < _REPORT_SECONDS:
            return False
        self._report = self._turn
        return True


DETECTION_ROWS = 100
_DETECTION_BYTES = 4 << 20
_BATCH_ROWS = 64
_BATCH_BYTES = 1 << 16  # takes some tens of milliseconds to render and tokenize
_BATCH_IMAGE_ROWS = 4  # each new image takes some milliseconds to store


@dataclass(frozen=True)
class Renderer:
    """How rows become tokens."""

    tokenizer: ChatTokenizer  # with its frozen template
    max_length: int | None  # where sequences are cut, in tokens
    model: str | None = None  # in reports
    notes: tuple[str, ...] = ()  # changes to the tokenizer, for reports


@dataclass(frozen=True)
class DatasetRow:
    """One row, kept (`example`, and `rendering` where there is a renderer) or left out (`kind` and `problem`)."""

    record: Record
    part: int  # which of the mixed sources it comes from
    example: Example | None = None
    rendering: Rendering | None = None
    notices: tuple[RowWarning, ...] = ()  # warnings about a row that is kept
    digest: int = 0  # 64 bits of the row's content: equal for exact duplicates
    group: int = 0  # the same of what must stay on one side of the split: a preference's prompt, else the row
    kind: ProblemKind | None = None
    problem: str = ""
    unknown_roles: Mapping[str, str] = field(default_factory=dict)  # of its turns, each with how its first turn begins


class DatasetReader(SeveralSources):
    """Reads a dataset, or several that are mixed; with a renderer, it renders each row.

    Raises:
        DatasetError: If a source cannot be read, holds no rows, or no format fits it.
    """

    def __init__(self, config: DatasetConfig, options: SourceOptions, renderer: Renderer | None = None) -> None:
        self.images = RowImages(options.home, options.access, config.images, may_fetch=options.fetches_images)
        self.parts = [DatasetPart(config, options, self.images)]
        own = {"subset": None, "revision": None, "split": DatasetConfig.model_fields["split"].default, "mix": {}}
        for source in config.mix:
            other = config.model_copy(update={"source": source, **own})
            self.parts.append(DatasetPart(other, options, self.images, of_a_mix=True))
        super().__init__(self.parts[0].source.name, [part.source for part in self.parts])
        self.images.folder_of = self.folder_of
        self._batch_rows = _BATCH_ROWS
        self.columns = tuple(dict.fromkeys(column for part in self.parts for column in part.columns))
        self.weights = (1.0, *config.mix.values())
        self.config = config
        self.cache_folder = options.cache_folder
        self.renderer = renderer

    def with_renderer(self, renderer: Renderer | None) -> Self:
        """Return a reader of the same opened sources that renders otherwise."""
        other = copy(self)
        other.renderer = renderer
        return other

    @property
    def detection(self) -> Detection:
        return self.parts[0].detection

    @property
    def kind(self) -> str:
        return self.parts[0].source.kind

    @property
    def notes(self) -> list[str]:
        """Notes about the dataset as a whole."""
        notes = list(self.renderer.notes) if self.renderer is not None else []
        for part in self.parts:
            notes.extend(part.source.notes)
            if part.unread:
                where = f" of {part.source.name}" if len(self.parts) > 1 else ""
                notes.append(unread_note(part.unread, where))
        has_turns = all(FORMATS[part.detection.format].has_turns for part in self.parts)
        if not has_turns and self.config.train_on != "all":
            notes.append("Plain text has no assistant turns, so all of it is trained.")
        return notes

    def form_facts(self) -> dict[str, Any]:
        """Return the fields of a `DatasetForm`; its notes are complete once all rows have been read."""
        return {
            "kind": self.kind,
            "format": self.detection.format,
            "format_reason": self.detection.reason,
            "format_sure": self.detection.sure,
            "columns": self.columns,
            "column_map": dict(self.detection.columns),
            "notes": tuple(self.notes),
        }

    def rows(self, first_row: int = 0) -> Iterator[DatasetRow]:
        """Yield rows from `first_row` on, numbered through all parts."""
        return self.convert(self.records(first_row))

    def convert(self, records: Iterable[Record | None]) -> Iterator[DatasetRow]:
        """Convert and render rows, some of them at a time."""
        batch: list[Record] = []
        size = count = 0
        for record in records:
            if record is None:
                continue
            count += 1
            batch.append(record)
            size += record.size_bytes
            # Batches grow, so the first row of a page does not wait for a full batch.
            if len(batch) >= min(self._batch_rows, count) or size > _BATCH_BYTES:
                yield from self._convert_batch(batch)
                batch, size = [], 0
        yield from self._convert_batch(batch)

    def _convert_batch(self, records: Sequence[Record]) -> list[DatasetRow]:
        rows = list(map(self._convert, records))
        if self.images.count:
            self._batch_rows = _BATCH_IMAGE_ROWS
        if self.renderer is None:
            return rows
        options = RenderOptions(self.renderer.max_length, self.config.train_on)
        good = [(row.record.row, row.example) for row in rows if row.example is not None]
        renderings = iter(render_many(good, self.renderer.tokenizer, options))
        return [row if row.example is None else _with_rendering(row, next(renderings)) for row in rows]

    def _convert(self, record: Record) -> DatasetRow:
        part = self._part_of(record.row) if len(self.parts) > 1 else 0
        if record.value is None:
            return DatasetRow(record, part, kind=record.kind, problem=record.problem)
        self.images.begin(record.row)
        try:
            example = self.parts[part].converter.convert(record.value)
            digest = digest_of(example)
            group = digest_of(prompt) if (prompt := example.shared_prompt()) is not None else digest
            notices = example.warnings() + self.images.notes
            return DatasetRow(record, part, example, notices=notices, digest=digest, group=group)
        except RowProblemError as problem:
            roles = self.parts[part].converter.fields.unknown_roles(record.value.values())
            return DatasetRow(record, part, kind=problem.kind, problem=problem.problem, unknown_roles=roles)

    def _part_of(self, row: int) -> int:
        """Return the number of the part that a row comes from; parts before it have been read to their ends."""
        end = 0
        for number, part in enumerate(self.parts[:-1]):
            total = part.source.total_rows
            if total is None or row < (end := end + total):
                return number
        return len(self.parts) - 1


def _with_rendering(row: DatasetRow, rendering: Rendering | RowProblemError) -> DatasetRow:
    if isinstance(rendering, RowProblemError):
        return DatasetRow(row.record, row.part, kind=rendering.kind, problem=rendering.problem)
    return replace(row, rendering=rendering, notices=(*row.notices, *rendering.notices))


class DatasetPart:
    """One source with its format.

    Format and mapping of a dataset `of_a_mix` were chosen for another source; where they do not fit, both are detected.

    Raises:
        DatasetError: If it cannot be read, holds no rows, or no format fits it.
    """

    def __init__(
        self, config: DatasetConfig, options: SourceOptions, images: RowImages | None = None, *, of_a_mix: bool = False
    ) -> None:
        self.source: RowSource = open_source(config, options)
        role_map = {**self.source.read_as.get("role_map", {}), **config.role_map}
        if config.format == "auto" and not config.column_map:
            config = config.model_copy(update=self.source.read_as)
        head = head_of(self.source)
        if not head:
            what = "names columns and holds no rows" if self.source.columns else "holds no rows"
            raise DatasetError(f"{self.source.name} {what}.", "Choose a dataset with rows in it.")
        rows: list[Mapping[str, Any]] = [record.value for record in head if record.value is not None]
        if not rows:
            raise DatasetError(
                f"{f'None of the first {len(head):,} rows' if len(head) > 1 else 'The only row'} of {self.source.name} "
                f"{'can' if len(head) > 1 else 'cannot'} be read; "
                f"{row_label(head[0].row, head[0].line)}: {head[0].problem}.",
                f"It was read as {self.source.kind}. Correct the file, or convert it to JSONL.",
            )
        self.columns = printable_names(self.source.columns or column_names(rows))
        unreadable = len(head) - len(rows)
        self.detection: Detection = (
            _detect_by_itself(config, rows, unreadable, self.source.name)
            if of_a_mix
            else detect_format(config, rows, unreadable=unreadable)
        )
        self.converter = Converter(self.detection, role_map, images.load if images is not None else None)
        self.samples = column_samples(rows)
        self.unread = printable_names(unread_columns(self.detection, config.column_map, rows))


def _detect_by_itself(
    config: DatasetConfig, rows: Sequence[Mapping[str, Any]], unreadable: int, name: str
) -> Detection:
    with contextlib.suppress(DatasetError):
        return detect_format(config, rows, unreadable=unreadable)
    try:
        return detect_format(
            config.model_copy(update={"format": "auto", "column_map": {}}), rows, unreadable=unreadable
        )
    except DatasetError as error:
        raise DatasetError(
            f"{name}, a source of the mixture, does not fit the format: {error.what}",
            "Rename its columns to those of a known format, or to those of the first dataset.",
        ) from error


def head_of(source: RowSource) -> list[Record]:
    """Return the first rows: enough to detect the format, and at most a few megabytes."""
    head: list[Record] = []
    size = 0
    for record in source.records():
        if record is None:
            continue
        head.append(record)
        size += record.size_bytes
        if len(head) >= DETECTION_ROWS or size > _DETECTION_BYTES:
            break
    return head


def printable_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of columns, safe to send and show."""
    return tuple(str(name).encode("utf-8", "replace").decode() for name in names)


def column_samples(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return how each column begins in the first of the rows that fills it."""
    samples: dict[str, str] = {}
    for name, value in chain.from_iterable(zip(printable_names(row), row.values(), strict=True) for row in rows):
        if name not in samples and value not in (None, "", [], {}):
            samples[name] = one_line(value if isinstance(value, str) else json.dumps(value, default=str), 60)
    return samples


def digest_of(example: Example) -> int:
    """Return 64 bits that are equal for exact duplicates.

    Raises:
        RowProblemError: If its text cannot be written as UTF-8.
    """
    try:
        data = _canonical(example).encode()
    except UnicodeEncodeError as error:
        raise RowProblemError("bad_text", "its text contains half of a character (a lone surrogate)") from error
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _canonical(example: Example) -> str:
    if not isinstance(example, Conversation):
        return example.text()
    if (
        type(example) is Conversation
        and not example.tools
        and not any(
            message.tool_calls
            or message.role == "tool"
            or message.reasoning
            or message.images
            or not message.is_trained
            for message in example.messages
        )
    ):
        # The common case, without building a dictionary for every turn.
        return "\x1e".join(f"{message.role}\x1f{message.content}" for message in example.messages)
    values = asdict(example)
    for message in (*values["messages"], *values.get("rejected", ())):
        del message["has_empty_block"]
        if message["is_trained"]:  # default values are left out
            del message["is_trained"]
        if not message["images"]:
            del message["images"]
    return json.dumps(values, ensure_ascii=False, sort_keys=True, default=str)
