"""What can be talked to: runs in every state, folders, models; and two runs side by side."""

from pathlib import Path

import pytest

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import ModelError, RunError
from loratory.ui.backend.run_reader import FINAL
from loratory.ui.tabs import chat_choice
from loratory.ui.tabs.chat import ChatTab
from loratory.ui.tabs.chat_choice import A_FOLDER, A_MODEL, AS_TRAINED, NOTHING, Chosen
from tests.invented_runs import InventedRun, a_config, write_adapter, write_run


@pytest.fixture
def choice(laid_out):
    return laid_out(ChatTab).choice


@pytest.fixture
def run(services):
    return write_run(services.runs, a_config(run__name="first"), InventedRun())


def make_choice(run_id, checkpoint=FINAL, model="", folder="", against=NOTHING, precision=AS_TRAINED) -> Chosen:
    return Chosen(run_id, checkpoint, model, folder, against, precision)


def test_a_model_is_loaded_on_the_cluster_where_that_is_chosen(choice):
    where = {
        place: choice.target(make_choice(A_MODEL, model="demo")._replace(where=place)).where
        for place in ("slurm", "moon", "")
    }

    assert where == {"slurm": "slurm", "moon": "local", "": "local"}
    assert not choice.where.visible, "there is no cluster"


def test_a_checkpoint_is_loaded_in_the_precision_that_is_asked_for(choice, run):
    target = choice.target(make_choice(run.id, "step-90", precision="nf4"))

    assert (target.tuned.folder, target.tuned.checkpoint) == (run.folder.path, "step-90")
    assert target.quantization == "nf4"
    assert choice.target(make_choice(run.id, precision="5 bits")).quantization is None


def test_a_run_that_was_chosen_is_proposed_however_old_it_is(choice, services, run, monkeypatch):
    monkeypatch.setattr("loratory.ui.backend.run_reader._OFFERED_AT_ONCE", 1)
    newer = write_run(services.runs, a_config(), InventedRun())

    offers = choice.offer(run.id, newer.id, "")[choice.run]

    assert offers["value"] == run.id
    assert [value for _, value in offers["choices"]] == [newer.id, run.id, A_FOLDER, A_MODEL]


def test_two_runs_on_one_base_stand_side_by_side_under_their_names(choice, services, run):
    other = write_run(services.runs, a_config(run__name="second"), InventedRun())
    elsewhere = write_run(services.runs, a_config(model__id="Qwen/Qwen3-0.6B"), InventedRun())

    offers = [value for _, value in choice.choose(run.id)[choice.against]["choices"]]
    assert offers == [NOTHING, f"{run.id}/step-120", f"{run.id}/step-90", f"{other.id}/final"]
    assert not [value for value in offers if elsewhere.id in value]

    target = choice.target(make_choice(run.id, against=f"{other.id}/final"))
    assert (target.second.folder, target.second.checkpoint) == (other.folder.path, None)
    assert choice.names(target) == {"base": "Base model", "tuned": "first", "second": "second"}


def test_two_states_of_one_run_are_distinguished(choice, run):
    names = choice.names(choice.target(make_choice(run.id, against=f"{run.id}/step-90")))

    assert names["tuned"] == "first, final result"
    assert names["second"] == "first, step-90"


def test_what_is_loaded_is_called_by_the_names_of_its_runs(choice, run, tmp_path):
    assert choice.results(None) == ()
    assert choice.results(ChatTarget.of_model(ModelConfig(id="some-model"))) == ()
    assert choice.results(ChatTarget.of_run(tmp_path / "an-adapter")) == ("an-adapter",)
    both = choice.target(make_choice(run.id, against=f"{run.id}/step-90"))
    assert choice.results(both) == ("first", "first, checkpoint step-90")


def test_what_a_browser_names_is_looked_up(choice, run):
    with pytest.raises(RunError):
        choice.target(make_choice("../../etc"))
    with pytest.raises(RunError):
        choice.target(make_choice(run.id, against="../../etc/final"))
    with pytest.raises(RunError):
        choice.target(make_choice(A_MODEL, model="x" * 2000))


def test_a_folder_with_an_adapter_and_its_base(choice, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_choice, "data_folders", lambda: (tmp_path.resolve(),))
    write_adapter(tmp_path / "mine")

    target = choice.target(make_choice(A_FOLDER, folder=str(tmp_path / "mine"), model="smollm2-135m-instruct"))

    assert target.tuned.folder == (tmp_path / "mine").resolve()
    assert target.model.id == "smollm2-135m-instruct"


@pytest.mark.parametrize("typed", ["", "/etc", "missing", "a\0b", "../.."])
def test_other_folders_are_refused(choice, tmp_path, monkeypatch, typed):
    monkeypatch.setattr(chat_choice, "data_folders", lambda: (tmp_path.resolve(),))
    path = str(Path(tmp_path, typed)) if typed in ("missing", "../..") else typed

    with pytest.raises(ModelError):
        choice.target(make_choice(A_FOLDER, folder=path))
