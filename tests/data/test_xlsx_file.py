"""Excel workbooks: rows with their numbers in the sheet, in every view of the data, and refused where they would grow."""

import datetime
import io
import itertools
import zipfile

import openpyxl
import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import PageRequest
from loratory.engine.data.files import open_file
from loratory.engine.data.passes.check import finish
from loratory.engine.data.passes.page import find_row, read_page
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import DatasetError
from tests.data.checks import check_dataset
from tests.data.families import renderer_of
from tests.data.measured_reading import MAX_UNPACK_SECONDS, MAX_UNPACKED_BYTES, read_measured

SHEET = "xl/worksheets/sheet1.xml"
STRINGS = "xl/sharedStrings.xml"
NAMESPACE = b'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
HEADER = b"".join(
    b'<c r="%s1" t="inlineStr"><is><t>%s</t></is></c>' % cell for cell in ((b"A", b"instruction"), (b"B", b"output"))
)


def workbook(*rows, title="Rows", **others):
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = title
    for row in rows:
        sheet.append(row)
    for name, cells in others.items():
        book.create_sheet(name).append(cells)
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def save(path, content):
    path.write_bytes(content)
    return path


TABLE = workbook(
    ["instruction", "output", None, "score"],
    *([f"Question {number}", f"Answer {number}", "unnamed", number * 1.5] for number in range(3)),
    [],
    *([f"Question {number}", None if number == 4 else f"Answer {number}"] for number in range(3, 400)),
)


def test_rows_are_text_and_have_their_numbers_of_the_sheet(tmp_path):
    dates = workbook(["when", "day", "ok", "half", "whole"], [datetime.datetime(2025, 1, 2, 3, 4), datetime.date(2025, 1, 2), True, 0.5, 3.0])  # fmt: skip
    source = open_file(save(tmp_path / "rows.xlsx", TABLE))
    records = list(source.records())

    assert (source.kind, source.columns) == ("Excel workbook", ("instruction", "output", "score"))
    assert records[2].value == {"instruction": "Question 2", "output": "Answer 2", "score": "3"}
    assert [(record.row, record.line) for record in records[2:4]] == [(2, 4), (3, 6)]  # a blank row is between them
    assert records[4].value == {"instruction": "Question 4", "output": "", "score": ""}
    assert (len(records), source.total_rows, source.bytes_read) == (400, 400, source.size_bytes)
    (row,) = open_file(save(tmp_path / "dates.xlsx", dates)).records()
    assert list(row.value.values()) == ["2025-01-02 03:04:00", "2025-01-02", "TRUE", "0.5", "3"]


def test_rows_are_read_from_any_row(tmp_path):
    source = open_file(save(tmp_path / "rows.xlsx", TABLE))

    assert [record.row for record in source.records(397) if record] == [397, 398, 399]
    assert [record.row for record in source.pick([5, 300]) if record is not None] == [5, 300]
    rows = source.records(200)
    assert list(itertools.islice(rows, 200)) == [None] * 200
    assert next(rows).value["instruction"] == "Question 200"
    assert not any(source.records(400))


def test_rows_are_previewed_checked_and_rendered_by_their_numbers(tmp_path):
    dataset = DatasetConfig(source=str(save(tmp_path / "rows.xlsx", TABLE)))
    renderer = renderer_of(512)
    reader = DatasetReader(dataset, SourceOptions(), renderer)

    page = finish(read_page(reader, PageRequest(first_row=150, count=2)))
    report = check_dataset(dataset)
    row = find_row(reader, 7)

    assert [(row.row, row.line) for row in page.rows] == [(150, 153), (151, 154)]
    assert (report.rows, report.kept, report.format) == (400, 399, "alpaca")
    assert [(problem.row, problem.line, problem.kind) for problem in report.problems] == [(4, 7, "empty")]
    assert "Answer 7" in row.rendering.rows[0].text


def test_strings_that_cells_share_are_read(tmp_path):
    strings = b"<sst %s><si><t>Why?</t></si><si><r><t>So</t></r><r><t>.</t></r></si></sst>" % NAMESPACE
    row = b"<row><c t='s'><v>0</v></c><c t='s'><v>1</v></c></row>"

    source = open_file(save(tmp_path / "rows.xlsx", with_parts(sheet=sheet(row), strings=strings)))

    assert [record.value for record in source.records()] == [{"instruction": "Why?", "output": "So."}]


def test_the_first_sheet_with_rows_is_read_and_the_rest_is_named(tmp_path):
    book = openpyxl.load_workbook(io.BytesIO(workbook(title="Blank", Data=["text"], More=["text"])))
    book["Data"].append(["words"])
    book.create_sheet("Hidden", 0).sheet_state = "hidden"
    book["Hidden"].append(["secret"])
    book.save(tmp_path / "rows.xlsx")

    source = open_file(tmp_path / "rows.xlsx")

    assert [record.value for record in source.records()] == [{"text": "words"}]
    assert source.notes == ["Only the sheet Data is read; the workbook has 3 sheets."]


STRINGS_TYPE = (
    b'<Override PartName="/%s" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"/>'
    % STRINGS.encode()
)


def with_parts(**parts):
    """Return the workbook with its sheet, strings or styles replaced."""
    replaced = {SHEET: parts.get("sheet"), "xl/styles.xml": parts.get("styles")}
    content = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(TABLE)) as old,
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new,
    ):
        for name in old.namelist():
            data = replaced.get(name) or old.read(name)
            if name == "[Content_Types].xml" and STRINGS_TYPE not in data:
                data = data.replace(b"</Types>", STRINGS_TYPE + b"</Types>")
            if name != STRINGS:
                new.writestr(name, data)
        new.writestr(STRINGS, parts.get("strings", b"<sst %s/>" % NAMESPACE))
    return content.getvalue()


def sheet(rows, before=b""):
    return before + b"<worksheet %s><sheetData><row r='1'>%s</row>%s</sheetData></worksheet>" % (
        NAMESPACE,
        HEADER,
        rows,
    )


def listing(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number in range(files):
            archive.writestr(str(number), "")
    return content.getvalue()


ENTITIES = b'<!DOCTYPE a [<!ENTITY a "%s">' % (b"a" * 1000)
for _name, _before in zip("bcdefghz", "abcdefgh", strict=True):
    ENTITIES += b'<!ENTITY %s "%s">' % (_name.encode(), f"&{_before};".encode() * 20)
ENTITIES += b"]>"
TOO_LARGE = "are too large, or decompress to far more"
DAMAGED = "damaged, encrypted or another kind"
HOSTILE = {
    "a sheet of 300 MB of spaces": (
        lambda: with_parts(sheet=sheet(b" " * 300_000_000)),
        "names columns and holds no rows",
    ),
    "a row of ten million cells": (lambda: with_parts(sheet=sheet(b"<row>" + b"<c/>" * 10_000_000)), TOO_LARGE),
    "a cell of 60 MB": (
        lambda: with_parts(sheet=sheet(b"<row><c t='inlineStr'><is><t>" + b"x" * 60_000_000 + b"</t></is></c></row>")),
        "the row is 60 MB long",
    ),
    "ten million strings": (
        lambda: with_parts(strings=b"<sst %s>" % NAMESPACE + b"<si/>" * 10_000_000 + b"</sst>"),
        TOO_LARGE,
    ),
    "30,000 files": (lambda: listing(30_000), DAMAGED),
    "entities in the sheet": (
        lambda: with_parts(sheet=sheet(b"<row><c t='inlineStr'><is><t>&z;</t></is></c></row>", ENTITIES)),
        DAMAGED,
    ),
    "a string that is not there": (
        lambda: with_parts(sheet=sheet(b"<row><c t='s'><v>99999999</v></c></row>")),
        DAMAGED,
    ),
    "a sheet that breaks off": (lambda: with_parts(sheet=sheet(b"<row><c")[:-30]), DAMAGED),
    "half a workbook": (lambda: TABLE[: len(TABLE) // 2], DAMAGED),
    "any other zip archive": (lambda: listing(3), DAMAGED),
    "no rows": (workbook, "are empty"),
    "a header alone": (lambda: workbook(["text"]), "names columns and holds no rows"),
    "a column twice": (lambda: workbook(["text", "text"]), "appears twice"),
    "a row number beyond the last": (
        lambda: with_parts(sheet=sheet(b"<row r='999999999999'>%s</row>" % HEADER.replace(b"1", b"999999999999"))),
        "names columns and holds no rows",
    ),
}


@pytest.fixture(scope="module")
def readings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    return read_measured(
        {name: save(folder / f"{number}.xlsx", make()) for number, (name, (make, _)) in enumerate(HOSTILE.items())}
    )


@pytest.mark.e2e
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_workbooks_are_refused_in_seconds_and_in_bounded_memory(readings, name):
    reading, outcome = readings[name], HOSTILE[name][1]

    assert reading.seconds < MAX_UNPACK_SECONDS
    assert reading.grown_bytes < MAX_UNPACKED_BYTES
    if isinstance(outcome, str):
        assert outcome in reading.what
        assert reading.fix
    else:
        assert reading.report.kept == outcome


def test_a_workbook_under_another_name_is_read_and_an_encrypted_one_named(tmp_path):
    assert len(list(open_file(save(tmp_path / "rows.csv", TABLE)).records())) == 400
    with pytest.raises(DatasetError, match="old or an encrypted Office document"):
        open_file(save(tmp_path / "locked.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"x" * 600))
