"""Previews of a dataset on the Hub open it once; what is on this machine is opened each time."""

from itertools import islice

import pytest

from engine.config.run import DatasetConfig
from engine.data.passes.reader import DatasetReader
from engine.data.source import SourceOptions
from engine.inspector.worker.data import OpenReaders
from tests.data.families import renderer_of
from tests.data.test_hub import FakeHub


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def hub(monkeypatch):
    fake = FakeHub()
    monkeypatch.setattr("datasets.load_dataset_builder", fake.load_dataset_builder)
    return fake


@pytest.fixture
def readers(clock):
    return OpenReaders(lambda config: DatasetReader(config, SourceOptions(streaming=True)), clock)


def opened_datasets(hub):
    return [requests for requests in hub.requests if isinstance(requests, tuple)]


def test_pages_of_one_dataset_open_it_once_with_and_without_a_tokenizer(hub, readers):
    config = DatasetConfig(source="someone/data", revision="abc")
    renderer = renderer_of(1024)

    plain = readers.get(config, None)
    with_tokens = readers.get(config.model_copy(update={"eval_fraction": 0.3}), renderer)

    assert opened_datasets(hub) == [("hf://datasets/someone/data", None, "abc")]
    for first in (0, 5):
        assert [row.record.row for row in islice(plain.rows(first), 3)] == [first, first + 1, first + 2]
        assert all(row.rendering is None for row in islice(plain.rows(first), 3))
        assert all(row.rendering is not None for row in islice(with_tokens.rows(first), 3))


@pytest.mark.parametrize("change", [{"revision": "def"}, {"subset": "en"}, {"split": "test"}, {"train_on": "all"}])
def test_another_revision_subset_split_or_reading_is_opened_by_itself(hub, readers, change):
    config = DatasetConfig(source="someone/data", revision="abc")
    first = readers.get(config, None)

    assert readers.get(config.model_copy(update=change), None).parts is not first.parts
    assert len(opened_datasets(hub)) == 2


def test_a_dataset_is_opened_again_after_a_while_and_few_are_kept(hub, readers, clock):
    config = DatasetConfig(source="someone/data")
    readers.get(config, None)
    clock.now += 301
    readers.get(config, None)
    assert len(opened_datasets(hub)) == 2

    for number in range(4):
        readers.get(DatasetConfig(source=f"someone/other-{number}"), None)
    readers.get(config, None)
    assert len(opened_datasets(hub)) == 7


def test_what_is_on_this_machine_is_never_kept(hub, readers, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "before"}\n')
    config = DatasetConfig(source=str(path))
    readers.get(config, None)

    path.write_text('{"text": "after"}\n')

    assert next(readers.get(config, None).rows()).example.text() == "after"
    mixed = DatasetConfig(source="someone/data", mix={str(path): 1.0})
    assert readers.get(mixed, None).parts is not readers.get(mixed, None).parts
