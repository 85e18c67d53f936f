"""`import loratory`: what a person writes in a notebook or a script, against the functions that commands call too."""

import subprocess
import sys
from pathlib import Path

import pytest

import loratory
from loratory.engine.errors import ConfigError, RunError
from loratory.engine.interface.workspace import Chat, Run, Workspace
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.supervisor import Supervisor
from tests.supervision.fake_runs import config_for, fake_settings
from tests.waiting import wait_until

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "python.md"


def test_importing_brings_no_torch_and_no_page():
    code = (
        "import sys, loratory; light = len(sys.modules); loratory.train; "
        "assert light < 200, light; "
        "assert not {'torch', 'transformers', 'gradio', 'pandas'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_documented():
    text = DOCUMENTATION.read_text()
    methods = [
        name for owner in (Workspace, Run, Chat) for name in vars(owner) if not name.startswith("_") and name != "own"
    ]
    assert all(getattr(loratory, name) is not None for name in loratory.__all__)
    assert [name for name in (*loratory.__all__, *methods) if f"{name}" not in text] == []
    with pytest.raises(AttributeError, match="has no attribute 'fine_tune'"):
        loratory.fine_tune  # noqa: B018 - the access raises


@pytest.fixture
def workspace(home):
    with Workspace(home) as workspace:
        yield workspace


def test_settings_are_a_preset_a_file_a_run_a_mapping_or_a_configuration(workspace, tmp_path):
    changes = {"adapter.r": 4, "training.learning_rate": 1e-3, "run.name": "no", "adapter.target_modules": ["q_proj"]}
    by_name = workspace.config("quickstart-cpu", changes)
    file = tmp_path / "run.yaml"
    file.write_text(Path("presets/quickstart-cpu.yaml").read_text())

    assert (by_name.adapter.r, by_name.run.name, by_name.adapter.target_modules) == (4, "no", ("q_proj",))
    assert workspace.config(file, changes) == by_name
    assert (
        workspace.config(
            "quickstart-cpu",
            ["adapter.r=4", "training.learning_rate=1e-3", "run.name=no", "adapter.target_modules=[q_proj]"],
        )
        == by_name
    )
    assert (
        workspace.config(
            {"model": {"id": "smollm2-135m-instruct"}, "dataset": {"source": "sample:loratory-faq"}}
        ).adapter.method
        == "lora"
    )
    assert workspace.config(by_name, {"adapter.r": 8}).adapter.r == 8
    with pytest.raises(ConfigError, match=r"adapter\.r"):
        workspace.config("quickstart-cpu", {"adapter.r": 0})
    with pytest.raises(ConfigError, match=r"section\.field=value"):
        workspace.config("quickstart-cpu", {"r": 8})


def test_a_person_of_a_lab_names_no_file_of_its_machine(home, tmp_path):
    file = tmp_path / "secret.yaml"
    file.write_text("model: {id: smollm2-135m-instruct}\ndataset: {source: sample:loratory-faq}\n")
    with Workspace(home.for_person("ann")) as workspace:
        with pytest.raises(ConfigError, match="preset or run"):
            workspace.config(str(file))
        with pytest.raises(ConfigError):
            workspace.config("quickstart-cpu", {"dataset.source": str(file)})
    with Workspace(home.for_person("gil", "guest")) as workspace, pytest.raises(ConfigError):
        workspace.config("quickstart-cpu", {"dataset.source": "someone/dataset"})


def test_a_run_is_followed_to_its_end_and_its_steps_are_a_table(home):
    store = RunStore(home, "ann")
    run = Run(home, store.create(config_for("steps=6")))

    states = [state.state for state, _ in run.follow(fake_settings())]
    table = run.events()

    assert states[0] in ("queued", "starting", "running")
    assert states[-1] == "completed"
    assert list(table["step"]) == [1, 2, 3, 4, 5, 6]
    assert table["loss"].notna().all()
    assert run.summary.steps == 6
    assert run.id in repr(run)


def test_a_failed_run_says_why_and_a_stopped_one_can_be_resumed(home):
    store = RunStore(home, "ann")
    failing, stopped = (Run(home, store.create(config_for(text))) for text in ("steps=8 fail@3", "steps=100000"))
    server = Supervisor(home, fake_settings())
    server.start()
    try:
        with pytest.raises(RunError, match="The loss is not a number"):
            failing.wait()
        for _, history in stopped.follow():
            if history.last_step and not stopped.is_asked_to_stop:
                stopped.stop()
        assert stopped.wait().state == "stopped"
        with pytest.raises(RunError, match="already stopped"):
            stopped.stop()
        stopped.resume()
        wait_until(lambda: stopped.state != "stopped")
    finally:
        server.stop()


def test_runs_are_found_by_words_and_by_id(home):
    workspace = Workspace(home)
    other = workspace.store.create(config_for("steps=1"))
    workspace.store.create(config_for("steps=1"))

    assert len(workspace.runs()) == 2
    assert [run.id for run in workspace.runs(other.id[-4:])] == [other.id]
    assert workspace.runs(states=("completed",)) == []
    assert workspace.run(other.id[-4:]).id == other.id
    with pytest.raises(RunError):
        workspace.run("20200101-000000-000-0000")
