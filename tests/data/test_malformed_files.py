"""Dataset files that must not hurt: each gets its report, row by row, or one clear sentence."""

import gzip
import io
import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from tests.data.measured_reading import MAX_GROWN_BYTES, MAX_SECONDS, read_measured

GOOD = {"instruction": "Ask", "output": "Answer"}
GOOD_LINE = json.dumps(GOOD) + "\n"
BAD_BYTES = b'{"instruction": "caf\xe9", "output": "x"}\n'
QUOTED = '"' + "a" * 10 + '"'


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def problems_of(report):
    """Return (row, line, kind) of every problem."""
    return [(problem.row, problem.line, problem.kind) for problem in report.problems]


KEPT_WHOLE = {
    "UTF-8 with BOM": ("rows.jsonl", b"\xef\xbb\xbf" + GOOD_LINE.encode() * 2, 2),
    "UTF-16 LE": ("rows.jsonl", b"\xff\xfe" + (GOOD_LINE * 2).encode("utf-16-le"), 2),
    "UTF-16 BE": ("rows.json", b"\xfe\xff" + json.dumps([GOOD]).encode("utf-16-be"), 1),
    "CRLF": ("rows.jsonl", GOOD_LINE.replace("\n", "\r\n") * 3, 3),
    "bare CR": ("rows.jsonl", GOOD_LINE.replace("\n", "\r") * 3, 3),
    "no final newline": ("rows.jsonl", (GOOD_LINE * 2).rstrip(), 2),
    "blank lines": ("rows.jsonl", "\n\n" + GOOD_LINE + "\n \t\n" + GOOD_LINE + "\n\n", 2),
    "one row": ("rows.jsonl", GOOD_LINE, 1),
    "one row in an array": ("rows.json", json.dumps([GOOD]), 1),
    "an array in .jsonl": ("rows.jsonl", json.dumps([GOOD, GOOD], indent=2), 2),
    "lines in .json": ("rows.json", GOOD_LINE * 2, 2),
    "objects over several lines in .json": ("rows.json", json.dumps(GOOD, indent=2) * 2, 2),
    "U+2028 inside a string": ("rows.jsonl", json.dumps({**GOOD, "output": "a\u2028b"}, ensure_ascii=False), 1),
    "NUL as an escape": ("rows.jsonl", '{"instruction": "Ask", "output": "a\\u0000b"}', 1),
    "NaN where nothing reads it": ("rows.jsonl", '{"instruction": "Ask", "output": "x", "score": NaN}', 1),
    "NaN for a missing optional column": ("rows.jsonl", '{"instruction": "Ask", "input": NaN, "output": "x"}', 1),
    "Infinity and 1e400 where nothing reads them": (
        "rows.jsonl",
        '{"instruction": "Ask", "output": "x", "a": Infinity, "b": 1e400}',
        1,
    ),
    "keys that differ by case and spaces": ("rows.jsonl", '{" Instruction": "Ask", "OUTPUT ": "x"}', 1),
    "semicolons": ("rows.csv", "instruction;output\nAsk, please;Answer\n", 1),
    "tabs": ("rows.csv", "instruction\toutput\nAsk\tAnswer, really\n", 1),
    "tabs in .tsv": ("rows.tsv", "instruction\toutput\nAsk\tAnswer\n", 1),
    "embedded newlines": ("rows.csv", 'instruction,output\n"Ask\nme","An\n\nswer"\n', 1),
    "gzip named .csv": ("rows.csv", gzip.compress(b"instruction,output\nAsk,Answer\n"), 1),
    "gzip of JSONL named .gz": ("rows.jsonl.gz", gzip.compress(GOOD_LINE.encode() * 2), 2),
    "CSV in .json.gz": ("rows.csv.gz", gzip.compress(b"instruction,output\nAsk,Answer\n"), 1),
    "text with paragraphs": ("rows.txt", "One\ntwo.\n\nThree.\n", 2),
    "a name without an ending": ("rows", GOOD_LINE, 1),
}


DROPPED = {
    "Latin-1 bytes": (GOOD_LINE.encode() + BAD_BYTES + GOOD_LINE.encode(), [(1, 2, "not_utf8")]),
    "last line cut off": (GOOD_LINE + '{"instruction": "As', [(1, 2, "not_json")]),
    "NUL bytes": (GOOD_LINE + '{"instruction": "a\0b", "output": "x"}\n' + GOOD_LINE, [(1, 2, "not_json")]),
    "a scalar among the rows": (GOOD_LINE + "5\n" + GOOD_LINE, [(1, 2, "not_an_object")]),
    "null among the rows": ("\n" + GOOD_LINE + "null\n", [(1, 3, "not_an_object")]),
    "a list among the rows": (GOOD_LINE + "[1]\n", [(1, 2, "not_an_object")]),
    "100,000 levels of nesting": (
        GOOD_LINE + '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n" + GOOD_LINE,
        [(1, 2, "too_deep")],
    ),
    "lone surrogate": (GOOD_LINE + '{"instruction": "Ask", "output": "\\ud800"}\n', [(1, 2, "bad_text")]),
    "NaN as an answer": (GOOD_LINE + '{"instruction": "Ask", "output": NaN}\n', [(1, 2, "not_text")]),
    "Infinity as an answer": (GOOD_LINE + '{"instruction": "Ask", "output": Infinity}\n', [(1, 2, "not_text")]),
    "1e400 as an answer": (GOOD_LINE + '{"instruction": "Ask", "output": 1e400}\n', [(1, 2, "not_text")]),
    "a 5,000-digit integer": (GOOD_LINE + '{"output": ' + "9" * 5000 + "}\n" + GOOD_LINE, [(1, 2, "bad_number")]),
    "duplicate keys": (
        GOOD_LINE + '{"instruction": "Ask", "output": "x", "output": "y"}\n',
        [(1, 2, "duplicate_key")],
    ),
    "a schema that changes half way": (
        GOOD_LINE * 2 + '{"conversations": [{"from": "human", "value": "x"}]}\n' * 2,
        [(2, 3, "missing_column"), (3, 4, "missing_column")],
    ),
    "a column whose type flips at row 10,001": (
        GOOD_LINE * 10_000 + '{"instruction": "Ask", "output": 7}\n' + GOOD_LINE,
        [(10_000, 10_001, "not_text")],
    ),
}


def cut_parquet():
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"instruction": ["Ask"] * 3, "output": ["a", None, "c"]}), buffer)
    return buffer.getvalue()[:-20]


REFUSED = {
    "zero bytes": ("rows.jsonl", b"", "is empty"),
    "white space only": ("rows.jsonl", " \n\n ", "is empty"),
    "an empty array": ("rows.json", "[]", "holds no rows"),
    "header only": ("rows.csv", "instruction,output\n", "names columns and holds no rows"),
    "a scalar at top level": ("rows.json", "5", "the row is the number 5"),
    "text at top level": ("rows.json", '"text"', "the row is text"),
    "null at top level": ("rows.json", "null", "the row is null"),
    "duplicate headers": ("rows.csv", "output,instruction,output\na,b,c\n", "twice"),
    "a pickle renamed .parquet": ("rows.parquet", pickle.dumps([GOOD]), "pickle"),
    "text renamed .parquet": ("rows.parquet", GOOD_LINE, "not a Parquet file"),
    "Parquet that is cut": ("rows.parquet", cut_parquet, "cut off or damaged"),
    "Parquet with a cut footer": ("rows.parquet", b"PAR1" + b"x" * 100, "cut off or damaged"),
    "Parquet with a footer of four gigabytes": ("rows.parquet", b"PAR1xx\xff\xff\xff\xffPAR1", "cut off or damaged"),
    "columns that no format has": ("rows.jsonl", '{"x": "1", "y": "2"}\n', "No format fits the columns 'x', 'y'"),
    "gzip that breaks off": ("rows.jsonl.gz", gzip.compress(GOOD_LINE.encode() * 50)[:-8], "damaged"),
    "a zip archive": ("rows.zip", b"PK\x03\x04" + b"x" * 50, "another kind of zip archive"),
    "only bad rows": ("rows.jsonl", '{"instruction": "Ask", "output": ""}\n' * 3, "none of the 3 rows can be used"),
}


def endless_row():
    """Return a row of 200 megabytes between two good ones."""
    return (
        GOOD_LINE.encode() + b'{"instruction": "Ask", "output": "' + b"x" * 200_000_000 + b'"}\n' + GOOD_LINE.encode()
    )


def bomb():
    return gzip.compress(GOOD_LINE.encode() + b" " * (150 << 20))


# Others, each asserted on below: name of the file and what is in it, made when it is needed.
OTHERS = {
    "a row of 200 megabytes": ("rows.jsonl", endless_row),
    "a decompression bomb": ("rows.jsonl.gz", bomb),
    "keys that differ by case next to each other": (
        "rows.jsonl",
        lambda: '{"instruction": "Ask", "Output": "other", "output": "x"}\n',
    ),
}
CASES = (
    {name: (file, data) for name, (file, data, _) in (KEPT_WHOLE | REFUSED).items()}
    | {name: ("rows.jsonl", data) for name, (data, _) in DROPPED.items()}
    | OTHERS
)


@pytest.fixture(scope="module")
def readings(tmp_path_factory):
    """Read every case in one process that measures itself."""
    root = tmp_path_factory.mktemp("malformed")
    paths = {}
    for number, (name, (file, data)) in enumerate(CASES.items()):
        folder = root / str(number)
        folder.mkdir()
        paths[name] = write(folder, file, data() if callable(data) else data)
    return read_measured(paths)


@pytest.mark.parametrize("name", CASES)
def test_every_file_is_done_with_in_seconds_and_in_bounded_memory(readings, name):
    reading = readings[name]

    assert reading.seconds < MAX_SECONDS
    assert reading.grown_bytes < MAX_GROWN_BYTES
    if reading.report is not None:
        assert reading.report.kept + reading.report.dropped == reading.report.rows
        assert sum(reading.report.problem_counts.values()) == reading.report.dropped


@pytest.mark.parametrize("name", KEPT_WHOLE)
def test_files_that_are_only_unusual_are_kept_whole(readings, name):
    report, rows = readings[name].report, KEPT_WHOLE[name][2]

    assert (report.rows, report.kept, report.dropped) == (rows, rows, 0)


@pytest.mark.parametrize("name", DROPPED)
def test_rows_that_are_wrong_are_named_and_the_others_kept(readings, name):
    report = readings[name].report

    assert problems_of(report) == DROPPED[name][1]
    assert report.kept >= 1
    assert all(problem.problem and "\n" not in problem.problem for problem in report.problems)
    assert all(problem.sample for problem in report.problems)


@pytest.mark.parametrize("name", REFUSED)
def test_files_without_a_usable_row_are_refused_in_two_sentences(readings, name):
    reading = readings[name]

    assert reading.report is None
    assert REFUSED[name][2] in reading.what
    assert reading.fix
    assert "\n" not in reading.what + reading.fix
    assert "malformed0" not in reading.what + reading.fix


def test_keys_that_differ_by_case_side_by_side_take_the_exact_one(readings):
    assert readings["keys that differ by case next to each other"].report.column_map["output"] == "output"


def test_a_decompression_bomb_is_refused(readings):
    assert "200-fold" in readings["a decompression bomb"].what


def test_one_row_of_200_megabytes_is_left_out_without_being_held(readings):
    reading = readings["a row of 200 megabytes"]

    assert problems_of(reading.report) == [(1, 2, "too_long")]
    assert "200 MB" in reading.report.problems[0].problem
    assert reading.report.kept == 2
    assert reading.grown_bytes < 100 << 20
