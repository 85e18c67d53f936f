"""Finding the rows of a page: at a place, by a search, or by number, without reading more than that takes."""

from collections.abc import Generator, Iterator, Sequence

from engine.data.conversation import Conversation
from engine.data.examine import DatasetReader, Examined
from engine.data.pace import Pace
from engine.data.page import DatasetPage, FoundRow, PageRequest, PageRow, SearchProgress, page_row, sequence_view
from engine.data.records import Record
from engine.data.turns import learned_turns
from engine.errors import DatasetError

_RAW_CHARACTERS = 2000


def read_page(reader: DatasetReader, request: PageRequest) -> Generator[None, None, DatasetPage]:
    """Read a page, giving the turn away all the while."""
    pace = Pace()
    next_row: int | None = None
    records: list[tuple[int, Record]] = []
    if request.rows is not None:
        records = yield from _pick(reader, request.rows, pace)
    else:
        for found in _on_page(reader, request):
            if found is not None and len(records) == request.count:
                next_row = found[1].row
                break
            if found is not None:
                records.append(found)
            if pace.turn_is_over():
                yield
    chosen: list[Examined] = []
    for examined in reader.examined(records):
        chosen.append(examined)
        if pace.turn_is_over():
            yield
    detection = reader.detection
    return DatasetPage(
        rows=tuple(_shown(examined, reader, brief=request.brief) for examined in chosen),
        first_row=request.first_row,
        next_row=next_row,
        total_rows=reader.total_rows,
        kind=reader.parts[0].source.kind,
        format=detection.format,
        format_reason=detection.reason,
        format_sure=detection.sure,
        columns=reader.columns,
        column_map=dict(detection.columns),
        notes=tuple(reader.notes()),
        download_bytes=_download_bytes(reader),
    )


def _on_page(reader: DatasetReader, request: PageRequest) -> Iterator[tuple[int, Record] | None]:
    """Rows from the first one on that the request means; None for each that is passed over."""
    yield from reader.approach(request.first_row)
    needle = request.search.casefold()
    for part, record in reader.records(request.first_row):
        yield (part, record) if not needle or needle in _searchable(record) else None


def _pick(reader: DatasetReader, rows: Sequence[int], pace: Pace) -> Generator[None, None, list[tuple[int, Record]]]:
    """Rows with these numbers, in their order, from one pass over the data."""
    found: dict[int, tuple[int, Record]] = {}
    for one in reader.pick(sorted({row for row in rows if row >= 0})):
        if one is not None:
            found[one[1].row] = one
        if pace.turn_is_over():
            yield
    missing = next((row for row in rows if row not in found), None)
    if missing is not None:
        raise _no_such_row(reader, missing)
    return [found[row] for row in rows]


def search_rows(reader: DatasetReader, text: str, after_row: int) -> Generator[SearchProgress | None, None, FoundRow]:
    """Find the next row that holds a text, in any case: after a row, else from the first one up to that row.

    Yields dozens of times a second, some of them with how far it has come; closing it stops the search.
    """
    needle = text.casefold()
    looked = 0
    pace = Pace()
    for first, end in ((after_row + 1, None), (0, after_row + 1)):
        for _ in reader.approach(first):
            if pace.turn_is_over():
                yield None
        for _, record in reader.records(first):
            if end is not None and record.row >= end:
                break
            if needle in _searchable(record):
                return FoundRow(row=record.row, from_top=end is not None)
            looked += 1
            if pace.turn_is_over():
                progress = SearchProgress(rows=looked, total_rows=reader.total_rows)
                yield progress if pace.report_is_due() else None
    return FoundRow(row=None)


def find_row(reader: DatasetReader, row: int) -> Examined:
    """Read one row.

    Raises:
        DatasetError: If the dataset has no such row.
    """
    found = next(reader.rows(row), None) if row >= 0 else None
    if found is None:
        raise _no_such_row(reader, row)
    return found


def _no_such_row(reader: DatasetReader, row: int) -> DatasetError:
    total = reader.total_rows
    rows = f"it has {total:,}, numbered from 0" if total is not None else "rows are numbered from 0"
    return DatasetError(f"There is no row {row:,} in this dataset; {rows}.", "Choose a smaller number.")


def _searchable(record: Record) -> str:
    if isinstance(record.raw, bytes) and record.raw:
        text = record.raw.decode("utf-8", "replace")
        # JSON may write any character as an escape; those rows are searched in what they mean.
        return text.casefold() if "\\u" not in text or record.value is None else str(record.value).casefold()
    return str(record.value).casefold()


def _download_bytes(reader: DatasetReader) -> int | None:
    """What reading every row fetches first; None where nothing is fetched, or nobody says how much."""
    sizes = [getattr(part.source, "download_bytes", None) for part in reader.parts]
    return sum(size for size in sizes if size) or None


def _shown(examined: Examined, reader: DatasetReader, *, brief: bool) -> PageRow:
    record = examined.record
    raw = record.sample(_RAW_CHARACTERS)
    if examined.example is None:
        return PageRow(row=record.row, line=record.line, raw=raw, problem=examined.problem)
    shown = page_row(record.row, record.line, examined.example, raw)
    sequences = examined.rendering.rows if examined.rendering is not None else ()
    example = examined.example
    return shown.model_copy(
        update={
            "learned_turns": learned_turns(example, reader.train_on) if isinstance(example, Conversation) else (),
            "sequences": tuple(sequence_view(sequence, brief=brief) for sequence in sequences),
            "notices": tuple(notice for _, notice in examined.notices),
        }
    )
