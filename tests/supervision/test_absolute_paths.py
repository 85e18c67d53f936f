"""A configuration that is run from one working folder and read in another."""

from pathlib import Path
from typing import Any

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.run import RunConfig
from loratory.engine.data.source import SourceOptions, open_source
from loratory.engine.models.catalog import list_catalog
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.launch import Launcher, Preflight, with_absolute_paths
from tests.supervision.fake_preflight import FakeInspector, resolve
from tests.supervision.fake_runs import cpu


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two working folders, each with files of the same names; the first is where the run is run."""
    for name in ("here", "elsewhere"):
        folder = tmp_path / name
        (folder / "models" / "mine").mkdir(parents=True)
        (folder / "rows.jsonl").write_text(f'{{"text": "{name}"}}\n')
        (folder / "more.jsonl").write_text(f'{{"text": "more {name}"}}\n')
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "here"))
    return tmp_path


def config(model: str = "some/model", **sections: dict[str, Any]) -> RunConfig:
    return config_from_mapping({"model": {"id": model}, "dataset": {"source": "rows.jsonl"}, **sections})


def test_a_run_reads_the_files_that_it_was_filed_with_from_any_working_folder(folders, home, monkeypatch):
    preflight = Preflight(home, FakeInspector(), devices=lambda: (cpu(),), resolve=resolve)
    run = Launcher(RunStore(home, "ann"), preflight).start(
        config(
            "models/mine", dataset={"source": "rows.jsonl", "mix": {"../here/more.jsonl": 0.5, "sample:lab-chats": 1}}
        )
    )
    monkeypatch.chdir(folders / "elsewhere")

    stored_config = run.folder.read_config()

    rows = [record.value for record in open_source(stored_config.dataset, SourceOptions()).records()]
    assert rows == [{"text": "here"}]
    assert Path(stored_config.model.id) == folders / "here" / "models" / "mine"
    assert dict(stored_config.dataset.mix) == {str(folders / "here" / "more.jsonl"): 0.5, "sample:lab-chats": 1.0}


@pytest.mark.parametrize("typed", ["~/rows.jsonl", "./rows.jsonl", " rows.jsonl", "models/../rows.jsonl"])
def test_every_way_to_name_a_file_ends_in_its_whole_path(folders, typed):
    assert with_absolute_paths(config(dataset={"source": typed})).dataset.source == str(folders / "here" / "rows.jsonl")


@pytest.mark.parametrize("source", ["sample:lab-chats", "owner/name", "missing.jsonl", "~nobody-of-that-name/x.csv"])
def test_what_is_not_a_file_here_keeps_its_name(folders, source):
    assert with_absolute_paths(config(dataset={"source": source})).dataset.source == source


def test_names_of_the_catalogue_stay_even_next_to_a_folder_of_that_name(folders):
    name = list_catalog()[0].id
    Path(name).mkdir(parents=True)

    assert with_absolute_paths(config(name)).model.id == name


def test_an_adapter_to_start_from_is_found_again(folders):
    adapter = {"adapter": {"warm_start": "models/mine"}}

    assert with_absolute_paths(config(**adapter)).adapter.warm_start == str(folders / "here" / "models" / "mine")


def test_two_names_of_one_file_keep_their_weights(folders):
    mixed = {"source": "rows.jsonl", "mix": {"more.jsonl": 0.5, "./more.jsonl": 2.0}}

    assert list(with_absolute_paths(config(dataset=mixed)).dataset.mix.values()) == [0.5, 2.0]


def test_links_keep_their_names(folders):
    Path("current.jsonl").symlink_to("rows.jsonl")

    source = with_absolute_paths(config(dataset={"source": "current.jsonl"})).dataset.source

    assert source == str(folders / "here" / "current.jsonl")
