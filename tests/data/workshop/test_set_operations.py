"""What each operation does to the rows of a set, undoing it, and who may add one."""

import errno
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.source import SourceOptions, open_source
from loratory.engine.data.workshop import operations
from loratory.engine.data.workshop.operations import REMARKS, parse_rows, rows_text, shared_rows
from loratory.engine.data.workshop.sets import find_set, in_force
from loratory.engine.errors import DatasetError, StorageError
from tests.data.workshop.made_sets import ROWS, apply, make_set, newest, operation, read

UNTOUCHED = dict(enumerate(ROWS, 1))


@pytest.fixture(autouse=True)
def faq(home, tmp_path):
    return make_set(home, tmp_path)


EDITED = {"instruction": "Q", "output": "A"}
RESULTS = {
    "edit": ({"kind": "edit", "row": 3, "record": EDITED}, UNTOUCHED | {3: EDITED}),
    "exclude": ({"kind": "exclude", "rows": "1-6,8"}, {7: ROWS[6]}),
    "drop": ({"kind": "drop", "rows": "2-8", "text": "duplicates"}, {1: ROWS[0]}),
    "replace": (
        {"kind": "replace", "pattern": "Answer", "replacement": "A\\1", "columns": ["output"]},
        {row: value | {"output": value["output"].replace("Answer", "A\\1")} for row, value in UNTOUCHED.items()},
    ),
    "replace a regular expression": (
        {"kind": "replace", "pattern": r"Question (\d)", "is_regex": True, "replacement": r"\1 is the question"},
        {row: value | {"instruction": f"{row} is the question?"} for row, value in UNTOUCHED.items()},
    ),
}


@pytest.mark.parametrize(("fields", "expected"), RESULTS.values(), ids=RESULTS)
def test_an_operation_changes_the_rows_and_its_undo_brings_back_the_version_before(home, fields, expected):
    before = newest(home)

    (number,) = apply(home, fields)

    assert read(home) == expected
    assert newest(home) != before
    apply(home, {"kind": "undo", "id": number})
    assert read(home) == UNTOUCHED
    assert newest(home) == before


KINDS = [
    kind
    for operation_class in get_args(get_args(operations.Operation)[0])
    for kind in get_args(operation_class.model_fields["kind"].annotation)
]
# Of each kind, what changes something behind BEFORE.
BEFORE = (
    {"kind": "exclude", "rows": "2"},
    {"kind": "edit", "row": 3, "record": EDITED},
    {"kind": "replace", "pattern": "Answer", "replacement": "A"},
    {"kind": "split", "rows": "5"},
    {"kind": "flag", "rows": "6", "text": "check"},
)
EXAMPLES: dict[str, dict[str, Any]] = {
    "edit": {"row": 4, "record": EDITED},
    "exclude": {"rows": "3-5"},
    "drop": {"rows": "3-5", "text": "duplicates"},
    "include": {"rows": "1-4"},
    "split": {"rows": "5-7"},
    "flag": {"rows": "7"},
    "note": {"rows": "2"},
    "mask": {"values": {"3": {"Q": "[letter]"}, "4": {"4": "[number]", "A": "[letter]"}}},
    "replace": {"pattern": r"\d", "is_regex": True, "replacement": "#"},
    "undo": {"id": 1},
}


def state_of(home):
    """Return the rows of the newest version, its name, and the flags and notes in force."""
    rows = open_source(DatasetConfig(source="set:faq"), SourceOptions(home=home)).records()
    remarks = [entry.operation for entry in in_force(find_set(home, "faq").entries) if entry.operation.kind in REMARKS]
    return [record and (record.row, record.is_held_out, record.value) for record in rows], newest(home), remarks


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_operation_can_be_undone_and_gives_the_rows_of_before(home, kind):
    apply(home, *BEFORE)
    before = state_of(home)

    (number,) = apply(home, {"kind": kind, **EXAMPLES[kind]})
    after = state_of(home)
    (undo,) = apply(home, {"kind": "undo", "id": number})

    assert after != before
    assert state_of(home) == before
    apply(home, {"kind": "undo", "id": undo})
    assert state_of(home) == after


def test_rows_that_were_left_out_come_back_and_an_undo_can_be_undone(home):
    apply(home, {"kind": "exclude", "rows": "2-4"}, {"kind": "include", "rows": "3"})
    assert sorted(read(home)) == [1, 3, 5, 6, 7, 8]

    (undo,) = apply(home, {"kind": "undo", "id": 2})
    assert sorted(read(home)) == [1, 5, 6, 7, 8]
    apply(home, {"kind": "undo", "id": undo})
    assert sorted(read(home)) == [1, 3, 5, 6, 7, 8]


def test_flags_and_notes_change_no_row_and_make_no_version(home):
    before = newest(home)

    apply(home, {"kind": "flag", "rows": "2", "text": "check"}, {"kind": "note", "rows": "2", "text": "Really?"})

    assert read(home) == UNTOUCHED
    assert newest(home) == before
    assert [entry.operation.kind for entry in find_set(home, "faq").entries] == ["flag", "note"]
    apply(home, {"kind": "undo", "id": 1}, {"kind": "undo", "id": 2})


def test_a_replacement_reaches_turns_and_an_edit_wins_over_those_before(home, tmp_path):
    turns = [{"messages": [{"role": "user", "content": "colour"}, {"role": "assistant", "content": "colour"}]}] * 2
    make_set(home, tmp_path, turns, "chats")
    replaced = {"kind": "replace", "pattern": "colour", "replacement": "color"}
    row = {"messages": [{"role": "user", "content": "colour grey"}, {"role": "assistant", "content": "A"}]}

    apply(home, replaced, {"kind": "edit", "row": 1, "record": row}, name="chats")

    rows = read(home, "set:chats")
    assert rows[1] == row
    assert [turn["content"] for turn in rows[2]["messages"]] == ["color", "color"]
    apply(home, {"kind": "replace", "pattern": "grey", "replacement": "gray"}, name="chats")
    assert read(home, "set:chats")[1]["messages"][0]["content"] == "colour gray"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"kind": "edit", "row": 3, "record": EDITED}, {"kind": "edit", "row": 3, "record": ROWS[0]}),
        ({"kind": "exclude", "rows": "1-5"}, {"kind": "include", "rows": "5-6"}),
        ({"kind": "flag", "rows": "1-5", "text": "a"}, {"kind": "flag", "rows": "5"}),
    ],
)
def test_operations_on_the_same_rows_are_undone_in_any_order(home, first, second):
    for number in (1, 2):
        apply(home, first, second)
        last = len(find_set(home, "faq").entries)
        apply(home, {"kind": "undo", "id": last - 2 + number}, {"kind": "undo", "id": last + 1 - number})

        assert read(home) == UNTOUCHED


def test_an_undo_leaves_what_later_operations_did(home):
    apply(home, {"kind": "exclude", "rows": "1-4"}, {"kind": "edit", "row": 7, "record": EDITED})
    apply(home, {"kind": "exclude", "rows": "3-5"})

    apply(home, {"kind": "undo", "id": 1})

    assert sorted(read(home)) == [1, 2, 6, 7, 8]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": "exclude", "rows": "7-9"}, "row 9 does not exist; the set has 8"),
        ({"kind": "edit", "row": 100, "record": EDITED}, "row 100 does not exist; the set has 8"),
        ({"kind": "undo", "id": 4}, "operation 4 does not come before it"),
    ],
)
def test_an_operation_on_what_is_not_there_is_refused_with_its_whole_batch(home, fields, why):
    with pytest.raises(DatasetError, match=why):
        apply(home, {"kind": "exclude", "rows": "1"}, fields)

    assert read(home) == UNTOUCHED


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "exclude", "rows": "0"},
        {"kind": "exclude", "rows": "5-3"},
        {"kind": "exclude", "rows": "../x"},
        {"kind": "exclude", "rows": ""},
        {"kind": "exclude", "rows": "1", "more": 1},
        {"kind": "edit", "row": 1, "record": {}},
        {"kind": "edit", "row": 1, "record": [1]},
        {"kind": "replace", "pattern": "(", "is_regex": True, "replacement": ""},
        {"kind": "replace", "pattern": "(", "is_regex": True, "replacement": "", "columns": ["output"]},
        {"kind": "replace", "pattern": "a", "is_regex": True, "replacement": r"\2"},
        {"kind": "shell", "rows": "1"},
    ],
)
def test_what_is_not_an_operation_is_refused(fields):
    with pytest.raises(ValidationError):
        operation(**fields)


def test_rows_are_compact_however_they_are_written():
    assert rows_text(parse_rows("1-40, 77")) == "1-40,77"
    assert shared_rows(parse_rows("1-5,9"), parse_rows("6-8,9-20")) == "9"
    assert not shared_rows(parse_rows("1-5,9"), parse_rows("6-8"))


def test_two_people_are_told_of_operations_on_the_same_rows_and_not_of_others(home):
    apply(home, {"kind": "edit", "row": 3, "record": EDITED}, author="ben")

    with pytest.raises(DatasetError, match=r"operation 1 \(edit, by ben\) came in between"):
        apply(home, {"kind": "exclude", "rows": "2-3"}, since=0)
    apply(home, {"kind": "exclude", "rows": "1-2"}, since=0)

    assert sorted(read(home)) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("line", [b"{}", b"not JSON", b"", b'{"id": 2, "parent": 0, "aut'])
def test_a_log_that_was_changed_by_hand_is_an_error_with_its_line(home, faq, line):
    apply(home, {"kind": "exclude", "rows": "1"}, {"kind": "exclude", "rows": "2"})
    lines = faq.log.read_bytes().split(b"\n")
    faq.log.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))

    with pytest.raises(DatasetError, match=r"Line 2 of the log of the set faq"):
        read(home)


def test_a_line_that_is_gone_is_an_error_too(home, faq):
    apply(home, {"kind": "exclude", "rows": "1"}, {"kind": "exclude", "rows": "2"})
    faq.log.write_bytes(faq.log.read_bytes().split(b"\n", 1)[1])

    with pytest.raises(DatasetError, match="it has the id 2"):
        read(home)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": "undo", "id": 1}, "operation 1 does not come before it"),
        ({"kind": "exclude", "rows": "9"}, "row 9 does not"),
    ],
)
def test_a_log_with_an_operation_that_fits_nothing_is_an_error(home, faq, fields, why):
    apply(home, {"kind": "exclude", "rows": "1"})
    entry = json.loads(faq.log.read_bytes()) | {"operation": fields}
    faq.log.write_text(json.dumps(entry) + "\n")

    with pytest.raises(DatasetError, match=why):
        find_set(home, "faq")


def test_a_full_disk_leaves_the_log_as_it_was(home, faq, monkeypatch):
    apply(home, {"kind": "exclude", "rows": "1"})
    before = faq.log.read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        apply(home, {"kind": "exclude", "rows": "2"})

    assert faq.log.read_bytes() == before


def test_a_pattern_that_hangs_ends_with_itself_and_the_row(home, tmp_path, monkeypatch):
    monkeypatch.setattr(operations, "REPLACE_SECONDS", 0.2)
    make_set(home, tmp_path, [*ROWS, {"instruction": "Q", "output": "a" * 60 + "b"}], "slow")
    apply(home, {"kind": "replace", "pattern": "(a|a)*$", "is_regex": True, "replacement": ""}, name="slow")

    with pytest.raises(DatasetError, match=r"Replacing \(a\|a\)\*\$ takes over 0\.2 s in row 9"):
        read(home, "set:slow")


@pytest.mark.parametrize(
    ("pattern", "replacement"), [("a", "a" * 1000), ("(?=(.*)).", r"\1"), ("(?s)(.*)", r"\1" * 400)]
)
def test_a_replacement_that_grows_beyond_all_memory_ends_with_the_row(home, tmp_path, pattern, replacement):
    make_set(home, tmp_path, [*ROWS, {"instruction": "Q", "output": "a" * 4_000_000}], "large")
    replace = {"kind": "replace", "pattern": pattern, "is_regex": True, "replacement": replacement}
    apply(home, replace, name="large")

    with pytest.raises(DatasetError, match="adds too much text in row 9"):
        read(home, "set:large")


def test_a_pattern_that_hangs_has_its_limit_in_a_thread_too(home, tmp_path, monkeypatch):
    monkeypatch.setattr(operations, "REPLACE_SECONDS", 0.2)
    make_set(home, tmp_path, [{"instruction": "Q", "output": "a" * 60 + "b"}], "slow")
    apply(home, {"kind": "replace", "pattern": "(a|a)*$", "is_regex": True, "replacement": ""}, name="slow")

    with ThreadPoolExecutor() as threads, pytest.raises(DatasetError, match="takes over"):
        threads.submit(read, home, "set:slow").result()


def test_an_unknown_column_is_refused_with_the_columns_that_there_are(home):
    unknown = {"kind": "replace", "columns": ["outptu"], "pattern": "a", "replacement": "b"}
    with pytest.raises(DatasetError, match="no row has the column 'outptu'; the columns are instruction, output"):
        apply(home, unknown)

    apply(home, {"kind": "edit", "row": 1, "record": {**EDITED, "outptu": "a"}}, unknown)
    assert read(home)[1]["outptu"] == "b"


def test_an_edit_is_no_longer_than_a_row_of_a_file(home):
    with pytest.raises(DatasetError, match="the row has more than 8,388,608 bytes"):
        apply(home, {"kind": "edit", "row": 1, "record": {"output": "a" * 9_000_000}})


def test_a_log_about_a_hundred_thousand_rows_is_fast(home, tmp_path):
    started = time.process_time()
    rows = [{"instruction": "Q", "output": str(number)} for number in range(100_000)]
    dataset = make_set(home, tmp_path, rows, "large")
    odd = ",".join(map(str, range(1, 100_001, 2)))
    edits = [{"kind": "edit", "row": row, "record": {"instruction": "E", "output": "A"}} for row in range(2, 10_001, 2)]

    apply(home, {"kind": "drop", "rows": odd, "text": "odd"}, *edits, name="large")

    values = read(home, "set:large")
    assert len(values) == 50_000
    assert sum(value["instruction"] == "E" for value in values.values()) == 5_000
    assert len(find_set(home, "large").entries) == 5_001
    assert json.loads(dataset.log.read_bytes().split(b"\n")[0])["operation"]["rows"].startswith("1,3,5")
    assert time.process_time() - started < 20  # 2 s on an idle core
