"""The rows of a page, by position or number, as conversations and trained tokens; and search."""

import re
from collections.abc import Generator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import groupby, islice
from typing import Any

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import (
    MAX_SHOWN_CHARACTERS,
    DatasetColumns,
    DatasetPage,
    FoundRow,
    ImageView,
    PageRequest,
    PageRow,
    SearchProgress,
    SequenceView,
    TokenSpan,
)
from loratory.engine.data.conversation import Conversation, ImageRef
from loratory.engine.data.formats import column_names, likeliest_format
from loratory.engine.data.passes.reader import DatasetReader, DatasetRow, Pace, column_samples, head_of, printable_names
from loratory.engine.data.records import Record, shared_length
from loratory.engine.data.render.images import image_text_of, images_of
from loratory.engine.data.render.sequence_plan import trained_turns
from loratory.engine.data.render.tokenize import IGNORED_LABEL, RenderedRow
from loratory.engine.data.source import SourceOptions, open_source
from loratory.engine.errors import DatasetError

_RAW_CHARACTERS = 2000
_EMBEDDED = re.compile(
    rb"(?<=base64,)[A-Za-z0-9+/\\=]{40,}"
)  # image within JSON, in which short texts are found by chance


def read_page(reader: DatasetReader, request: PageRequest) -> Generator[None, None, DatasetPage]:
    """Read a page, yielding regularly to other work."""
    pace = Pace()
    next_row: int | None = None
    records: list[Record] = []
    if request.edit is not None:
        records = [Record(request.first_row, None, request.edit)]
    elif request.rows is not None:
        records = yield from _pick(reader, request.rows, pace)
    else:
        for record in reader.records(request.first_row):
            if record is not None:
                if len(records) == request.count:
                    next_row = record.row
                    break
                records.append(record)
            if pace.turn_is_over():
                yield
    rows: list[DatasetRow] = []
    for row in reader.convert(records):
        rows.append(row)
        if pace.turn_is_over():
            yield
    downloads = (getattr(part.source, "download_bytes", None) or 0 for part in reader.parts)
    return DatasetPage(
        rows=tuple(_page_row(row, reader, brief=request.brief) for row in rows),
        first_row=request.first_row,
        next_row=next_row,
        total_rows=reader.total_rows,
        samples=reader.parts[0].samples,
        download_bytes=sum(downloads) or None,
        **reader.form_facts(),
    )


def _pick(reader: DatasetReader, rows: Sequence[int], pace: Pace) -> Generator[None, None, list[Record]]:
    records: dict[int, Record] = {}
    for record in reader.pick(sorted({row for row in rows if row >= 0})):
        if record is not None:
            records[record.row] = record
        if pace.turn_is_over():
            yield
    missing = next((row for row in rows if row not in records), None)
    if missing is not None:
        raise _no_such_row(reader, missing)
    return [records[row] for row in rows]


def search_rows(reader: DatasetReader, text: str, after_row: int) -> Generator[SearchProgress | None, None, FoundRow]:
    """Find the next row with a text, ignoring case: after a row, then from the first one up to that row.

    Yields many times a second, sometimes with its progress. Closing the iterator stops the search.
    """
    needle = text.casefold()
    count = 0
    pace = Pace()
    for first, end in ((after_row + 1, None), (0, after_row + 1)):
        for record in reader.records(first):
            if record is not None:
                if end is not None and record.row >= end:
                    break
                if needle in _searchable(record):
                    return FoundRow(row=record.row, from_top=end is not None)
                count += 1
            if pace.turn_is_over():
                progress = SearchProgress(rows=count, total_rows=reader.total_rows)
                yield progress if pace.report_is_due() else None
    return FoundRow(row=None)


def find_row(reader: DatasetReader, row: int) -> DatasetRow:
    """Read one row.

    Raises:
        DatasetError: If the dataset has no such row.
    """
    match = next(reader.rows(row), None) if row >= 0 else None
    if match is None or match.record.row != row:
        raise _no_such_row(reader, row)
    return match


def _no_such_row(reader: DatasetReader, row: int) -> DatasetError:
    total = reader.total_rows
    why = f"does not exist in this dataset{f'; it has {total:,}' if total is not None else ''}"
    if total is not None and 0 <= row < total:
        why = f"is left out of {reader.name}"
    return DatasetError(f"Row {row + 1:,} {why}.", "Choose a smaller number.")


def _searchable(record: Record) -> str:
    if record.raw:
        raw = _EMBEDDED.sub(b"", record.raw) if b"base64," in record.raw else record.raw
        text = raw.decode("utf-8", "replace")
        # JSON may escape any character; such rows are searched after parsing.
        return text.casefold() if "\\u" not in text or record.value is None else str(record.value).casefold()
    return str(record.value).casefold()


def _page_row(row: DatasetRow, reader: DatasetReader, *, brief: bool) -> PageRow:
    record = row.record
    raw = record.sample(_RAW_CHARACTERS)
    if row.example is None:
        return PageRow(row=record.row, line=record.line, raw=raw, problem=row.problem)
    sequences = row.rendering.rows if row.rendering is not None else ()
    example, trained_part = row.example, row.example.trained_part(reader.config.train_on)
    if sequences and len(example.sides()) > 1 and not brief:
        views = pair_views(sequences[0], sequences[1])
    else:
        views = tuple(sequence_view(sequence, brief=brief) for sequence in sequences)
    shown = example.preview(_clip)
    conversation: Conversation | None = shown.get("conversation")
    messages = (*conversation.messages, *shown.get("rejected", ())) if conversation is not None else ()
    return PageRow(
        row=record.row,
        line=record.line,
        raw=raw,
        images=() if brief else _image_views(images_of(messages), reader),
        notices=tuple(notice for _, notice in row.notices),
        trained_turns=trained_turns(example, trained_part) if isinstance(example, Conversation) else (),
        sequences=views,
        **shown,
    )


def _image_views(images: Sequence[ImageRef], reader: DatasetReader) -> tuple[ImageView, ...]:
    image_text = image_text_of(reader.renderer.tokenizer) if reader.renderer is not None else None
    views = []
    for number, image in enumerate(images):
        size = image.width, image.height
        picture = reader.images.store.picture(image) if number < _MOST_PICTURES else ""
        facts = {"width": image.width, "height": image.height, "picture": picture}
        if image_text is not None:
            more = len(images)
            facts |= {"tiles": image_text.tiles(*size, more), "smaller": image_text.smaller(*size, more)}
        views.append(ImageView.model_validate(facts))
    return tuple(views)


_MOST_PICTURES = 12  # of one row
MAX_SHOWN_TOKENS = 20_000  # of one row
_MAX_CUT_CHARACTERS = 2_000
_MOST_COMPARED = 1_000_000  # products of two lengths in tokens; answers that are longer differ as a whole
_FEWEST_EQUAL = 2  # tokens in a row between differences: a single full stop does not make texts similar


def _clip(text: str) -> str:
    more = len(text) - MAX_SHOWN_CHARACTERS
    return text if more <= 0 else f"{text[:MAX_SHOWN_CHARACTERS]}… and {more:,} more characters"


def pair_views(chosen: RenderedRow, rejected: RenderedRow) -> tuple[SequenceView, ...]:
    """Show both answers of a pair: their prompt, and where they differ, token by token."""
    sides = chosen, rejected
    both = enumerate(zip(chosen.input_ids, rejected.input_ids, chosen.labels, rejected.labels, strict=False))
    untrained = (IGNORED_LABEL, IGNORED_LABEL)
    shared = next(
        (position for position, (left, right, *labels) in both if left != right or tuple(labels) != untrained),
        min(len(side.input_ids) for side in sides),
    )
    differing = differing_tokens(*(side.input_ids[shared:] for side in sides))
    return tuple(
        sequence_view(side, differs=[False] * shared + marks, shared_tokens=shared)
        for side, marks in zip(sides, differing, strict=True)
    )


def differing_tokens(left: Sequence[int], right: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Return which tokens of each sequence the other one does not have there."""
    marks = [True] * len(left), [True] * len(right)
    first = shared_length(left, right)
    last = shared_length(left[first:][::-1], right[first:][::-1])
    ends = len(left) - last, len(right) - last
    for side, end in zip(marks, ends, strict=True):
        side[:first] = [False] * first
        side[end:] = [False] * last
    middle = left[first : ends[0]], right[first : ends[1]]
    if len(middle[0]) * len(middle[1]) > _MOST_COMPARED:
        return marks
    for start, position, size in SequenceMatcher(None, *middle, autojunk=False).get_matching_blocks():
        if size >= _FEWEST_EQUAL:
            for side, begin in zip(marks, (first + start, first + position), strict=True):
                side[begin : begin + size] = [False] * size
    return marks


def sequence_view(
    sequence: RenderedRow, *, brief: bool = False, differs: Sequence[bool] = (), shared_tokens: int = 0
) -> SequenceView:
    """Join the tokens of a sequence into spans, one of which ends after `shared_tokens`; a brief view has only counts.

    `differs` is, of each token, whether the other answer of a pair has another one there; empty where there is none.
    """
    marks = differs or [False] * len(sequence.input_ids)
    images: list[int | None] = [None] * len(sequence.input_ids)
    for number, (first, after) in enumerate(sequence.image_spans):
        images[first:after] = [number] * (after - first)
    tokens = zip(sequence.pieces, sequence.labels, sequence.special, marks, images, sequence.input_ids, strict=True)
    visible_tokens = enumerate(islice(tokens, 0 if brief else MAX_SHOWN_TOKENS))
    spans: list[TokenSpan] = []

    def span_key(
        numbered_token: tuple[int, tuple[str, int, bool, bool, int | None, int]],
    ) -> tuple[bool, int | None, bool, int | None, bool]:
        position, (_, label, special, mark, image, _) = numbered_token
        # A control token has a span of its own, so its position is part of the key.
        alone = position if special and image is None else None
        return label != IGNORED_LABEL, alone, mark, image, position < shared_tokens

    for (trained, position, mark, image, _), group in groupby(visible_tokens, span_key):
        members = [token for _, token in group]
        spans.append(
            TokenSpan(
                text="".join(piece for piece, *_ in members) if image is None else "",
                tokens=len(members),
                trained=trained,
                special=position is not None,
                image=image,
                differs=mark,
                ids=tuple(token for *_, token in members) if image is None else (),
                lengths=tuple(len(piece) for piece, *_ in members) if image is None else (),
            )
        )
    return SequenceView(
        spans=tuple(spans),
        tokens=len(sequence.input_ids),
        trained_tokens=sequence.trained_tokens,
        uncut_tokens=sequence.uncut_tokens,
        cut_text="" if brief else _cut_text(sequence),
        shared_tokens=shared_tokens,
    )


def _cut_text(sequence: RenderedRow) -> str:
    """Return how the text beyond the cut begins."""
    cut, encoded = len(sequence.input_ids), sequence.encoded
    if cut >= len(encoded.ids):
        return ""
    start = max(end for _, end in encoded.spans[:cut]) if cut else 0
    text = encoded.text[start : start + _MAX_CUT_CHARACTERS]
    return text + "…" if start + _MAX_CUT_CHARACTERS < len(encoded.text) else text


def read_columns(config: DatasetConfig, options: SourceOptions) -> DatasetColumns:
    """Look at the first rows of the first source.

    Raises:
        DatasetError: If it cannot be opened.
    """
    source = open_source(config, options)
    rows: list[Mapping[str, Any]] = [record.value for record in head_of(source) if record.value is not None]
    names = source.columns or column_names(rows)
    format_, samples = likeliest_format(config, rows), column_samples(rows)
    return DatasetColumns(columns=printable_names(names), format=format_, samples=samples)
