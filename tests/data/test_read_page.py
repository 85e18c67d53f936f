"""Pages of rows."""

import gzip
import json

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import MAX_SEARCH_CHARACTERS, FoundRow, PageRequest, SearchProgress, searchable
from loratory.engine.data.files import open_file, text_stream
from loratory.engine.data.files.access import unpacked_pieces
from loratory.engine.data.files.base import STRIDE
from loratory.engine.data.passes.check import finish
from loratory.engine.data.passes.page import find_row, read_page, search_rows
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import DatasetError
from tests.data.checks import write_rows, yield_at_every_row
from tests.data.families import renderer_of

COUNT = 5 * STRIDE + 7


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write the same rows as every kind of file, with one bad row."""
    folder = tmp_path_factory.mktemp("pages")
    rows = [
        {"instruction": f"Question {number}", "output": f"Answer {number}" if number != 3 else ""}
        for number in range(COUNT)
    ]
    write_rows(folder / "rows.jsonl", rows)
    (folder / "rows.json").write_text(json.dumps(rows, indent=1))
    lines = "".join(f"{row['instruction']},{row['output']}\n" for row in rows)
    (folder / "rows.csv").write_text("instruction,output\n" + lines)
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=1000)
    (folder / "utf16.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-16")
    many = folder / "many"
    many.mkdir()
    for part in range(3):
        share = rows[part * 2000 : (part + 1) * 2000]
        write_rows(many / f"train-{part}.jsonl", share)
    (many / "test-0.jsonl").write_text('{"instruction": "not", "output": "this split"}\n')
    (many / "notes.pdf").write_bytes(b"%PDF")
    return folder


def page(reader, **request):
    return finish(read_page(reader, PageRequest(**request)))


def open_reader(path, home=None, renderer=None, **settings):
    return DatasetReader(DatasetConfig(source=str(path), **settings), SourceOptions(home=home), renderer)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "utf16.jsonl", "many"])
def test_any_row_of_any_kind_of_file_can_be_shown_before_and_after_it_is_indexed(files, home, name):
    for _ in range(2):
        for first_row in (0, 2, STRIDE - 1, 4 * STRIDE + 5, COUNT - 2, 10 * COUNT):
            reader = open_reader(files / name, home)
            rows = page(reader, first_row=first_row, count=3)

            assert [row.row for row in rows.rows] == list(range(first_row, min(first_row + 3, COUNT)))
            for row in rows.rows:
                if row.row == 3:
                    assert row.problem
                else:
                    assert row.conversation.messages[-1].content == f"Answer {row.row}"
            assert rows.next_row == (first_row + 3 if first_row + 3 < COUNT else None)
    assert page(open_reader(files / name, home), first_row=0).total_rows == COUNT


def find_texts(reader, text, after_row):
    """Return where a search ended, and its progress."""
    progress: list[SearchProgress] = []
    return finish(search_rows(reader, text, after_row), progress.append), progress


def test_a_search_continues_from_the_top_and_ends_where_it_began(files, monkeypatch):
    yield_at_every_row(monkeypatch)
    reader = open_reader(files / "rows.jsonl")

    assert find_texts(reader, "ANSWER 12", 11)[0] == FoundRow(row=12)
    assert find_texts(reader, "answer 12", COUNT - 2)[0] == FoundRow(row=12, from_top=True)
    assert find_texts(reader, "answer 12", 12)[0] == FoundRow(row=120)
    nowhere, steps = find_texts(reader, "no such words", 1000)

    assert nowhere == FoundRow(row=None)
    assert steps[-1].rows == COUNT  # no row twice
    assert steps[-1].fraction == 1


def test_a_search_reads_what_escapes_mean(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ['{"text": "tea"}\n', '{"text": "caf\\u00e9"}\n'])

    assert find_texts(open_reader(path), "CAFÉ", -1)[0] == FoundRow(row=1)


def test_a_text_too_long_to_search_for_is_refused_with_a_message():
    assert searchable("x" * MAX_SEARCH_CHARACTERS)
    with pytest.raises(DatasetError, match=r"has 1,001 characters; 1,000 are the most"):
        searchable("x" * (MAX_SEARCH_CHARACTERS + 1))


def test_chosen_rows_come_in_the_order_asked_for(files):
    rows = page(open_reader(files / "rows.jsonl"), rows=(4000, 5, 3))

    assert [row.row for row in rows.rows] == [4000, 5, 3]
    assert rows.rows[2].problem == "the answer is empty"


def test_tokens_are_shown_with_a_tokenizer_and_counted_on_a_brief_page(files):
    renderer = renderer_of(512)
    reader = open_reader(files / "rows.jsonl", renderer=renderer)

    (row,) = page(reader, count=1).rows
    (brief,) = page(reader, rows=(0,), brief=True).rows

    (sequence,), spans = row.sequences, row.sequences[0].spans
    assert sum(span.tokens for span in spans) == sequence.tokens
    assert sum(span.tokens for span in spans if span.trained) == sequence.trained_tokens
    assert "".join(span.text for span in spans if span.trained) == "Answer 0<|im_end|>"
    assert [span.text for span in spans if span.special][:2] == ["<|im_start|>", "<|im_end|>"]
    assert all(span.tokens == 1 for span in spans if span.special)
    assert all(len(span.ids) == len(span.lengths) == span.tokens for span in spans)
    assert all(sum(span.lengths) == len(span.text) for span in spans)
    text = renderer.tokenizer.decode([token for span in spans for token in span.ids])
    assert text == "".join(span.text for span in spans)
    assert brief.sequences == (sequence.model_copy(update={"spans": ()}),)


@pytest.mark.parametrize(
    ("train_on", "learned"),
    [("assistant", (2, 4)), ("last_assistant", (4,)), ("completion", (4,)), ("all", (0, 1, 2, 3, 4))],
)
def test_a_page_shows_which_turns_are_trained(tmp_path, train_on, learned):
    turns = [("assistant", "Hello!"), ("user", "Why?"), ("assistant", "So."), ("user", "How?"), ("assistant", "Thus.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": messages}])

    (row,) = page(open_reader(path, train_on=train_on)).rows

    assert row.trained_turns == learned


@pytest.mark.parametrize("row", [-1, COUNT, 10**12])
def test_a_row_that_is_not_there_is_reported_missing(files, row):
    with pytest.raises(DatasetError, match=r"Row .* does not exist"):
        find_row(open_reader(files / "rows.jsonl"), row)


def test_a_jump_reads_no_more_than_a_stride_once_the_file_is_indexed(files, home, monkeypatch):
    list(open_reader(files / "rows.jsonl", home).records())
    reader = open_reader(files / "rows.jsonl", home)
    parsed = []
    original = reader.parts[0].source._reader.read
    monkeypatch.setattr(
        reader.parts[0].source._reader,
        "read",
        lambda start, rows: (parsed.append(record) or record for record in original(start, rows)),
    )

    page(reader, first_row=COUNT - 5, count=2)

    assert len(parsed) <= STRIDE + 10


def test_an_index_belongs_to_one_content(files, home, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n' * 10)
    list(open_reader(path, home).records())
    path.write_text('{"text": "b"}\n' * 20)

    assert open_reader(path, home).total_rows == 20
    assert page(open_reader(path, home), first_row=15, count=1).rows[0].text == "b"


def test_a_damaged_index_is_rebuilt(tmp_path):
    path, cache = tmp_path / "rows.jsonl", tmp_path / "cache"
    path.write_text('{"text": "a"}\n' * 3)
    list(open_file(path, cache).records())
    (index,) = cache.glob("*.rows.json")
    index.write_text('{"positions": [[0')

    damaged = open_file(path, cache)

    assert damaged.total_rows is None
    assert len(list(damaged.records())) == 3
    assert open_file(path, cache).total_rows == 3


def test_a_page_shows_the_beginning_of_a_very_long_row(tmp_path, monkeypatch):
    monkeypatch.setattr("loratory.engine.data.passes.page.MAX_SHOWN_CHARACTERS", 100)
    monkeypatch.setattr("loratory.engine.data.passes.page.MAX_SHOWN_TOKENS", 20)
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Why?", "completion": "one " * 100}])
    renderer = renderer_of()

    (row,) = page(open_reader(path, renderer=renderer)).rows

    assert row.conversation.messages[1].content.endswith("… and 300 more characters")
    assert sum(span.tokens for span in row.sequences[0].spans) == 20
    assert row.sequences[0].tokens > 100


def unpacked_bytes(monkeypatch) -> list[int]:
    """Record the sizes of pieces that are unpacked from here on."""
    sizes = []
    original = unpacked_pieces

    def count_pieces(*arguments):
        for piece in original(*arguments):
            sizes.append(len(piece))
            yield piece

    monkeypatch.setattr(text_stream, "unpacked_pieces", count_pieces)
    return sizes


@pytest.mark.parametrize("is_indexed", [True, False])
def test_rows_of_a_gzipped_file_come_from_one_pass(files, home, tmp_path, monkeypatch, is_indexed):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress((files / "rows.jsonl").read_bytes()))
    size = (files / "rows.jsonl").stat().st_size
    monkeypatch.setattr(text_stream, "CHUNK_BYTES", 4096)
    reader = open_reader(path, home)
    if is_indexed:
        assert sum(1 for _ in reader.rows()) == COUNT
    expected = tuple(range(COUNT - 1, 0, -25))[:200]
    sizes = unpacked_bytes(monkeypatch)

    rows = page(reader, rows=expected)

    assert [row.row for row in rows.rows] == list(expected)
    assert [row.conversation.messages[0].content for row in rows.rows] == [f"Question {row}" for row in expected]
    assert 0 < sum(sizes) <= size


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "utf16.jsonl", "many"])
def test_chosen_rows_are_found_in_any_kind_of_file_and_missing_ones_are_named(files, home, name):
    for _ in range(2):
        reader = open_reader(files / name, home, mix={str(files / "rows.csv"): 1.0})
        expected = (COUNT + 8, 4 * STRIDE + 5, 7, COUNT - 1, 7, 2 * COUNT - 1)

        rows = page(reader, rows=expected)

        assert [row.row for row in rows.rows] == list(expected)
        assert [row.conversation.messages[1].content for row in rows.rows] == [
            f"Answer {row % COUNT}" for row in expected
        ]
        with pytest.raises(
            DatasetError, match=f"Row {2 * COUNT + 1:,} does not exist in this dataset; it has {2 * COUNT:,}"
        ):
            page(reader, rows=(3, 2 * COUNT))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "utf16.jsonl"])
def test_a_jump_into_a_file_that_was_never_read_gives_its_turn_away(files, monkeypatch, name):
    yield_at_every_row(monkeypatch)
    row = 4 * STRIDE
    steps = read_page(open_reader(files / name), PageRequest(first_row=row, count=1))

    assert sum(1 for _ in steps) >= row
