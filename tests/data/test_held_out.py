"""The rows that are said to be held out are those that the trainer measures itself on."""

import pytest

from engine.config.run import DatasetConfig
from engine.data.contract import HeldOutRows
from engine.data.passes.check import finish
from engine.data.passes.prepare import held_out_steps, prepare_dataset
from engine.data.passes.reader import Renderer
from engine.data.source import SourceOptions
from tests.data.checks import write_rows
from tests.data.families import family, tokenizer_of


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(family("qwen3"))


@pytest.fixture
def config(tmp_path) -> DatasetConfig:
    rows = [{"instruction": f"Question {number}?", "output": f"Answer {number}."} for number in range(60)]
    rows[7] = {"instruction": "", "output": ""}  # left out, so positions and row numbers differ
    return DatasetConfig(source=str(write_rows(tmp_path / "rows.jsonl", rows)), eval_fraction=0.2)


def find_held_out(config, tokenizer, home, count) -> HeldOutRows:
    steps = held_out_steps(config, SourceOptions(home=home), seed=3, renderer=Renderer(tokenizer, 256), count=count)
    return finish(steps)


def test_they_are_those_of_the_trainer(config, tokenizer, home):
    data = prepare_dataset(config, seed=3, max_length=256, tokenizer=tokenizer, home=home)

    held_out = find_held_out(config, tokenizer, home, 200)

    assert list(held_out.rows) == sorted({row.row for row in data.held_out})
    assert held_out.total == len(held_out.rows) == 12


def test_of_many_a_few_are_taken_from_the_first_to_the_last(config, tokenizer, home):
    everything, few = find_held_out(config, tokenizer, home, 200), find_held_out(config, tokenizer, home, 3)

    assert few.total == 12
    assert few.rows == (everything.rows[0], everything.rows[4], everything.rows[8])
