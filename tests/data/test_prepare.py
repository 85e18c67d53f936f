"""What the trainer gets, and which rows it holds out."""

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.passes.check import finish
from loratory.engine.data.passes.prepare import held_out_steps, prepare_dataset
from loratory.engine.data.passes.reader import DatasetReader, Renderer
from loratory.engine.data.source import SourceOptions
from tests.data.checks import write_rows, yield_at_every_row
from tests.data.families import shared_tokenizer


@pytest.fixture
def tokenizer():
    return shared_tokenizer("qwen3")


@pytest.fixture
def file(tmp_path):
    def turns(number):
        return [
            {"from": "human", "value": f"One {number}?"},
            {"from": "gpt", "value": f"Two {number}."},
            {"from": "human", "value": "Three?"},
            {"from": "gpt", "value": "Four."},
        ]

    rows = [{"conversations": turns(number % 18)} for number in range(20)] + [{"conversations": []}]
    return write_rows(tmp_path / "rows.jsonl", rows)


def prepare(source, home, tokenizer, on_progress=None, **settings):
    config = DatasetConfig(source=str(source), **settings)
    return prepare_dataset(config, seed=1, max_length=512, tokenizer=tokenizer, home=home, on_progress=on_progress)


def test_the_trainer_gets_the_tokens_that_every_other_view_shows(file, home, tokenizer):
    data = prepare(file, home, tokenizer, eval_fraction=0.25)

    views = {}
    for dataset_row in DatasetReader(DatasetConfig(source=str(file)), SourceOptions(), Renderer(tokenizer, 512)).rows():
        for sequence in dataset_row.rendering.rows if dataset_row.rendering else ():
            views[sequence.row, sequence.part] = (sequence.input_ids, sequence.labels)
    rows = [*data.train, *data.held_out]
    assert {(row.row, row.part): (row.input_ids, row.labels) for row in rows} == views
    assert len(rows) == len(views) == data.report.sequences == 40  # two for each row: Qwen3 rewrites earlier turns
    assert sum(len(row.input_ids) for row in rows) == data.report.total_tokens
    assert sum(row.trained_tokens for row in rows) == data.report.trained_tokens
    assert data.train.trained_tokens == sum(row.trained_tokens for row in data.train)
    assert data.train.trained_tokens + data.held_out.trained_tokens == data.report.trained_tokens


def test_all_sequences_of_a_row_and_of_its_duplicates_are_on_one_side(file, home, tokenizer):
    data = prepare(file, home, tokenizer, eval_fraction=0.3)

    def texts(rows):
        return {tuple(row.input_ids) for row in rows}

    assert not texts(data.train) & texts(data.held_out)
    assert not {row.row for row in data.train} & {row.row for row in data.held_out}
    assert {row.row for row in data.held_out}
    assert len({row.row for row in data.train}) == data.report.train_rows
    assert len({row.row for row in data.held_out}) == data.report.held_out_rows


def test_rows_behave_like_a_sequence(file, home, tokenizer):
    train = prepare(file, home, tokenizer, eval_fraction=0).train

    assert train[0] == next(iter(train))
    assert train[-1] == list(train)[-1]
    assert list(train[2:5]) == list(train)[2:5]
    assert train.lengths() == [len(row.input_ids) for row in train]
    with pytest.raises(IndexError):
        train[len(train)]


def test_held_out_rows_are_those_of_the_trainer_and_a_few_of_them_are_spread_evenly(tmp_path, home, tokenizer):
    rows = [{"instruction": f"Question {number}?", "output": f"Answer {number}."} for number in range(60)]
    rows[7] = {"instruction": "", "output": ""}  # left out, so positions and row numbers differ
    config = DatasetConfig(source=str(write_rows(tmp_path / "rows.jsonl", rows)), eval_fraction=0.2)
    data = prepare(config.source, home, tokenizer, eval_fraction=0.2)
    options, renderer = SourceOptions(home=home), Renderer(tokenizer, 512)

    every, few = (finish(held_out_steps(config, options, seed=1, renderer=renderer, count=count)) for count in (200, 3))

    assert list(every.rows) == sorted({row.row for row in data.held_out})
    assert every.total == few.total == len(every.rows) == 12
    assert few.rows == (every.rows[0], every.rows[4], every.rows[8])


def test_the_sample_bounds_the_rows(file, home, tokenizer):
    data = prepare(file, home, tokenizer, max_samples=10, eval_fraction=0.2)

    assert len({row.row for row in [*data.train, *data.held_out]}) == 10


def test_a_listener_that_raises_stops_the_work(tmp_path, home, tokenizer, monkeypatch):
    yield_at_every_row(monkeypatch)
    path = write_rows(tmp_path / "rows.jsonl", [{"instruction": "x", "output": "y"}] * 1000)

    def stop(progress):
        raise InterruptedError(progress.rows)

    with pytest.raises(InterruptedError, match="1"):
        prepare(path, home, tokenizer, on_progress=stop)


@pytest.mark.parametrize("sample", ["sample:loratory-faq", "sample:lab-chats"])
def test_the_samples_that_ship_are_kept_whole(sample, home, tokenizer):
    data = prepare(sample, home, tokenizer)

    assert data.report.dropped == 0
    assert data.report.duplicates == 0
    assert not data.report.notices
