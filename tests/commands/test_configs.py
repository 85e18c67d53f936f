"""`loratory models`, as a person and as a script see it."""

import json

import pytest
from typer.testing import CliRunner

from loratory.engine.cli import build_app
from loratory.engine.config.load import config_to_yaml
from loratory.engine.config.presets import save_preset
from loratory.engine.errors import ConfigError, StorageError
from loratory.engine.interface.names import load_config
from loratory.engine.models.catalog import list_catalog
from loratory.engine.models.hub import HubModel
from loratory.engine.paths import local_owner
from loratory.engine.runs.store import RunStore
from tests.supervision.fake_runs import config_for


def test_a_yaml_file_a_preset_and_a_run_are_all_configurations(home, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(config_to_yaml(config_for("from a file")))
    run = RunStore(home, local_owner()).create(config_for("from a run"))

    assert load_config(str(file), (), home).run.name == "from a file"
    assert load_config(run.id, (), home).run.name == "from a run"
    assert load_config("quickstart-cpu", (), home).model.id == "smollm2-135m-instruct"


def test_a_preset_of_ones_own_is_a_configuration_and_is_listed(home):
    save_preset(home, "mine", "training:\n  max_steps: 9\n")
    model, data = "model.id=smollm2-135m-instruct", "dataset.source=sample:loratory-faq"

    assert load_config("mine", (model, data), home).training.max_steps == 9
    with pytest.raises(ConfigError) as error_info:
        load_config("mine", (), home)
    assert {problem.field for problem in error_info.value.problems} == {"model", "dataset"}
    with pytest.raises(ConfigError, match=r"no file, preset or run is called 'other'; the presets are .*, mine\."):
        load_config("other", (), home)

    app = build_app(("loratory.engine.commands.configs",))
    rows = json.loads(CliRunner().invoke(app, ["presets", "--json"]).stdout)
    assert rows[-1] == {
        "name": "mine", "title": "mine", "about": "", "memory_gib": None, "config": {"training": {"max_steps": 9}},
    }  # fmt: skip
    assert rows[0]["config"]["training"]["seed"] == 42  # of those that ship, every setting
    assert CliRunner().invoke(app, ["presets"]).stdout.splitlines()[-1].split() == ["mine", "yours", "mine"]


def test_overrides_apply_and_all_their_mistakes_are_reported(home, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(config_to_yaml(config_for()))
    config = load_config(str(file), ("adapter.r=8", "training.learning_rate=1e-3"), home)
    assert (config.adapter.r, config.training.learning_rate) == (8, 1e-3)

    with pytest.raises(ConfigError) as error_info:
        load_config(str(file), ("adapter.r=0", "training.learning_rate=fast"), home)
    assert {problem.field for problem in error_info.value.problems} == {"adapter.r", "training.learning_rate"}


def test_a_name_that_is_nothing_reports_what_there_is(home):
    with pytest.raises(ConfigError, match="no file, preset or run is called 'nosuch'"):
        load_config("nosuch", (), home)
    with pytest.raises(StorageError, match=r"nosuch\.yaml cannot be read"):
        load_config("nosuch.yaml", (), home)


@pytest.fixture
def run():
    app = build_app(("loratory.engine.commands.configs",))
    app.callback()(lambda: None)
    return lambda *arguments: CliRunner().invoke(app, ["models", *arguments])


def test_json_lists_the_whole_catalogue_with_its_facts(run):
    rows = json.loads(run("--json").stdout)

    assert [row["id"] for row in rows] == [entry.id for entry in list_catalog()]
    assert {"id", "parameters", "license", "context_length", "gated", "hub_id", "title", "about"} <= rows[0].keys()
    assert all(row["parameters"] > 0 and row["context_length"] > 0 for row in rows)


def test_no_match_is_an_empty_list_and_a_word_on_stderr(run):
    result = run("nothing-like-this", "--json")
    assert json.loads(result.stdout) == []

    result = run("nothing-like-this")
    assert result.stdout == ""
    assert "--hub" in result.stderr


def test_people_get_one_line_for_each_model(run):
    lines = run().stdout.splitlines()

    assert len(lines) == len(list_catalog())
    assert lines[0].startswith("smollm2-135m-instruct")
    assert "135M" in lines[0]
    assert "8,192" in lines[0]


def test_the_hub_is_searched_on_demand(run, monkeypatch):
    result = HubModel(id="org/model", parameters=None, tags=("license:mit",), gated=True, model_type=None)
    monkeypatch.setattr("loratory.engine.models.hub.search_hub", lambda query: (result,))

    (row,) = json.loads(run("model", "--hub", "--json").stdout)

    assert (row["id"], row["license"], row["gated"]) == ("org/model", "mit", True)
    assert run("model", "--hub").stdout.startswith("org/model")
