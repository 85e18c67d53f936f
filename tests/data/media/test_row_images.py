"""Images in rows: every way in which datasets have them, where they come in turns, and rows that are refused."""

import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import PageRequest
from loratory.engine.data.conversation import IMAGE_MARK as M
from loratory.engine.data.files.access import DataAccess
from loratory.engine.data.media.row_images import MAX_IMAGES
from loratory.engine.data.passes.check import check_steps, finish
from loratory.engine.data.passes.page import read_page, search_rows
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.passes.row_form import read_row_form
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.checks.run import row_check_steps
from loratory.engine.data.workshop.checks.settings import CheckSettings
from loratory.engine.errors import DatasetError
from tests.data.checks import write_rows
from tests.data.pictures import data_url, file_of, noise, picture

RED, BLUE = picture("red", (40, 30)), picture("blue", (20, 10), "JPEG")


@pytest.fixture
def folder(tmp_path):
    """Return a folder with two pictures."""
    folder = tmp_path / "data"
    (folder / "pictures").mkdir(parents=True)
    (folder / "red.png").write_bytes(RED)
    (folder / "pictures" / "blue.jpg").write_bytes(BLUE)
    return folder


def turns(*contents, **columns):
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)], **columns}


def reader_of(path, home, **config):
    return DatasetReader(DatasetConfig(source=str(path), **config), SourceOptions(home=home))


def read(path, home, **config):
    return list(reader_of(path, home, **config).rows())


def read_one(folder, home, row, **config):
    (read_row,) = read(write_rows(folder / "rows.jsonl", [row]), home, **config)
    return read_row


def read_turns(row):
    """Return the turns of a row, with the widths of their images."""
    assert row.example is not None, row.problem
    return [(m.content, *(image.width for image in m.images)) for m in row.example.messages]


PART_RED, PART_BLUE = {"type": "image", "path": "red.png"}, {"type": "image", "image": "pictures/blue.jpg"}
# Rows, and what is read of them.
FORMS = {
    "LLaMA-Factory": (
        turns("<image>What?", "Red.", "And <image>?", "Blue.", images=["red.png", "pictures/blue.jpg"]),
        [(f"{M}What?", 40), ("Red.",), (f"And {M}?", 20), ("Blue.",)],
    ),
    "LLaVA": (
        {"image": "red.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "R"}]},
        [(f"{M}\nWhat?", 40), ("R",)],
    ),
    "no place in the text": (
        {"question": "What?", "answer": "Both.", "images": ["red.png", "pictures/blue.jpg"]},
        [(f"{M}{M}What?", 40, 20), ("Both.",)],
    ),
    "a system prompt first": (
        {"system": "Be brief.", **turns("What?", "Red.", image="red.png")},
        [("Be brief.",), (f"{M}What?", 40), ("Red.",)],
    ),
    "Alpaca": (
        {"instruction": "<image>What?", "input": "", "output": "Red.", "images": ["red.png"]},
        [(f"{M}What?", 40), ("Red.",)],
    ),
    "TRL: parts and a column": (
        turns([{"type": "image"}, {"type": "text", "text": "A <image>?"}], [{"type": "text", "text": "R"}], images=["red.png"]),
        [(f"{M}A <image>?", 40), ("R",)],
    ),
    "TRL: prompt and completion": (
        {"prompt": turns([{"type": "text", "text": "What?"}, {"type": "image"}])["messages"],
         "completion": [{"role": "assistant", "content": "Red."}], "image": "red.png"},
        [(f"What?{M}", 40), ("Red.",)],
    ),
    "parts that number the column's": (
        turns([{"type": "image", "index": 1, "text": None}, {"type": "image", "index": 0}, {"type": "text", "text": "?"}], "R",
              images=["red.png", "pictures/blue.jpg"]),
        [(f"{M}{M}?", 20, 40), ("R",)],
    ),
    "parts with their images": (
        turns([PART_RED, "What?", PART_BLUE], "Red.", ["And", PART_RED], "Red again."),
        [(f"{M}What?{M}", 40, 20), ("Red.",), (f"And{M}", 40), ("Red again.",)],
    ),
    "OpenAI": (
        turns([{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": data_url(BLUE, "jpeg"), "detail": "low"}}], "R"),
        [(f"What?{M}", 20), ("R",)],
    ),
    "the assistant's image": (
        turns("Draw.", [{"type": "image", "image": "red.png"}, {"type": "text", "text": "Here."}]),
        [("Draw.",), (f"{M}Here.", 40)],
    ),
    "data URLs in a column": (turns("What?", "Red.", images=[data_url(RED)]), [(f"{M}What?", 40), ("Red.",)]),
    "marks in the data's text": (
        turns(f"Wh{M}at?", f"Re{M}d.", image="red.png"),
        [(f"{M}What?", 40), ("Red.",)],
    ),
    "marks in the text of parts": (
        turns([PART_RED, {"type": "text", "text": f"Wh{M}at?"}], "Red."),
        [(f"{M}What?", 40), ("Red.",)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_images_come_where_the_row_has_them(folder, home, form):
    row, expected = FORMS[form]

    assert read_turns(read_one(folder, home, row)) == expected


def test_text_rows_stand_beside_image_rows(folder, home):
    rows = [turns("What?", "R", images=["red.png"]), turns("Text", "alone"), turns("Text", "too", images=[]),
            turns(f"And <image> without{M} a column?", "Text.", images=None)]  # fmt: skip
    rows = read(write_rows(folder / "rows.jsonl", rows), home)

    assert [read_turns(row)[0] for row in rows[:3]] == [(f"{M}What?", 40), ("Text",), ("Text",)]
    assert "1 place for images in its turns, and images has 0" in rows[3].problem


def test_a_tag_is_text_where_no_column_has_images(folder, home):
    assert read_turns(read_one(folder, home, turns(f"What is <image>{M} in HTML?", "A tag."))) == [
        ("What is <image> in HTML?",), ("A tag.",)
    ]  # fmt: skip


def test_pairs_share_the_images_of_their_prompt(folder, home):
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    answers = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in ("Red.", "Blue.")]
    rows = [
        {"prompt": prompt, "chosen": answers[0], "rejected": answers[1], "images": ["red.png"]},
        {"chosen": prompt + answers[0], "rejected": prompt + answers[1], "images": ["red.png"]},
        {"prompt": "<image>What?", "chosen": "Red.", "rejected": "Blue.", "images": ["red.png"]},
    ]
    for row in rows:
        example = read_one(folder, home, row).example
        for side in example.sides():
            assert next((m.content, len(m.images)) for m in side.messages) == (f"{M}What?", 1)
        assert example.rejected[0].content == "Blue."


def test_a_column_of_any_name_can_be_mapped_or_left_out(folder, home):
    row = turns("What?", "R", photo="red.png", image="pictures/blue.jpg")

    assert read_turns(read_one(folder, home, row, column_map={"images": "photo"}))[0] == (f"{M}What?", 40)
    assert read_turns(read_one(folder, home, row, column_map={"images": ""}))[0] == ("What?",)
    assert read_turns(read_one(folder, home, row, format="messages"))[0] == (f"{M}What?", 20)


def test_a_column_that_only_has_such_a_name_is_not_one_of_images(folder, home):
    row = read_one(folder, home, turns("What?", "R", images=3, image="a red square"))

    assert read_turns(row) == [("What?",), ("R",)]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "rows.parquet.gz"])
def test_bytes_in_columns_of_arrow_are_read(folder, home, name):
    rows = [
        turns("What?", "Red.", pictures=[{"bytes": RED, "path": None}, {"bytes": BLUE, "path": "b.jpg"}]),
        turns("Which?", "Blue.", pictures=[{"bytes": None, "path": "red.png"}]),
        turns("None?", "None.", pictures=None),
    ]
    table, path = pyarrow.Table.from_pylist(rows), folder / name.removesuffix(".gz")
    if ".parquet" in name:
        pyarrow.parquet.write_table(table, path)
        if name.endswith(".gz"):
            path.with_name(name).write_bytes(gzip.compress(path.read_bytes()))
    else:
        with pyarrow.ipc.new_file(path, table.schema) as file:
            file.write_table(table)

    rows = read(folder / name, home)

    assert [read_turns(row)[0] for row in rows] == [(f"{M}{M}What?", 40, 20), (f"{M}Which?", 40), ("None?",)]
    assert "media:" in rows[0].record.sample(1000)


def test_plain_bytes_and_large_images_of_parquet_are_read(folder, home):
    large = file_of(noise((2600, 1400)))
    assert len(large) > 8 << 20
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"question": "What?", "answer": "Noise.", "image": large}]), folder / "rows.parquet"
    )

    assert read_turns(read(folder / "rows.parquet", home)[0])[0] == (f"{M}What?", 2600)


def test_files_of_tables_and_folders_name_images(folder, home):
    (folder / "rows.csv").write_text(
        'question,answer,images\nWhat?,Red.,"[""red.png"", ""pictures/blue.jpg""]"\nNo?,No.,\n'
    )
    assert [read_turns(row)[0] for row in read(folder / "rows.csv", home)] == [(f"{M}{M}What?", 40, 20), ("No?",)]
    (folder / "rows.csv").unlink()

    below = {"question": "Blue?", "answer": "Yes.", "file_name": "blue.jpg"}
    write_rows(folder / "metadata.jsonl", [{"question": "Red?", "answer": "Yes.", "file_name": "red.png"}])
    write_rows(folder / "pictures" / "metadata.jsonl", [below, below])
    assert [read_turns(row)[0] for row in read(folder, home)] == [
        (f"{M}Red?", 40),
        (f"{M}Blue?", 20),
        (f"{M}Blue?", 20),
    ]


def test_captions_become_answers(folder, home):
    write_rows(folder / "metadata.jsonl", [{"file_name": "red.png", "text": "A red square."}])

    (row,) = read(folder, home)

    assert read_turns(row) == [(M, 40), ("A red square.",)]


PROBLEMS = {
    "fewer places": (turns("<image>?", "R", images=["red.png"] * 2), "1 place for images in its turns, and images has 2"),
    "more places": (turns("<image><image>?", "R", images=["red.png"]), "2 places for images in its turns, and images has 1"),
    "a part without an image": (turns([{"type": "image"}], "R"), "1 place for images in its turns, and no column has images"),
    "a number beyond the column": (turns([{"type": "image", "index": 4}], "R", images=["red.png"]), "images has 1"),
    "no turn of the user": ({"messages": [{"role": "assistant", "content": "R"}], "images": ["red.png"]}, "no turn is the user's"),
    "in the reasoning": (turns("?", "<think><image></think>R", images=["red.png"]), "in its reasoning"),
    "an address": (turns("?", "R", image="https://example.com/a.png"), "https://example.com/a.png is an address, and nothing is"),
    "an address of a part": (
        turns([{"type": "image_url", "image_url": {"url": "http://example.com/a.png"}}], "R"), "is an address",
    ),
    "another protocol": (turns([{"type": "image", "url": "file:///etc/passwd"}], "R"), "is an address"),
    "a missing file": (turns("?", "R", image="none.png"), "image 1 cannot be read: The file or folder none.png was not found"),
    "a folder": (turns([{"type": "image", "path": "pictures"}], "R"), "pictures is not a regular file"),
    "a NUL in the name": (turns([{"type": "image", "path": "a\0.png"}], "R"), "NUL"),
    "a data URL of text": (turns("?", "R", image="data:image/svg+xml,<svg/>"), "is not in base64"),
    "a data URL of nothing": (turns("?", "R", image="data:image/png;base64,"), "it is empty"),
    "a data URL of rubbish": (turns("?", "R", image="data:image/png;base64,AAAA!!!é"), "cannot be read"),
    "a number": (turns("?", "R", images=["red.png", 3]), "image 2 cannot be read: it is the number 3"),
    "too many": (turns("?", "R", images=["none.png"] * 10_000), f"it has 10,000 images; {MAX_IMAGES} is the most"),
    "too many parts": (turns([{"type": "image", "path": "none.png"}] * 10_000, "R"), "it has 10,000 images"),
    "an image not in the store": (turns([{"type": "image", "path": f"media:{'0' * 64}"}], "R"), "media store does not have it"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_row_whose_images_cannot_be_read_is_left_out_with_the_reason(folder, home, name):
    row, reason = PROBLEMS[name]

    problem = read_one(folder, home, row)

    assert problem.example is None
    assert reason in problem.problem
    assert problem.kind in ("image", "too_long")


def test_a_pipe_is_not_waited_for(folder, home):
    os.mkfifo(folder / "pipe.png")

    assert "not a regular file" in read_one(folder, home, turns("?", "R", image="pipe.png")).problem


@pytest.mark.parametrize("name", ["../secret.png", "link.png", "{outside}"])
def test_files_of_images_are_confined_as_data_files_are(folder, home, tmp_path, name):
    (tmp_path / "secret.png").write_bytes(RED)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    image = name.format(outside=tmp_path / "secret.png")
    path = write_rows(folder / "rows.jsonl", [turns("?", "R", image=image), turns("?", "R", image="red.png")])

    options = SourceOptions(access=DataAccess((folder,)), home=home)
    hidden, own = DatasetReader(DatasetConfig(source=str(path)), options).rows()

    assert "Not found in the folders that this page may read" in hidden.problem
    assert own.example is not None


def test_a_person_of_a_lab_reads_no_image_of_another(home):
    ann, bob = (home.for_person(name) for name in ("ann", "bob"))
    for person in (ann, bob):
        person.uploads.mkdir(parents=True)
    (ann.uploads / "red.png").write_bytes(RED)
    ref = read_one(ann.uploads, ann, turns("?", "R", image="red.png")).example.messages[0].images[0]
    assert (ann.media / ref.digest[:2]).is_dir()

    guesses = [f"media:{ref.digest}", str(ann.uploads / "red.png"), "../ann/red.png",
               f"../../media/ann/{ref.digest[:2]}/{ref.digest}-40x30.png"]  # fmt: skip
    rows = read(
        write_rows(bob.uploads / "rows.jsonl", [turns([{"type": "image", "path": g}], "R") for g in guesses]), bob
    )

    assert [row.example for row in rows] == [None] * 4


def test_rows_with_other_images_are_no_duplicates(folder, home):
    rows = [turns("What?", "R", image=name) for name in ("red.png", "pictures/blue.jpg", "red.png")]
    path = write_rows(folder / "rows.jsonl", rows)
    report = finish(check_steps(DatasetConfig(source=str(path)), SourceOptions(home=home), seed=1))

    assert (report.kept, report.duplicate_rows) == (3, (2,))


def test_row_checks_compare_the_images_of_questions(folder, home):
    names = ("red.png", "pictures/blue.jpg", "red.png", "red.png")
    rows = [turns("Which color does this square have?", "R", image=name) for name in names[:3]]
    rows.append(turns("Which color does this one square have?", "R", image="red.png"))
    path = write_rows(folder / "rows.jsonl", rows)
    steps = row_check_steps(
        DatasetConfig(source=str(path)),
        SourceOptions(home=home),
        CheckSettings(),
        ("duplicates", "near_duplicates"),
        seed=1,
    )
    exact, near = finish(steps).checks

    assert (exact.all_rows, near.all_rows) == ((2,), (3,))


def test_a_changed_file_changes_the_report_though_the_rows_are_the_same(folder, home):
    path = write_rows(folder / "rows.jsonl", [turns("What?", "R", image="red.png"), turns("a", "b")])

    def check():
        return finish(check_steps(DatasetConfig(source=str(path)), SourceOptions(home=home), seed=1))

    before = check()
    (folder / "red.png").write_bytes(picture("green"))
    after = check()

    assert before.fingerprint != after.fingerprint
    assert before.source_fingerprint == after.source_fingerprint


def test_search_finds_names_of_files_and_not_letters_of_embedded_images(folder, home):
    rows = [turns("one", "R", image=data_url(file_of(noise()))), turns("two", "R", image="red.png"), turns("qxz", "R")]
    reader = reader_of(write_rows(folder / "rows.jsonl", rows), home)

    assert [finish(search_rows(reader, text, -1)).row for text in ("red.png", "qxz", "image/png")] == [1, 2, 0]
    letters = data_url(file_of(noise())).partition(",")[2][200:203]
    assert finish(search_rows(reader, letters, -1)).row != 0


def test_warnings_are_by_row_and_image(folder, home):
    (folder / "cmyk.jpg").write_bytes(picture((0, 255, 255, 0), form="JPEG", mode="CMYK"))
    row = turns("What?", "R", images=["red.png", "cmyk.jpg"])
    for _ in range(2):  # also once it is stored
        assert read_one(folder, home, row).notices == (
            ("image", "image 2 is in CMYK, and is read as RGB without its color profile"),
        )


def test_a_page_sends_the_images_of_its_rows(folder, home):
    reader = reader_of(write_rows(folder / "rows.jsonl", [turns("x" * 60_000 + "<image>", "R", image="red.png"),
                                                          turns("What?", "R", image="red.png")]), home)  # fmt: skip
    page = json.loads(finish(read_page(reader, PageRequest())).model_dump_json())

    clipped, whole = (row["conversation"]["messages"][0]["images"] for row in page["rows"])
    assert clipped == []
    assert (whole[0]["width"], whole[0]["height"], len(whole[0]["digest"])) == (40, 30, 64)


def test_a_short_script_reads_images_of_a_column_and_refuses_those_among_parts(folder, home):
    path = write_rows(folder / "rows.jsonl", [turns("What?", "R", image="red.png")])
    assert read_row_form(DatasetConfig(source=str(path)), SourceOptions(home=home)).image_column == "image"

    question = {"role": "user", "content": [{"type": "image", "image": "red.png"}, {"type": "text", "text": "What?"}]}
    path = write_rows(folder / "parts.jsonl", [{"messages": [question, {"role": "assistant", "content": "R"}]}])
    with pytest.raises(DatasetError, match="has images among the parts of its turns"):
        read_row_form(DatasetConfig(source=str(path)), SourceOptions(home=home))
