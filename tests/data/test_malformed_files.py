"""Dataset files that must not hurt: each gets its report, row by row, or one clear sentence."""

import gzip
import json
import pickle
import time

import pyarrow
import pyarrow.parquet
import pytest

from engine.config.dataset import DatasetConfig
from engine.data.check import check_dataset
from engine.data.source import SourceOptions
from engine.errors import DatasetError

GOOD = {"instruction": "Ask", "output": "Answer"}
GOOD_LINE = json.dumps(GOOD) + "\n"
BAD_BYTES = b'{"instruction": "caf\xe9", "output": "x"}\n'
QUOTED = '"' + "a" * 10 + '"'


def check(path, **settings):
    """Check a file; the bound on time is far above what any of them needs."""
    started = time.monotonic()
    report = check_dataset(DatasetConfig(source=str(path), **settings), SourceOptions())
    assert time.monotonic() - started < 60
    assert report.kept + report.dropped == report.rows
    assert sum(report.problem_counts.values()) == report.dropped
    return report


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def found(report):
    """(row, line, kind) of every problem."""
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


@pytest.mark.parametrize(("name", "data", "rows"), KEPT_WHOLE.values(), ids=KEPT_WHOLE)
def test_files_that_are_only_unusual_are_kept_whole(tmp_path, name, data, rows):
    report = check(write(tmp_path, name, data))

    assert (report.rows, report.kept, report.dropped) == (rows, rows, 0)


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


@pytest.mark.parametrize(("data", "problems"), DROPPED.values(), ids=DROPPED)
def test_rows_that_are_wrong_are_named_and_the_others_kept(tmp_path, data, problems):
    report = check(write(tmp_path, "rows.jsonl", data))

    assert found(report) == problems
    assert report.kept >= 1
    assert all(problem.problem and "\n" not in problem.problem for problem in report.problems)
    assert all(problem.sample for problem in report.problems)


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
    "text renamed .parquet": ("rows.parquet", GOOD_LINE, "no Parquet file"),
    "Parquet with a cut footer": ("rows.parquet", b"PAR1" + b"x" * 100, "cut off or damaged"),
    "Parquet with a footer of four gigabytes": ("rows.parquet", b"PAR1xx\xff\xff\xff\xffPAR1", "cut off or damaged"),
    "columns that nobody knows": ("rows.jsonl", '{"x": "1", "y": "2"}\n', "No format fits the columns 'x', 'y'"),
    "gzip that breaks off": ("rows.jsonl.gz", gzip.compress(GOOD_LINE.encode() * 50)[:-8], "damaged"),
    "a zip archive": ("rows.zip", b"PK\x03\x04" + b"x" * 50, "zip archive"),
    "only bad rows": ("rows.jsonl", '{"instruction": "Ask", "output": ""}\n' * 3, "none of the 3 rows can be used"),
}


@pytest.mark.parametrize(("name", "data", "words"), REFUSED.values(), ids=REFUSED)
def test_files_without_a_usable_row_are_refused_in_two_sentences(tmp_path, name, data, words):
    with pytest.raises(DatasetError) as refusal:
        check(write(tmp_path, name, data))

    assert words in refusal.value.what
    assert refusal.value.fix
    assert "\n" not in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)


def test_keys_that_differ_by_case_beside_each_other_take_the_exact_one(tmp_path):
    report = check(write(tmp_path, "rows.jsonl", '{"instruction": "Ask", "Output": "other", "output": "x"}\n'))

    assert report.column_map["output"] == "output"


def test_unbalanced_quotes_in_csv_cost_their_own_row(tmp_path):
    report = check(write(tmp_path, "rows.csv", 'instruction,output\nAsk,"open\nAsk,fine\nAsk,fine\n'))

    assert found(report) == [(0, 2, "csv")]
    assert report.kept == 2


def test_a_parquet_file_is_read_and_one_that_is_cut_is_refused(tmp_path):
    table = pyarrow.table({"instruction": ["Ask"] * 3, "output": ["a", None, "c"], "n": [1, 2, 3]})
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=2)

    report = check(path)
    assert found(report) == [(1, None, "not_text")]

    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match="cut off or damaged"):
        check(path)


def test_a_decompression_bomb_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(GOOD_LINE.encode())
        for _ in range(150):
            file.write(b" " * (1 << 20))

    with pytest.raises(DatasetError, match="200-fold"):
        check(path)


def test_one_row_of_200_megabytes_is_left_out_without_being_held(tmp_path):
    import tracemalloc

    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(GOOD_LINE.encode())
        file.write(b'{"instruction": "Ask", "output": "')
        for _ in range(200):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + GOOD_LINE.encode())
    tracemalloc.start()
    try:
        report = check(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert found(report) == [(1, 2, "too_long")]
    assert "200 MB" in report.problems[0].problem
    assert report.kept == 2
    assert peak_bytes < 100 << 20


def test_what_is_odd_about_an_array_is_told(tmp_path):
    report = check(write(tmp_path, "rows.json", "[" + GOOD_LINE + ", " + GOOD_LINE))

    assert report.kept == 2
    assert any("cut off" in note for note in report.notes)
