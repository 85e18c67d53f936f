"""Sets as sources of rows: names, versions, pages, splits, and equality with an exported file."""

import gzip
import json
import multiprocessing
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow
import pyarrow.parquet
import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import PageRequest
from loratory.engine.data.passes.check import finish
from loratory.engine.data.passes.page import find_row, read_page, search_rows
from loratory.engine.data.passes.prepare import prepare_dataset
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SetRows, SourceOptions, open_source
from loratory.engine.data.workshop import sets
from loratory.engine.data.workshop.exchange import add_set, compare_versions, export_version
from loratory.engine.data.workshop.operations import Mark
from loratory.engine.data.workshop.sets import (
    delete_set,
    find_set,
    find_version,
    news_of_set,
    pinned,
    rename_set,
    set_folder,
    set_names,
)
from loratory.engine.errors import DatasetError, StorageError
from loratory.engine.paths import LoratoryHome
from tests.data.checks import check_dataset, write_rows
from tests.data.families import shared_tokenizer
from tests.data.pictures import picture
from tests.data.workshop.made_sets import ROWS, apply, make_set, newest, operation, read

EVERYTHING = (
    {"kind": "exclude", "rows": "2,7"},
    {"kind": "edit", "row": 3, "record": {"instruction": "Grüße?", "output": "Ünïcode \ud83d\ude00."}},
    {"kind": "replace", "pattern": r"Answer (\d)", "is_regex": True, "replacement": r"It is \1", "columns": ["output"]},
    {"kind": "include", "rows": "7"},
)
BAD_NAMES = ["../x", "/etc", "", ".", "..", "A", "a/b", "a\0b", "-a", "a" * 62, "a b", "a\n", "ä"]


def open_rows(home, source):
    return SetRows(find_version(home, source), SourceOptions(home=home))


def test_a_set_keeps_its_own_copy_and_is_for_its_person_alone(home, tmp_path):
    dataset = make_set(home, tmp_path)
    (tmp_path / "faq-source.jsonl").write_text("gone")

    assert list(read(home).values()) == ROWS
    assert stat.S_IMODE(home.datasets.stat().st_mode) == 0o700
    assert stat.S_IMODE(dataset.folder.stat().st_mode) == 0o700
    assert dataset.facts.author == "ann"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_could_be_a_path_is_refused_everywhere(home, tmp_path, name):
    (tmp_path / "x").mkdir()
    with pytest.raises(DatasetError):
        make_set(home, tmp_path, name="faq") and add_set(
            home, name, DatasetConfig(source="sample:lab-chats"), author="ann", require_space=lambda _: None
        )
    with pytest.raises(DatasetError):
        open_source(DatasetConfig(source=f"set:{name}"), SourceOptions(home=home))
    assert set_names(home) == ["faq"]


def test_a_link_among_the_sets_is_not_one(home, tmp_path):
    make_set(home, tmp_path)
    (home.datasets / "other").symlink_to(home.datasets / "faq")

    assert set_names(home) == ["faq"]


def test_each_person_of_a_lab_has_sets_of_their_own_and_a_guest_none(home, tmp_path):
    ann, ben, guest = (home.for_person(name, role) for name, role in (("ann", ""), ("ben", ""), ("ann", "guest")))
    ann.uploads.mkdir(parents=True)
    file = write_rows(ann.uploads / "faq.jsonl", ROWS)
    add_set(ann, "faq", DatasetConfig(source=str(file)), author="ann", require_space=lambda _: None)

    assert list(read(ann).values()) == ROWS
    for other in (ben, guest):
        with pytest.raises(DatasetError):
            read(other)
    outside = write_rows(tmp_path / "outside.jsonl", ROWS)
    with pytest.raises(DatasetError, match="outside the folders"):
        add_set(ann, "new", DatasetConfig(source=str(outside)), author="ann", require_space=lambda _: None)


def test_a_source_that_is_refused_leaves_nothing_behind(home, tmp_path):
    def refuse(_bytes):
        raise StorageError("Full.", "Delete something.")

    file = write_rows(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(StorageError, match="Full"):
        add_set(home, "faq", DatasetConfig(source=str(file)), author="ann", require_space=refuse)
    for source in (str(tmp_path), "set:faq", str(write_rows(tmp_path / "odd.jsonl", [{"x": 1}]))):
        with pytest.raises(DatasetError):
            add_set(home, "faq", DatasetConfig(source=source), author="ann", require_space=lambda _: None)

    assert list(home.datasets.iterdir()) == []


@pytest.mark.parametrize("kind", ["csv", "jsonl.gz", "sample"])
def test_a_set_can_be_made_of_any_kind_of_file(home, tmp_path, kind):
    source = str(tmp_path / f"rows.{kind}")
    if kind == "csv":
        (tmp_path / "rows.csv").write_text("instruction,output\nQ1,A1\nQ2,\n")
    elif kind == "jsonl.gz":
        (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() + b"\n"))
    else:
        source = "sample:loratory-faq"
    plain = DatasetConfig(source=source)
    add_set(home, "faq", plain, author="ann", require_space=lambda _: None)

    assert (
        check_dataset(DatasetConfig(source="set:faq"), SourceOptions(home=home)).fingerprint
        == check_dataset(plain).fingerprint
    )


def test_format_and_columns_of_a_set_are_used_where_a_run_names_none(home, tmp_path):
    rows = [{"q": "Q", "a": "A"}, {"q": "Q2", "a": "A2"}]
    make_set(home, tmp_path, rows, format="alpaca", column_map={"instruction": "q", "output": "a"})

    report = check_dataset(DatasetConfig(source="set:faq"), SourceOptions(home=home))

    assert (report.format, report.kept) == ("alpaca", 2)


def test_training_on_a_version_equals_training_on_the_exported_file(home, tmp_path):
    make_set(home, tmp_path, [*ROWS[:4], "not JSON\n", *ROWS[4:], {"instruction": "Q", "output": "\ud800"}])
    apply(home, *EVERYTHING)
    file = tmp_path / "exported.jsonl"

    export_version(open_rows(home, "set:faq"), file, home)

    prepared = [
        prepare_dataset(DatasetConfig(source=source), seed=1, max_length=100, tokenizer=shared_tokenizer(), home=home)
        for source in ("set:faq", str(file))
    ]
    version, file_rows = prepared
    assert version.report.fingerprint == file_rows.report.fingerprint
    assert version.train.sha256() == file_rows.train.sha256()
    assert version.held_out.sha256() == file_rows.held_out.sha256()
    assert (version.report.rows, version.report.kept) == (9, 7)  # with one that cannot be read
    with pytest.raises(DatasetError, match="exists already"):
        export_version(open_rows(home, "set:faq"), file, home)


def test_rows_keep_the_numbers_of_the_source_in_pages_and_searches(home, tmp_path):
    make_set(home, tmp_path)
    apply(home, {"kind": "exclude", "rows": "1-3,6"}, {"kind": "edit", "row": 8, "record": ROWS[0]})
    reader = DatasetReader(DatasetConfig(source="set:faq"), SourceOptions(home=home))

    page = finish(read_page(reader, PageRequest(first_row=2, count=2)))

    assert [row.row for row in page.rows] == [3, 4]
    assert (page.next_row, page.total_rows) == (6, 8)
    assert [row.row for row in finish(read_page(reader, PageRequest(rows=(7, 4)))).rows] == [7, 4]
    assert find_row(reader, 7).record.value == ROWS[0]
    assert finish(search_rows(reader, "Question 1", after_row=4)).row == 7
    for missing in (lambda: find_row(reader, 5), lambda: finish(read_page(reader, PageRequest(rows=(5,))))):
        with pytest.raises(DatasetError, match="Row 6 is left out of faq@"):
            missing()


def test_rows_that_are_left_out_are_no_faults_and_those_of_a_mixture_stay_apart(home, tmp_path):
    make_set(home, tmp_path)
    other = write_rows(tmp_path / "other.jsonl", ROWS[:2])
    apply(home, {"kind": "exclude", "rows": "1-3,8"})

    report = check_dataset(
        DatasetConfig(source="set:faq", mix={str(other): 1.0}, eval_fraction=0), SourceOptions(home=home)
    )

    assert (report.rows, report.kept, report.dropped) == (6, 6, 0)
    assert [part.rows for part in report.parts] == [4, 2]


def test_rows_that_a_set_holds_out_are_held_out_whatever_is_drawn(home, tmp_path):
    make_set(home, tmp_path, [*ROWS, ROWS[3]])
    apply(home, {"kind": "split", "rows": "2,4"})

    for eval_fraction in (0.0, 0.3):
        config = DatasetConfig(source="set:faq", eval_fraction=eval_fraction)
        data = prepare_dataset(config, seed=3, max_length=100, tokenizer=shared_tokenizer(), home=home)
        held_out = {row.row + 1 for row in data.held_out}
        assert {2, 4, 9} <= held_out  # 9 repeats 4
        assert held_out.isdisjoint(row.row + 1 for row in data.train)
    apply(home, {"kind": "undo", "id": 1})
    assert check_dataset(DatasetConfig(source="set:faq", eval_fraction=0), SourceOptions(home=home)).held_out_rows == 0


def test_a_version_stays_what_it_was_and_the_newest_is_pinned(home, tmp_path):
    make_set(home, tmp_path)
    apply(home, {"kind": "exclude", "rows": "1"})
    name = pinned("set:faq", home)

    apply(home, {"kind": "exclude", "rows": "2"})

    assert name == f"set:faq@{find_set(home, 'faq').versions[1].name}"
    assert pinned(name, home) == name
    assert sorted(read(home, name)) == [2, 3, 4, 5, 6, 7, 8]
    assert pinned("set:faq", home) == f"set:faq@{newest(home)}"
    assert pinned("sample:lab-chats", home) == "sample:lab-chats"
    with pytest.raises(DatasetError, match="has no version 000000000000"):
        pinned("set:faq@000000000000", home)


def test_the_version_of_equal_sources_and_operations_has_the_same_name(home, tmp_path):
    for name in ("one", "two"):
        make_set(home, tmp_path, name=name)
        apply(home, *EVERYTHING, name=name)

    assert newest(home, "one") == newest(home, "two")


def test_two_versions_are_compared_row_by_row(home, tmp_path):
    make_set(home, tmp_path)
    apply(home, {"kind": "exclude", "rows": "2"})
    before = open_rows(home, "set:faq")
    answer = {"instruction": "Question 3?", "output": "Answer 3.\nAnd more."}
    apply(home, {"kind": "include", "rows": "2"}, {"kind": "edit", "row": 3, "record": answer})
    apply(home, {"kind": "exclude", "rows": "8"}, {"kind": "split", "rows": "5"})

    changes = [tuple(change.values()) for change in compare_versions(before, open_rows(home, "set:faq"))]

    assert changes == [
        (2, None, {**ROWS[1], "(held out)": False}),
        (3, {"output": "Answer 3."}, {"output": "Answer 3.\nAnd more."}),
        (5, {"(held out)": False}, {"(held out)": True}),
        (8, {**ROWS[7], "(held out)": False}, None),
    ]


def test_an_edit_can_mend_a_row_that_cannot_be_read(home, tmp_path):
    make_set(home, tmp_path, ["not JSON\n", *ROWS])

    apply(home, {"kind": "edit", "row": 1, "record": ROWS[0]})

    assert read(home)[1] == ROWS[0]


@pytest.mark.parametrize("damage", [lambda file: file.write_text("rows: many"), lambda file: file.unlink()])
def test_a_damaged_set_is_named_and_can_be_deleted(home, tmp_path, damage):
    dataset = make_set(home, tmp_path)
    damage(dataset.folder / "set.json")

    with pytest.raises(DatasetError, match="faq cannot be read"):
        find_set(home, "faq")
    with pytest.raises(DatasetError, match="faq is the name of a set"):
        make_set(home, tmp_path)
    assert set_names(home) == ["faq"]
    delete_set(set_folder(home, "faq"))
    assert list(home.datasets.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda file: file.write_text("{}"), lambda file: file.unlink()])
def test_a_copy_that_has_changed_is_an_error(home, tmp_path, damage):
    dataset = make_set(home, tmp_path)
    size = dataset.facts.copied_bytes
    damage(dataset.copy())

    with pytest.raises(DatasetError, match=f"The copy in the set faq has . bytes; it had {size}"):
        open_rows(home, "set:faq")


def test_what_a_killed_process_left_is_swept_after_a_day(home, tmp_path):
    make_set(home, tmp_path)
    for name, age in ((".new-old-1", 90_000), (".deleted-old-1", 90_000), (".new-young-1", 60)):
        folder = home.datasets / name
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)

    make_set(home, tmp_path, name="other")

    assert sorted(path.name for path in home.datasets.iterdir()) == [".new-young-1", "faq", "other"]


def test_a_renamed_set_is_found_by_every_name_that_it_had(home, tmp_path):
    make_set(home, tmp_path)
    apply(home, {"kind": "exclude", "rows": "1"})
    run = pinned("set:faq", home)

    rename_set(home, "faq", "help")
    rename_set(home, "faq", "support")

    assert set_names(home) == ["support"]
    assert pinned(run, home) == run.replace("faq", "support")
    assert list(read(home, run)) == list(read(home, "set:help")) == [2, 3, 4, 5, 6, 7, 8]
    assert news_of_set(run, home) == f"The set is now {run.replace('faq', 'support')}."
    rename_set(home, "support", "faq")
    assert news_of_set(run, home) == ""
    assert find_set(home, "support").name == "faq"
    delete_set(set_folder(home, "help"))
    assert "does not exist" in news_of_set(run, home)
    assert news_of_set("sample:lab-chats", home) == ""


def test_a_name_that_a_set_has_or_had_is_refused(home, tmp_path):
    make_set(home, tmp_path)
    make_set(home, tmp_path, name="other")
    rename_set(home, "faq", "help")

    for name in ("faq", "help", "other"):
        with pytest.raises(DatasetError, match=f"{name} is the name of a set, or was"):
            make_set(home, tmp_path, name=name)
    for name in ("faq", "help", "other"):
        with pytest.raises(DatasetError, match=f"{name} is the name of a set, or was"):
            rename_set(home, "other", name)
    for name in BAD_NAMES:
        with pytest.raises(DatasetError, match="cannot be the name of a set"):
            rename_set(home, "other", name)
    with pytest.raises(DatasetError, match="does not exist"):
        rename_set(home, "third", "new")
    assert set_names(home) == ["help", "other"]
    delete_set(set_folder(home, "help"))
    make_set(home, tmp_path, name="faq")


def test_a_process_that_was_killed_while_it_renamed_leaves_the_set_as_it_was(home, tmp_path, monkeypatch):
    make_set(home, tmp_path)
    monkeypatch.setattr(sets, "move_to_name", lambda *_: os._exit(0))
    process = multiprocessing.get_context("fork").Process(target=rename_set, args=(home, "faq", "help"))
    process.start()
    process.join()
    monkeypatch.undo()

    assert set_names(home) == ["faq"]
    rename_set(home, "faq", "help")
    assert find_set(home, "faq").name == "help"


def test_operations_that_arrive_while_a_set_is_renamed_are_all_added(home, tmp_path):
    make_set(home, tmp_path)
    opened = find_set(home, "faq")

    def edit(number):
        opened.append([operation(kind="note", rows="1", text=str(number))], since=None, author="ann")

    def rename(name):
        rename_set(home, "faq", name)

    with ThreadPoolExecutor(4) as threads:
        edits = [threads.submit(edit, number) for number in range(30)]
        names = [threads.submit(rename, f"name-{number}") for number in range(5)]
        for work in (*edits, *names):
            work.result()

    operations = [entry.operation for entry in find_set(home, "faq").entries]
    texts = sorted(int(each.text) for each in operations if isinstance(each, Mark))
    assert texts == list(range(30))


def messages_of(row):
    return row.example.messages


def test_a_set_has_the_images_of_its_rows_after_their_files_are_gone(home, tmp_path):
    (tmp_path / "red.png").write_bytes(picture("red", (40, 30)))
    rows = [{"instruction": "What?", "output": "Red.", "image": "red.png"}] * 2
    make_set(home, tmp_path, rows)
    (tmp_path / "red.png").unlink()
    apply(home, {"kind": "edit", "row": 1, "record": {**rows[0], "output": "A red square."}})

    reader = DatasetReader(DatasetConfig(source="set:faq"), SourceOptions(home=home))

    turns = [messages_of(row) for row in reader.rows()]
    assert [(question.images[0].width, answer.content) for question, answer in turns] == [
        (40, "A red square."),
        (40, "Red."),
    ]


def test_a_row_with_bytes_keeps_its_image_when_its_text_is_edited(home, tmp_path):
    row = {"instruction": "What?", "output": "Red.", "image": {"bytes": picture("red", (40, 30)), "path": "red.png"}}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    config = DatasetConfig(source=str(tmp_path / "rows.parquet"))
    add_set(home, "faq", config, author="ann", require_space=lambda _: None)
    record = json.loads(json.dumps(read(home)[1], default=str))  # as a page has it

    apply(home, {"kind": "edit", "row": 1, "record": {**record, "output": "A red square."}})

    (edit,) = DatasetReader(DatasetConfig(source="set:faq"), SourceOptions(home=home)).rows()
    question, answer = messages_of(edit)
    assert (question.images[0].width, answer.content) == (40, "A red square.")


def refs_of(config, home):
    rows = DatasetReader(config, SourceOptions(home=home)).rows()
    return [[ref for turn in messages_of(row) for ref in turn.images] for row in rows]


@pytest.mark.parametrize("form", ["file", "bytes", "parts"])
def test_an_exported_set_has_its_images_as_files_that_read_as_they_were(home, tmp_path, form):
    (tmp_path / "red.png").write_bytes(picture("red", (40, 30)))
    (tmp_path / "blue.png").write_bytes(picture("blue", (20, 20)))
    if form == "parts":
        images = [{"type": "image", "image": name} for name in ("red.png", "blue.png")]
        question = {"role": "user", "content": [*images, {"type": "text", "text": "What is red.png?"}]}
        rows = [{"messages": [question, {"role": "assistant", "content": "Red."}]}] * 3
        make_set(home, tmp_path, rows)
    elif form == "file":
        make_set(
            home, tmp_path, [{"instruction": "red.png", "output": "red.png", "images": ["red.png", "blue.png"]}] * 3
        )
    else:
        cells = [{"bytes": (tmp_path / name).read_bytes(), "path": name} for name in ("red.png", "blue.png")]
        table = pyarrow.Table.from_pylist([{"instruction": "What?", "output": "Red.", "images": cells}] * 3)
        pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
        config = DatasetConfig(source=str(tmp_path / "rows.parquet"))
        add_set(home, "faq", config, author="ann", require_space=lambda _: None)
    (tmp_path / "out").mkdir()

    export_version(open_rows(home, "set:faq"), tmp_path / "out" / "faq.jsonl", home)

    file_config = DatasetConfig(source=str(tmp_path / "out" / "faq.jsonl"))
    before = refs_of(DatasetConfig(source="set:faq"), home)
    assert [len(refs) for refs in before] == [2, 2, 2]
    assert refs_of(file_config, home) == before
    fingerprints = [
        check_dataset(config, SourceOptions(home=home)).fingerprint
        for config in (DatasetConfig(source="set:faq"), file_config)
    ]
    assert fingerprints[0] == fingerprints[1]
    assert len(list((tmp_path / "out" / "faq-images").iterdir())) == 2
    text = (tmp_path / "out" / "faq.jsonl").read_text()
    assert "media:" not in text
    if form == "file":
        assert '"instruction": "red.png", "output": "red.png", "images": ["faq-images/' in text
    elsewhere = LoratoryHome(tmp_path / "elsewhere")  # where nothing is stored
    assert [[ref.width for ref in refs] for refs in refs_of(file_config, elsewhere)] == [[40, 20]] * 3


def test_a_deleted_set_takes_no_images_from_another(home, tmp_path):
    (tmp_path / "red.png").write_bytes(picture("red", (40, 30)))
    make_set(home, tmp_path, [{"instruction": "What?", "output": "Red.", "image": "red.png"}] * 2)
    config = DatasetConfig(source=str(next(tmp_path.glob("*.jsonl"))))
    add_set(home, "other", config, author="ann", require_space=lambda _: None)
    (tmp_path / "red.png").unlink()

    delete_set(find_set(home, "faq").folder)

    assert [len(refs) for refs in refs_of(DatasetConfig(source="set:other"), home)] == [1, 1]
