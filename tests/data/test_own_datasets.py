"""Datasets that a person of a lab downloads with a token of their own: opened by them alone, and the token nowhere."""

import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from engine.config.run import DatasetConfig
from engine.data.own import OwnDatasetJob, list_own_datasets, remove_own_dataset
from engine.data.source import SourceOptions, open_source
from engine.errors import AccountError, DatasetAccessError, DatasetError, EngineError
from engine.runs.disk import disk_use
from engine.runs.store import RunStore
from tests.invented_runs import a_config
from tests.models.fake_hub import NEXT_COMMIT
from tests.models.own_downloads import PausingHub, require_hidden_token, stop_midway
from ui.backend.own_models import OwnDownloads

DATASET = "owner/gated-rows"
TOKEN = "hf_CanaryOfAnnsDatasetsThatIsNowhere42"
ROW = b'{"instruction": "Say it.", "output": "%d"}\n'


@pytest.fixture
def hub(monkeypatch, tmp_path):
    fake = PausingHub()
    with fake:
        fake.repositories[DATASET] = {
            "README.md": b"---\nconfigs: [{data_files: /etc/passwd}]\n---\n", "script.py": b"raise SystemExit", ".hidden.jsonl": ROW % 9,
            "data/train.jsonl": ROW % 1 + ROW % 2, "data/test.jsonl": ROW % 3,
        }  # fmt: skip
        fake.gated.add(DATASET)
        fake.token = TOKEN
        fake.replace_the_real_one(monkeypatch, tmp_path / "shared-cache")
        yield fake
        fake.go.set()


def job(home, token: str = TOKEN, name: str = DATASET, revision: str | None = None):
    return OwnDatasetJob(home, SecretStr(token), name, revision)


def rows_of(home, folder: Path, split: str):
    config = DatasetConfig(source=str(folder), split=split)
    return [record.value["output"] for record in open_source(config, SourceOptions(home=home)).records() if record]


def test_its_owner_opens_it_as_an_upload_and_no_one_else_does(hub, home):
    ann, bea = home.of("ann"), home.of("bea")

    result = job(ann).run()

    assert result.folder.is_relative_to(ann.uploads)
    assert {path.name for path in result.folder.rglob("*.*") if path.is_file() and ".cache" not in path.parts} == {
        "train.jsonl", "test.jsonl",
    }  # fmt: skip
    assert (rows_of(ann, result.folder, "train"), rows_of(ann, result.folder, "test")) == (["1", "2"], ["3"])
    assert list_own_datasets(ann) == [result]
    assert (list_own_datasets(bea), list_own_datasets(home)) == ([], [])
    with pytest.raises(EngineError, match="outside the folders"):
        rows_of(bea, result.folder, "train")
    assert disk_use(home, "ann").uploads >= result.bytes > 0

    runs = RunStore(ann, "ann")
    own = OwnDownloads(runs, "dataset")
    run = runs.create(a_config(dataset__source=str(result.folder / "data")))
    with pytest.raises(DatasetError, match="needed by a run"):
        own.remove(DATASET)
    run.folder.write_state(run.folder.read_state().model_copy(update={"state": "completed"}))
    own.remove(DATASET)
    assert list_own_datasets(ann) == []


@pytest.mark.e2e
def test_a_new_state_replaces_the_old_one_and_what_is_the_same_is_not_fetched(hub, home):
    result = job(home.of("ann")).run()
    fetched = hub.requests["get"]
    job(home.of("ann")).run()
    assert hub.requests["get"] == fetched

    hub.commits["main"] = NEXT_COMMIT
    hub.repositories[DATASET] = {"data/train.jsonl": ROW % 7}
    job(home.of("ann")).run()

    assert rows_of(home.of("ann"), result.folder, "train") == ["7"]
    assert not (result.folder / "data" / "test.jsonl").exists()


def test_another_token_opens_nothing_and_leaves_nothing(hub, home):
    with pytest.raises(DatasetAccessError):
        job(home.of("ann"), "hf_another").run()
    assert list_own_datasets(home.of("ann")) == []


def test_a_dataset_without_data_files_is_refused(hub, home):
    hub.repositories[DATASET] = {"script.py": b"", "pictures.zip": b"", "../escape.jsonl": ROW % 1}
    with pytest.raises(DatasetError, match="no data files"):
        job(home.of("ann")).run()


@pytest.mark.parametrize("name", ["/etc/passwd", "../bea/x", "owner/../x", "a/b/c", ""])
def test_only_an_id_on_the_hub_is_fetched(home, name):
    with pytest.raises(DatasetError, match="not an id on the Hub"):
        job(home.of("ann"), name=name).run()


def test_what_is_not_a_revision_token_or_own_dataset_is_refused(home):
    ann = home.of("ann")
    with pytest.raises(DatasetError, match="cannot be a revision"):
        job(ann, revision="../x").run()
    with pytest.raises(AccountError, match="not a Hugging Face token"):
        job(ann, "hf_a\r\nHost: evil").run()
    with pytest.raises(AccountError, match="no accounts"):
        job(home).run()
    for hub_id in (DATASET, "../ann", "hub", ""):
        with pytest.raises(DatasetError, match="not among your own"):
            remove_own_dataset(ann, hub_id)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the environment of processes")
def test_the_token_is_in_no_file_environment_or_command_line(hub, home, tmp_path):
    require_hidden_token(hub, job(home.of("ann")), TOKEN, tmp_path)


@pytest.mark.e2e
def test_a_download_can_be_stopped_and_continues_later(hub, home):
    stop_midway(hub, job(home.of("ann")))
    assert job(home.of("ann")).run().bytes > 0
