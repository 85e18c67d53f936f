"""Datasets on the Hub, through a stand-in for the library's loader; previews of one open it once."""

import errno
from itertools import islice

import datasets
import httpx
import pyarrow
import pytest
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
from datasets.table import CastError

from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.data.files import DATA_ENDINGS
from loratory.engine.data.hub import hub_access, reads_from_hub
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import DatasetError
from loratory.engine.inspector.worker.data import OpenReaders
from loratory.engine.models.prepared import DEMO_MODEL_ID
from loratory.engine.processes.spawn import Access
from tests.data.checks import check_dataset
from tests.data.families import renderer_of
from tests.data.pictures import picture

ROWS = [{"instruction": f"Ask {number}", "output": "Answer"} for number in range(30)]
_NEVER_READ = (".xls", ".zip", ".pkl", ".jsonl.zst")
CAST_ERROR = CastError("Couldn't cast", table_column_names=["a"], requested_column_names=["b"])


class FakeHub(datasets.GeneratorBasedBuilder):
    """Replaces the loader and the builder of the library, answers from memory, and records requests."""

    __module__ = "datasets.packaged_modules.json.json"

    def __init__(self, rows=ROWS, error=None, error_in="opening"):
        self.rows = rows
        self.error = error
        self.error_in = error_in
        self.requests = []
        self.config = datasets.BuilderConfig()

    def load_dataset_builder(self, path, name=None, *, revision):
        self.requests.append((path, name, revision))
        self._fail("opening")
        return self

    def download_and_prepare(self):
        self._fail("fetching")

    def as_dataset(self, split):
        self.requests.append(split)
        return datasets.Dataset.from_list(self.rows)

    def as_streaming_dataset(self, split):
        self.requests.append(split)

        def rows():
            for row in self.rows:
                yield row
                self._fail("reading")

        return datasets.IterableDataset.from_generator(rows, features=self.as_dataset(split).features)

    def _fail(self, where):
        if self.error is not None and where == self.error_in:
            raise self.error


@pytest.fixture
def hub(monkeypatch):
    def install(**settings):
        fake = FakeHub(**settings)
        monkeypatch.setattr(datasets, "load_dataset_builder", fake.load_dataset_builder)
        return fake

    return install


@pytest.mark.parametrize("streaming", [True, False])
def test_rows_come_from_the_hub_with_subset_split_and_revision(hub, streaming):
    fake = hub()
    config = DatasetConfig(source="someone/data", subset="en", split="train", revision="abc")

    reader = DatasetReader(config, SourceOptions(streaming=streaming))
    rows = list(reader.rows(first_row=28))

    assert [row.record.row for row in rows] == [28, 29]
    assert fake.requests[:2] == [("hf://datasets/someone/data", "en", "abc"), "train"]
    assert reader.total_rows == 30
    assert reader.columns == ("instruction", "output")


def test_a_check_counts_every_row(hub):
    hub()

    report = check_dataset(DatasetConfig(source="someone/data"))

    assert (report.rows, report.kept) == (30, 30)
    assert report.kind == "Hub dataset"


def http_error(status):
    request = httpx.Request("GET", "https://hub.test/x")
    return httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, request=request))


def raised_from(error, cause):
    error.__cause__ = cause
    return error


REFUSALS = {
    "gone": (DatasetNotFoundError("gone"), "The Hub has no dataset someone/data"),
    "no network": (ConnectionError("no network"), "Hub cannot be reached"),
    "too slow": (httpx.ReadTimeout("slow"), "Hub cannot be reached for someone/data (ReadTimeout)"),
    "nothing answers": (httpx.ConnectError("refused"), "Hub cannot be reached"),
    "a server in trouble": (http_error(503), "The Hub is out of order (HTTP 503)"),
    "split": (ValueError('Unknown split "x". Should be one of ["train"].\nmore'), "Unknown split"),
    "disk": (OSError(errno.ENOSPC, "No space left on device"), "cannot be stored or read (no space left on device)"),
    "no data files": (DataFilesNotFoundError("at /root/cwd"), "holds no data files"),
    "empty": (EmptyDatasetError("x"), "holds no data files"),
    "a lost connection while it is fetched": (
        raised_from(DatasetGenerationError("An error occurred"), httpx.ReadTimeout("slow")),
        "Hub cannot be reached",
    ),
    "rows of other columns": (
        raised_from(DatasetGenerationError("An error occurred"), CAST_ERROR),
        "cannot be read: Couldn't cast",
    ),
    "a damaged file": (
        raised_from(DatasetGenerationError("An error"), pyarrow.ArrowInvalid("in /home/me/.cache/f.parquet: cut")),
        "cannot be read: in (a file) cut",
    ),
    "a README that stumbles": (KeyError("dataset_info"), "someone/data cannot be read: 'dataset_info'"),
}


@pytest.mark.parametrize(
    ("name", "where"),
    [*((name, "opening") for name in REFUSALS), ("rows of other columns", "fetching"), ("too slow", "reading")],
)
def test_what_the_hub_refuses_is_reported_in_two_sentences(hub, name, where):
    error, message = REFUSALS[name]
    hub(error=error, error_in=where)

    options = SourceOptions(streaming=where == "reading")
    with pytest.raises(DatasetError) as refusal:
        DatasetReader(DatasetConfig(source="someone/data"), options)

    assert message in refusal.value.what
    assert "\n" not in str(refusal.value)
    assert "/home/me" not in str(refusal.value)
    assert ("cannot be reached" in refusal.value.what) == ("cannot be reached" in message)


@pytest.mark.parametrize(
    "name",
    ["missing.jsonl", "data/missing.csv", "/tmp/none/x.parquet", "folder/of/three"]
    + [f"{folder}rows{ending}" for folder in ("", "team/") for ending in (*DATA_ENDINGS, *_NEVER_READ)]
    + [f"team/rows{ending}.gz" for ending in DATA_ENDINGS],
)
def test_names_of_files_are_never_asked_of_the_hub(hub, name):
    fake = hub()

    with pytest.raises(DatasetError, match="was not found") as refusal:
        DatasetReader(DatasetConfig(source=name), SourceOptions())

    assert name in refusal.value.what
    assert "Check the path" in refusal.value.fix

    assert fake.requests == []


@pytest.mark.parametrize("streaming", [True, False])
def test_pictures_are_read_as_the_bytes_that_the_dataset_holds_and_no_path_is_opened(hub, streaming, home):
    features = datasets.Features(
        {
            "instruction": datasets.Value("string"),
            "output": datasets.Value("string"),
            "photos": datasets.List(datasets.Image()),
        }
    )
    own, elsewhere = {"bytes": picture("red"), "path": "red.png"}, {"bytes": None, "path": "/etc/hostname.png"}
    rows = [{**row, "photos": photos} for row, photos in zip(ROWS, ([own], [own, own], [elsewhere], []), strict=False)]
    fake = hub()
    data = datasets.Dataset.from_list(rows, features=features)
    fake.as_dataset = lambda split: data
    fake.as_streaming_dataset = lambda split: data.to_iterable_dataset()

    reader = DatasetReader(DatasetConfig(source="someone/data"), SourceOptions(home=home, streaming=streaming))
    first, second, third, last = reader.rows()

    assert reader.detection.columns["images"] == "photos"
    assert [question_of(row).images[0].width for row in (first, second)] == [40, 40]
    assert (len(question_of(second).images), question_of(last).images) == (2, ())
    assert third.problem == "image 1 cannot be read: /etc/hostname.png is a file, and this dataset does not bring it"


@pytest.mark.parametrize("streaming", [True, False])
def test_columns_with_video_are_left_out_and_said_to_be_at_any_depth(hub, streaming):
    video = datasets.Video()
    features = datasets.Features(
        {
            "instruction": datasets.Value("string"),
            "output": datasets.Value("string"),
            "film": video,
            "turns": datasets.List({"text": datasets.Value("string"), "seen": datasets.List(video)}),
        }
    )
    # Were they looked at, the path would be opened.
    clip = {"bytes": None, "path": "/nowhere/of/this/machine.mp4"}
    rows = [{**row, "film": clip, "turns": [{"text": "x", "seen": [clip]}]} for row in ROWS]
    fake = hub()
    data = datasets.Dataset.from_list(rows, features=features)
    fake.as_dataset = lambda split: data
    fake.as_streaming_dataset = lambda split: data.to_iterable_dataset()

    reader = DatasetReader(DatasetConfig(source="someone/data"), SourceOptions(streaming=streaming))

    assert [row.kind for row in reader.rows()] == [None] * 30
    assert reader.columns == ("instruction", "output")
    assert any("film, turns" in note for note in reader.notes)


def question_of(row):
    return row.example.messages[0]


def open_streamed(config):
    return DatasetReader(config, SourceOptions(streaming=True))


@pytest.fixture
def readers():
    return OpenReaders(open_streamed)


def opened_datasets(fake):
    return [requests for requests in fake.requests if isinstance(requests, tuple)]


def test_pages_of_one_dataset_open_it_once_with_and_without_a_tokenizer(hub, readers):
    fake = hub()
    config = DatasetConfig(source="someone/data", revision="abc")
    renderer = renderer_of(1024)

    plain = readers.get(config, None)
    with_tokens = readers.get(config.model_copy(update={"eval_fraction": 0.3}), renderer)

    assert opened_datasets(fake) == [("hf://datasets/someone/data", None, "abc")]
    for first in (0, 5):
        assert [row.record.row for row in islice(plain.rows(first), 3)] == [first, first + 1, first + 2]
        assert all(row.rendering is None for row in islice(plain.rows(first), 3))
        assert all(row.rendering is not None for row in islice(with_tokens.rows(first), 3))


@pytest.mark.parametrize("change", [{"revision": "def"}, {"subset": "en"}, {"split": "test"}, {"train_on": "all"}])
def test_another_revision_subset_split_or_reading_is_opened_by_itself(hub, readers, change):
    fake = hub()
    config = DatasetConfig(source="someone/data", revision="abc")
    first = readers.get(config, None)

    assert readers.get(config.model_copy(update=change), None).parts is not first.parts
    assert len(opened_datasets(fake)) == 2


def test_a_dataset_is_opened_again_after_a_while_and_few_are_kept(hub):
    fake, now = hub(), [0.0]
    readers = OpenReaders(open_streamed, lambda: now[0])
    config = DatasetConfig(source="someone/data")
    readers.get(config, None)
    now[0] += 301
    readers.get(config, None)
    assert len(opened_datasets(fake)) == 2

    for number in range(4):
        readers.get(DatasetConfig(source=f"someone/other-{number}"), None)
    readers.get(config, None)
    assert len(opened_datasets(fake)) == 7


def test_what_is_on_this_machine_is_never_kept(hub, readers, tmp_path):
    hub()
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "before"}\n')
    config = DatasetConfig(source=str(path))
    readers.get(config, None)

    path.write_text('{"text": "after"}\n')

    assert next(readers.get(config, None).rows()).example.text() == "after"
    mixed = DatasetConfig(source="someone/data", mix={str(path): 1.0})
    assert readers.get(mixed, None).parts is not readers.get(mixed, None).parts


def test_a_test_set_on_the_hub_needs_its_login_as_a_dataset_does():
    model, local, there = (
        ModelConfig(id=DEMO_MODEL_ID),
        DatasetConfig(source="sample:lab-chats"),
        DatasetConfig(source="owner/tests"),
    )

    assert not reads_from_hub(local)
    assert reads_from_hub(local, there)
    assert hub_access(model, local, there) == {Access.HUB}
