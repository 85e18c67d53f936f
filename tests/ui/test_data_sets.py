"""My datasets on the Data tab: what the script asks, and what the page answers."""

import base64
import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from gradio import EventData

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.workshop.checks.settings import CheckSettings
from loratory.engine.data.workshop.exchange import add_set
from loratory.engine.data.workshop.sets import find_set, rename_set, rows_of, set_names
from loratory.engine.errors import StorageError
from loratory.engine.evaluation.votes import Votes
from loratory.engine.files import write_atomically
from loratory.ui.components import script
from loratory.ui.tabs import data_sets
from loratory.ui.tabs.data import DataTab
from tests.data.checks import check_dataset
from tests.evaluation.test_votes import a_vote
from tests.fake_services import fake_services
from tests.invented_runs import InventedRun, a_config, write_run

FORM = {"dataset": {"source": "sample:loratory-faq"}, "model": {"id": "some/model"}, "training": {}, "openable": ""}


@pytest.fixture
def faq(services):
    config = DatasetConfig(source="sample:loratory-faq")
    return add_set(services.home, "faq", config, author="Ann", require_space=lambda _: None)


@pytest.fixture
def tab(laid_out):
    return laid_out(DataTab)


@pytest.fixture
def query(tab):
    return lambda do, form=FORM, **values: tab.sets.answer(json.dumps({"do": do, "form": form, **values}))


def test_a_list_has_all_datasets_and_the_runs_that_used_each(query, faq, services):
    services.home.uploads.mkdir(parents=True, exist_ok=True)
    upload = services.home.uploads / "rows.jsonl"
    upload.write_text('{"text": "<x>"}\n')
    version = faq.versions[0].name
    configs = (
        a_config(dataset__source=f"set:faq@{version}"), a_config(dataset__source="owner/name"),
        a_config(dataset__source="sample:lab-chats", dataset__mix={f"set:faq@{version}": 1.0, str(upload): 0.5}),
    )  # fmt: skip
    runs = [write_run(services.runs, config, InventedRun()).id for config in configs]
    Votes(services.home).save(a_vote())
    rename_set(services.home, "faq", "help")

    datasets = {entry["kind"]: entry for entry in query("list")["datasets"]}

    assert list(datasets) == ["set", "votes", "upload", "hub"]
    assert (datasets["set"]["source"], datasets["set"]["rows"], datasets["set"]["version"]) == (
        "set:help",
        354,
        version,
    )
    assert datasets["set"]["runs"] == sorted([runs[0], runs[2]])
    assert (datasets["hub"]["source"], datasets["hub"]["runs"]) == ("owner/name", [runs[1]])
    assert (datasets["upload"]["name"], datasets["upload"]["bytes"], datasets["upload"]["runs"]) == (
        "rows.jsonl",
        16,
        [runs[2]],
    )
    assert (datasets["votes"]["rows"], datasets["votes"]["runs"]) == (1, [])
    steps = query("log", name="help")
    assert sorted(steps["runs"][version]) == datasets["set"]["runs"]


def test_rows_of_a_dataset_are_those_that_its_last_run_counted(query, services):
    run = write_run(services.runs, a_config(dataset__source="owner/name"), InventedRun())
    report = check_dataset(DatasetConfig(source="sample:lab-chats"))
    part = report.parts[0].model_copy(update={"source": "owner/name"})
    write_atomically(run.folder.dataset_report, report.model_copy(update={"parts": (part,)}).model_dump_json())

    (hub,) = query("list")["datasets"]
    assert hub["rows"] == 118


def pick(tab, source):
    return tab._pick_own(EventData(None, {"pick": source}))


def test_a_click_uses_a_dataset_and_a_new_name_keeps_the_settings(tab, faq, services):
    assert pick(tab, "set:faq")["dataset"]["source"] == "set:faq"
    version = f"set:faq@{faq.versions[0].name}"
    assert pick(tab, version)["dataset"]["source"] == version
    assert pick(tab, version)["dataset"]["column_map"] == {}
    assert pick(tab, "now:set:faq") == {"dataset": {"source": "set:faq"}}
    with pytest.raises(StorageError, match="give no pair"):
        pick(tab, "votes")


def test_a_dataset_of_the_hub_is_read_as_its_last_run_read_it(tab, services):
    settings = {"dataset__subset": "main", "dataset__column_map": {"prompt": "q"}, "dataset__max_samples": 3}
    write_run(services.runs, a_config(dataset__source="owner/name", **settings), InventedRun())
    chosen = pick(tab, "owner/name")["dataset"]
    assert (chosen["source"], chosen["subset"], chosen["column_map"]) == ("owner/name", "main", {"prompt": "q"})
    assert chosen["max_samples"] is None


def test_votes_and_uploads_are_used_and_downloaded(tab, query, services):
    Votes(services.home).save(a_vote())
    path = Path(pick(tab, "votes")["dataset"]["source"])
    assert path.parent == services.home.uploads
    assert pick(tab, str(path))["dataset"]["source"] == str(path)
    run = write_run(services.runs, a_config(dataset__source=str(path)), InventedRun())
    assert [entry["runs"] for entry in query("list")["datasets"]] == [[run.id]] * 2
    for source in ("votes", str(path)):
        answer = query("file", source=source)
        assert answer["name"] == path.name
        assert base64.b64decode(answer["content"]) == path.read_bytes()
    for source in ("/etc/passwd", str(path.parent / ".." / "x"), "owner/name"):
        assert "is not an upload" in query("file", source=source)["error"]


def test_a_set_is_renamed_and_a_name_in_use_is_refused(query, faq, services):
    assert query("rename", name="faq", other="help") == {}
    assert set_names(services.home) == ["help"]
    assert "cannot be the name of a set" in query("rename", name="faq", other="../x")["error"]
    assert "is the name of a set" in query("rename", name="faq", other="help")["error"]


def test_the_open_file_becomes_a_set(query, services):
    assert query("make") == {"name": "loratory-faq"}
    assert set_names(services.home) == ["loratory-faq"]
    assert "was not found" in query("make", {**FORM, "dataset": {"source": "/nowhere/rows.jsonl"}})["error"]


def test_a_full_disk_refuses_a_set_and_an_operation(query, faq, monkeypatch):
    def refuse(home, owner, more_bytes=0):
        raise StorageError("The disk is full.", "Delete something.")

    monkeypatch.setattr(data_sets, "require_disk_space", refuse)
    assert "The disk is full" in query("make")["error"]
    assert "The disk is full" in query("apply", name="faq", operations=[{"kind": "exclude", "rows": "1"}])["error"]


def test_a_change_forgets_what_was_read_of_the_set(query, faq, services, monkeypatch):
    forgotten = []
    monkeypatch.setattr(services.checks, "forget", lambda dataset: forgotten.append(dataset.source))
    form = {**FORM, "dataset": {"source": "set:faq"}}
    assert query("apply", form, name="faq", operations=[{"kind": "exclude", "rows": "1"}], since=0)["last"] == 1
    assert forgotten == ["set:faq"]
    assert (
        "came in between" in query("apply", name="faq", operations=[{"kind": "exclude", "rows": "1"}], since=0)["error"]
    )
    assert len(find_set(services.home, "faq").entries) == 1


def test_tokens_are_those_of_what_is_typed(query, faq):
    html = query("tokens", name="faq", row=3, record={"instruction": "<b>Typed</b>", "output": "x"})["html"]
    assert "Row 3 of" in html
    assert "&lt;b&gt;Typed&lt;/b&gt;" in html


def test_a_damaged_set_is_listed_and_deleted(query, faq, services):
    (faq.folder / "log.jsonl").write_text("<x>\n")
    (entry,) = query("list")["datasets"]
    assert "of the log of the set faq is not its operation" in entry["problem"]
    assert query("delete", name="faq") == {}
    assert set_names(services.home) == []


def test_names_are_looked_up_and_a_guest_has_no_sets(query, faq, services, laid_out, tmp_path):
    assert "does not exist" in query("delete", name="../faq")["error"]
    assert "error" in query("rows", name=["faq"])
    assert set_names(services.home) == ["faq"]
    home = replace(services.home, owner="guest", role="guest")
    guest = fake_services(tmp_path / "guest", home=home)
    assert set_names(home) == []
    part = data_sets.SetsPart.__new__(data_sets.SetsPart)
    part.services = guest
    assert part.answer(json.dumps({"do": "list", "form": FORM}))["datasets"] == []
    assert "error" in part.answer(json.dumps({"do": "make", "form": FORM}))


@pytest.mark.parametrize(
    ("source", "openable"),
    [
        ("/data/rows.jsonl", "rows.jsonl"),
        ("sample:lab-chats", "lab-chats"),
        ("set:faq", ""),
        ("owner/name", ""),
        ("", ""),
    ],
)
def test_a_file_or_a_sample_can_become_a_set(tab, source, openable):
    values = tab.page.form.updates(a_config(dataset__source=source or "x").model_dump(mode="json"))
    draft = tab.page.draft(values)
    draft.mapping["dataset"]["source"] = source
    assert json.loads(data_sets.render_form(draft))["openable"] == openable


def ended(query, form=FORM):
    """Follow the checks of the set faq to their end, and return the last answer."""
    for _ in range(600):
        if not (answer := query("check", form, name="faq"))["is_running"]:
            return answer
        time.sleep(0.05)
    raise AssertionError("the checks did not end")


def test_checks_run_in_the_background_and_stay_for_other_pages(query, faq, services, laid_out):
    assert query("check", name="faq")["checks"] == []
    assert query("check", name="faq", settings={"similarity": "0.5", "over": "prompts"})["is_running"]
    answer = ended(query)
    assert answer["settings"]["similarity"] == 0.5
    assert answer["rows"] == 354
    again = laid_out(DataTab).sets.answer(json.dumps({"do": "check", "form": FORM, "name": "faq"}))
    assert [check["name"] for check in again["checks"]] == [check["name"] for check in answer["checks"]]


def test_boxes_of_checks_are_made_of_the_fields_of_their_settings(query, faq):
    fields = query("check", name="faq")["fields"]

    assert list(fields) == list(CheckSettings.model_fields)
    places = re.findall('data-fields="([^"]+)"', script("sets", "html"))
    assert sorted(" ".join(places).split()) == sorted(fields)
    assert fields["similarity"].items() >= {"default": 0.3, "minimum": 0.2, "maximum": 1.0}.items()
    assert "refusal: i cannot help with" in fields["refusals"]["examples"][0]


def test_checks_hold_out_what_the_draft_holds_out(query, faq):
    form = {**FORM, "dataset": {"source": "set:faq", "eval_fraction": 0.5}}
    query("check", form, name="faq", settings={})
    assert ended(query, form)["held_out_rows"] == 177
    query("check", {**FORM, "dataset": {"source": "sample:lab-chats", "eval_fraction": 0.5}}, name="faq", settings={})
    assert ended(query)["held_out_rows"] == round(354 * DatasetConfig(source="-").eval_fraction)


def test_checks_are_stopped_and_say_why_they_failed(query, faq, services, monkeypatch):
    start = threading.Event()

    def endless(question, on_progress=None):
        start.set()
        while True:
            on_progress({"rows": 12, "bytes_read": 1, "size_bytes": 4})
            time.sleep(0.01)

    ask = services.inspector.sets
    monkeypatch.setattr(
        services.inspector, "sets", lambda q, note=None: endless(q, note) if q.do == "check" else ask(q, note)
    )
    query("check", name="faq", settings={})
    assert start.wait(10)
    assert query("check", name="faq", settings={})["error"]  # one at a time
    query("check", name="faq", stop=True)
    assert "The checks were stopped" in ended(query)["html"]
    monkeypatch.undo()
    assert "similarity" in query("check", name="faq", settings={"similarity": 7})["error"]
    query("check", name="faq", settings={"against": "/nowhere/rows.jsonl"})
    assert "was not found" in ended(query)["html"]


def test_a_remedy_is_applied_to_the_rows_of_a_check(query, faq, services):
    duplicate = {"kind": "edit", "row": 2, "record": next(iter_rows(faq))}
    query("apply", name="faq", operations=[duplicate])
    query("check", name="faq", settings={})
    ended(query)
    assert query("apply", name="faq", operations=[], check="duplicates", remedy="exclude", since=1)["last"] == 2
    assert rows_of(find_set(services.home, "faq").entries[-1].operation, []) == ((1, 2),)
    assert "no rows left" in query("apply", name="faq", check="duplicates", remedy="exclude")["error"]
    assert "error" in query("apply", name="faq", check="duplicates", remedy="delete")


def iter_rows(faq):
    """Yield the values of the rows of a set's copy."""
    return (json.loads(line) for line in faq.copy().read_text().splitlines())


def test_cards_of_scorers_are_drawn_and_what_they_hold_is_checked(query, faq):
    html = query("scorers", scorers=[{"scorer": "length", "at_least": 40}, {"scorer": "<b>"}])["html"]
    assert html.count("<fieldset") == 1
    assert "Scorers</h3>" in html

    query("check", name="faq", settings={"score_below": 0.9}, scorers=[{"scorer": "length", "at_least": 100}])
    answer = ended(query)
    (quality,) = (check for check in answer["checks"] if check["name"] == "quality")
    assert quality["counts"]["exclude"] == quality["rows"] > 0
    assert answer["scorers"][0]["at_least"] == 100
    assert query("rows", name="faq", sort="score")["rows"][0]["score"] < 0.9

    assert "missing" in query("check", name="faq", settings={}, scorers=[{"scorer": "regex"}])["error"]


def test_a_judge_with_a_key_is_for_the_command(query, faq):
    judge = {"scorer": "judge", "endpoint": "http://x/v1", "model": "m", "rubric": "?", "key_variable": "JUDGE_API_KEY"}
    assert "loratory data check set:faq --scorer" in query("check", name="faq", settings={}, scorers=[judge])["error"]
