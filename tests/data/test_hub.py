"""Datasets on the Hub, through a stand-in for the library's loader."""

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError

from engine.config.dataset import DatasetConfig
from engine.data.check import check_dataset
from engine.data.examine import DatasetReader
from engine.data.source import SourceOptions
from engine.errors import DatasetError

ROWS = [{"instruction": f"Ask {number}", "output": "Answer"} for number in range(30)]


class FakeHub:
    """Answers `load_dataset` from memory, and remembers what it was asked."""

    def __init__(self, rows=ROWS, error=None):
        self.rows = rows
        self.error = error
        self.asked = []

    def load_dataset(self, path, name=None, *, split, revision, streaming):
        self.asked.append((path, name, split, revision, streaming))
        if self.error is not None:
            raise self.error
        data = datasets.Dataset.from_list(self.rows)
        return data.to_iterable_dataset() if streaming else data


@pytest.fixture
def hub(monkeypatch):
    def install(**settings):
        fake = FakeHub(**settings)
        monkeypatch.setattr(datasets, "load_dataset", fake.load_dataset)
        return fake

    return install


@pytest.mark.parametrize("streaming", [True, False])
def test_rows_come_from_the_hub_with_subset_split_and_revision(hub, streaming):
    fake = hub()
    config = DatasetConfig(source="someone/data", subset="en", split="train", revision="abc")

    reader = DatasetReader(config, SourceOptions(streaming=streaming))
    rows = list(reader.rows(first_row=28))

    assert [row.record.row for row in rows] == [28, 29]
    assert fake.asked == [("someone/data", "en", "train", "abc", streaming)]
    assert reader.total_rows == 30
    assert reader.columns == ("instruction", "output")


def test_a_check_counts_every_row(hub):
    hub()

    report = check_dataset(DatasetConfig(source="someone/data"), SourceOptions())

    assert (report.rows, report.kept) == (30, 30)
    assert report.kind == "Hub dataset"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DatasetNotFoundError("gone"), "There is no dataset someone/data"),
        (ConnectionError("no network"), "Hub cannot be reached"),
        (ValueError('Unknown split "x". Should be one of ["train"].\nmore'), "Unknown split"),
        (RuntimeError("Dataset scripts are no longer supported"), "scripts are no longer supported"),
        (OSError("reset"), "Hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_said_in_two_sentences(hub, error, words):
    hub(error=error)

    with pytest.raises(DatasetError) as refusal:
        DatasetReader(DatasetConfig(source="someone/data"), SourceOptions())

    assert words in refusal.value.what
    assert "\n" not in str(refusal.value)


def test_offline_a_name_that_is_no_file_says_both(monkeypatch):
    with pytest.raises(DatasetError, match=r"no file here, and the Hub cannot be reached|There is no dataset"):
        DatasetReader(DatasetConfig(source="nobody/nothing-here"), SourceOptions())


@pytest.mark.parametrize("name", ["missing.jsonl", "data/missing.csv", "/tmp/none/x.parquet", "folder/of/three"])
def test_names_of_files_are_never_asked_of_the_hub(hub, name):
    fake = hub()

    with pytest.raises(DatasetError, match="cannot be opened"):
        DatasetReader(DatasetConfig(source=name), SourceOptions())

    assert fake.asked == []


def test_columns_with_pictures_are_left_out_and_said_to_be(hub, monkeypatch):
    fake = hub()
    original = fake.load_dataset

    def with_picture(*args, **kwargs):
        data = original(*args, **kwargs)
        return data.add_column("photo", ["x"] * 30).cast_column("photo", datasets.Image(decode=False))

    monkeypatch.setattr(datasets, "load_dataset", with_picture)

    report = check_dataset(DatasetConfig(source="someone/data"), SourceOptions())

    assert report.columns == ("instruction", "output")
    assert any("photo" in note for note in report.notes)
