import json

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.interface.names import load_config_mapping
from loratory.engine.paths import local_owner
from loratory.engine.runs.control import change_notes, read_notes
from loratory.engine.runs.names import WORD_PAIRS, automatic_name, run_label, words_of
from loratory.engine.runs.provenance import read_provenance
from loratory.engine.runs.run import RunState
from loratory.engine.runs.store import RunStore
from loratory.engine.runs.summary import RunIndex, RunQuery, select_runs, summarize
from tests.supervision.fake_runs import config_for

ID = "20260101-000000-000-abcd"


def test_the_words_of_an_id_are_the_same_everywhere():
    assert words_of(ID) == "brisk-toad"
    assert len({words_of(f"{ID[:-4]}{number:04x}") for number in range(65_536)}) == WORD_PAIRS == 4096


@pytest.mark.parametrize(
    ("source", "quantization", "name"),
    [
        ("sample:loratory-faq", "none", "faq-lora"),
        ("C:\\data\\Support Chats_2.jsonl", "nf4", "support-chats-2-qlora"),
        ("/data/Größen/", "int8", "größen-lora-on-int8"),
        (f"ann/{'x' * 200}", "none", f"{'x' * 40}-lora"),
        ("sample:../<b>\u202e", "none", "b-lora"),
    ],
)
def test_an_automatic_name_is_made_of_data_method_and_words(source, quantization, name):
    config = config_from_mapping({"model": {"id": "m", "quantization": quantization}, "dataset": {"source": source}})

    assert automatic_name(config, ID) == f"{name}-brisk-toad"


def test_a_run_without_a_name_is_filed_with_its_own_and_a_typed_one_is_kept(store):
    run = store.create(config_for(""), names_run=True)
    typed = store.create(config_for("Evening run"), names_run=True)

    name = f"data-lora-{words_of(run.id)}"
    assert run.folder.read_config().run.name == read_provenance(run.folder).title == summarize(run).name == name
    assert summarize(run).label == name
    assert summarize(typed).label == f"Evening run · {typed.id[-4:]}"


def test_two_runs_of_an_owner_have_different_words(home, monkeypatch):
    moment = ID[:-4]  # of both runs but for a millisecond
    store = RunStore(home, "ann", clock=lambda: 1_767_225_600.0)
    monkeypatch.setattr("loratory.engine.runs.store.secrets.token_hex", lambda size: "abcd")
    first = store.create(config_for(""), names_run=True)
    later = f"{moment[:-2]}1-"
    same = next(f"{n:04x}" for n in range(65_536) if words_of(f"{later}{n:04x}") == words_of(first.id))
    other = next(f"{n:04x}" for n in range(65_536) if words_of(f"{later}{n:04x}") != words_of(first.id))
    endings = iter([same, same, *[other] * 100])
    monkeypatch.setattr("loratory.engine.runs.store.secrets.token_hex", lambda size: next(endings)[: size * 2])

    second = store.create(config_for(""), names_run=True)

    assert (first.id, second.id) == (ID, f"{later}{other}")


def test_a_label_shows_the_end_of_the_id_unless_the_name_is_of_this_run():
    assert run_label("faq-lora-brisk-toad", ID) == "faq-lora-brisk-toad"
    assert run_label("faq-lora-brisk-toad", "20260101-000000-000-abce") == "faq-lora-brisk-toad · abce"


def test_a_copy_by_a_command_gets_a_name_of_its_own(home):
    store = RunStore(home, local_owner())
    run = store.create(config_for(""), names_run=True)
    typed = store.create(config_for("Evening run"), names_run=True)

    assert "name" not in load_config_mapping(run.id, None, home)["run"]
    assert load_config_mapping(typed.id, None, home)["run"]["name"] == "Evening run"


def test_older_notes_have_neither_star_nor_project(store):
    run = store.create(config_for("A run"))
    run.folder.notes.write_text('{"name": "Old", "note": "n", "tags": ["t"]}')

    notes = read_notes(run.folder)
    assert (notes.name, notes.star, notes.project) == ("Old", False, "")
    change_notes(run.folder, star=True)
    assert read_notes(run.folder).tags == ("t",)


def test_an_older_cache_is_read_and_a_star_given_since_shows(store, home):
    run = store.create(config_for("A run"))
    run.folder.write_state(RunState(state="completed", started=1.0, ended=2.0))
    RunIndex(store).summaries()
    path = home.cache / "runs" / "ann.json"
    index = json.loads(path.read_text())
    for field in ("star", "project"):
        del index["runs"][run.id]["summary"][field]
    path.write_text(json.dumps(index))

    assert RunIndex(store).summaries()[0].star is False
    change_notes(run.folder, star=True, project=" paper ")
    row = RunIndex(store).summaries()[0]
    assert (row.star, row.project) == (True, "paper")


def test_runs_are_found_by_star_and_project(store):
    first, second = (store.create(config_for(name)) for name in ("first", "second"))
    change_notes(first.folder, star=True)
    change_notes(second.folder, project="Paper draft")
    rows = RunIndex(store).summaries()

    assert [row.id for row in select_runs(rows, RunQuery(with_star=True))] == [first.id]
    assert [row.id for row in select_runs(rows, RunQuery(projects=("Paper draft",)))] == [second.id]
    assert [row.id for row in select_runs(rows, RunQuery(terms="paper DRAFT"))] == [second.id]
