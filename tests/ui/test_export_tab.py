"""Taking a result away: its files, code that loads them, and one archive."""

import zipfile

import pytest

from engine.errors import StorageError
from tests.invented_runs import InventedRun, a_config, write_run
from ui.tabs import export
from ui.tabs.export import ExportTab, make_archive
from ui.views.adapter_files import list_files, loading_script


@pytest.fixture
def tab(laid_out) -> ExportTab:
    return laid_out(ExportTab)


@pytest.fixture
def run(services):
    return write_run(services.runs, a_config(run__name="faq: rank 16 / <b>"), InventedRun())


def test_only_runs_with_a_result_are_offered(tab, services, run):
    write_run(services.runs, a_config(), InventedRun(state="failed", steps=3))

    update = tab._list("", None)

    assert [value for _, value in update["choices"]] == [run.id]
    assert update["value"] == run.id


def test_without_a_result_it_says_when_there_will_be_one(tab, services):
    assert tab._list("", None)["visible"] is False
    assert "Nothing to take away yet" in tab.show(None)[0]


def test_files_sizes_path_and_code_are_shown(tab, run):
    result, use, buttons, later, *_ = tab.show(run.id)

    assert "adapter_model.safetensors" in result
    assert "19.0 kB" in result
    assert str(run.folder.adapter) in result
    assert "PeftModel.from_pretrained" in use
    assert f"loratory show {run.id}" in use
    assert buttons["visible"]
    assert later["visible"]


def test_a_run_that_was_deleted_is_said_to_be_gone(tab):
    result, _, buttons, *_ = tab.show("20250101-000000-000-abcd")

    assert "There is no run" in result
    assert not buttons["visible"]


def test_the_code_is_valid_python_and_names_the_base_that_the_adapter_names(run):
    script = loading_script(run.folder.adapter, "another")

    compile(script, "script", "exec")
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in script
    assert "another" not in script


def test_a_fully_trained_model_is_loaded_without_peft(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    script = loading_script(tmp_path, "base")

    compile(script, "script", "exec")
    assert "peft" not in script


def test_the_archive_holds_the_files_and_nothing_that_a_link_leads_to(run, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (run.folder.adapter / "link.txt").symlink_to(secret)

    path = make_archive(run.folder.adapter, tmp_path / "out", "faq: rank 16 / <b>")

    assert path.name == "faq-rank-16-b.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert len(names) == 4
    assert all(name.startswith("faq-rank-16-b/") for name in names)
    assert not any("link" in name for name in names)
    assert [file.name for file in list_files(run.folder.adapter)] == sorted(name.split("/", 1)[1] for name in names)


def test_what_is_too_large_for_a_download_says_where_it_lies(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_LARGEST_ARCHIVE_BYTES", 1000)

    with pytest.raises(StorageError, match="Copy its folder"):
        make_archive(run.folder.adapter, tmp_path / "out", "faq")
    assert not list((tmp_path).glob("out/*"))
