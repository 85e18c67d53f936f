"""One run in the Runs tab: its details, copied, renamed, moved and deleted."""

import json
import re

import gradio as gr
import pytest

from loratory.engine.data.workshop.sets import delete_set, set_folder
from loratory.engine.errors import EngineError, RunError
from loratory.engine.runs.control import read_notes
from loratory.engine.runs.projects import read_project_tests
from loratory.ui.tabs.runs import RunsTab
from tests.data.workshop.made_sets import apply, make_set, newest
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.changes import Changes
from tests.ui.runs_tab_visitor import QUERY, describe, list_runs, pick, table_of


@pytest.fixture
def tab(laid_out) -> RunsTab:
    return laid_out(RunsTab)


def test_details_show_the_record_and_offer_what_can_be_done(tab, history, services):
    changes = describe(tab, history[1])
    record = changes.record

    assert changes.panel["visible"]
    assert "lora_alpha: 32" in record
    assert "transformers" in record
    assert "Checkpoint" in record
    assert history[1] in changes.details
    assert changes.continuing["visible"]
    assert changes.delete["visible"]
    assert not tab.one.describe(history[1])[tab.one.confirm.panel]["visible"]
    waiting = describe(tab, history[0])
    assert not waiting.continuing["visible"]
    assert not waiting.delete["visible"]


def test_a_run_on_a_version_of_a_set_says_that_the_set_is_another_now(tab, services, tmp_path):
    home = services.home
    make_set(home, tmp_path)
    version = newest(home)
    run = write_run(services.runs, a_config(dataset__source=f"set:faq@{version}"), InventedRun())
    assert "is now" not in describe(tab, run.id).details

    apply(home, {"kind": "exclude", "rows": "2"})
    assert f"The set is now set:faq@{newest(home)}." in describe(tab, run.id).details

    apply(home, {"kind": "undo", "id": 1})
    assert newest(home) == version
    assert "is now" not in describe(tab, run.id).details
    delete_set(set_folder(home, "faq"))
    assert f"set:faq@{version}" in describe(tab, run.id).details


def test_a_copy_has_the_settings_but_not_the_name_and_may_begin_with_the_adapter(tab, history):
    mapping = tab.one.follow.configuration(history[1])

    assert mapping["run"]["name"] == ""
    assert mapping["dataset"]["source"] == "sample:loratory-faq"
    assert mapping["adapter"]["warm_start"] is None
    assert tab.one.continuation(history[1])["adapter"]["warm_start"] == history[1]


def test_name_note_and_tags_are_kept_next_to_the_configuration(tab, history, services):
    tab.one.save_notes(history[1], "", "paper, draft ,", "rank 8 was enough <i>")
    tab.one.follow.edit(f"name:{history[1]}:The good: one ")

    html = table_of(tab, search="good paper")
    assert html.count("<tr data-pick") == 1
    assert f"The good: one · {history[1][-4:]}" in html
    facts = describe(tab, history[1]).details
    assert "rank 8 was enough &lt;i&gt;" in facts
    assert services.runs.get(history[1]).folder.read_config().run.name == "faq, rank 16"
    assert "The good: one" in tab.one.follow.refresh(history[1], 0.9, False, False)[tab.one.follow.heading]
    tab.one.follow.edit(f"name:{history[1]}:")
    assert tab.page.reader.observe(history[1]).title == "faq, rank 16", "without a name, the first one is back"
    with pytest.raises(EngineError, match="120"):
        tab.one.follow.edit(f"name:{history[1]}:{'x' * 200}")


@pytest.mark.parametrize(
    "pick_text", ["name:../../etc:x", "star:", "star", "delete:{}", "tags:{}:x", "name:{}x:y", "star:ann/{}", ""]
)
def test_an_edit_that_is_not_offered_changes_nothing(tab, history, services, pick_text):
    tab.one.follow.edit(pick_text.format(history[1]))

    assert not list(services.runs.folder.glob("*/notes.json"))


def test_a_star_is_given_and_removed_in_the_table_and_in_the_heading(tab, history, services):
    def take_star(run_shown: str = ""):
        return tab.take(pick(f"star:{history[1]}"), [], False, 100, *QUERY, 0.9, False, False, run_shown)

    assert take_star() == gr.skip()
    assert read_notes(services.runs.get(history[1]).folder).star
    assert re.findall('aria-pressed="true" *data-pick="([^"]+)|data-pick="([^"]+)"[^>]*aria-pressed="true"', table_of(tab)) == [
        ("", f"star:{history[1]}")
    ]  # fmt: skip
    assert table_of(tab, state="With a star").count("<tr data-pick") == 1
    assert 'aria-pressed="true"' in tab.one.follow.refresh(history[1], 0.9, False, False)[tab.one.follow.heading]

    updates = take_star(run_shown=history[1])
    assert 'aria-pressed="false"' in updates[tab.one.follow.heading], "the run that is shown is drawn again"
    assert "No matching runs" in table_of(tab, state="With a star")
    assert tab.page.chosen_run not in updates


def test_a_run_moves_to_a_project_which_the_table_can_be_restricted_to(tab, history, services):
    assert not [choice for choice in list_runs(tab).state["choices"] if choice.startswith("Project")]
    tab.one.save_notes(history[1], "Paper <1>", "", "")
    tab.one.save_notes(history[2], "Paper <1>", "", "")
    tab.one.follow.edit(f"star:{history[2]}")

    choices = list_runs(tab).state["choices"]
    assert choices[-2:] == ["With a star", "Project: Paper <1>"]
    html = table_of(tab, state="Project: Paper <1>")
    assert html.count("<tr data-pick") == html.count("<b>Paper &lt;1&gt;</b>") == 2
    assert "Paper &lt;1&gt;" in describe(tab, history[1]).details
    offers = describe(tab, history[3]).project
    assert (offers["value"], offers["choices"]) == ("", ["Paper <1>"])
    assert describe(tab, history[1]).project["value"] == "Paper <1>"

    tab.one.save_notes(history[1], None, "", "")
    tab.one.save_notes(history[2], "", "", "")
    listing = list_runs(tab, state="Project: Paper <1>")
    assert "No matching runs" in listing.table
    assert listing.state["choices"][-1] == "Project: Paper <1>", "what is chosen stays a choice"
    assert read_notes(services.runs.get(history[2]).folder).star, "a move leaves the star"


def test_deleting_says_its_size_first_and_then_frees_it(tab, history, services):
    victim = history[1]

    question = " ".join(tab.one.deletion_question(victim))
    assert "kB in all" in question
    assert "faq, rank 16" in question
    updates = tab.one.delete_run(victim, victim, [victim, history[2]])

    assert (updates[tab.page.chosen_run], updates[tab.one.follow.run_shown]) == ("", "")
    assert updates[tab.ticked_runs] == [history[2]]
    assert victim not in services.runs.ids()
    assert describe(tab, victim).panel["visible"] is False
    assert tab.one.delete_run(history[2], history[3], [])[tab.page.chosen_run] == gr.skip(), "another one is chosen"


def test_a_run_that_is_picked_again_keeps_what_is_typed(tab, history):
    first, second = history[1], history[3]
    note, panel, confirm = tab.one.note, tab.one.panel, tab.one.confirm.panel

    updates = tab.one.show(first, 0.9, False, False, "")
    assert updates[tab.one.follow.run_shown] == first
    assert updates[panel]["visible"]
    again = tab.one.show(first, 0.9, False, False, first)
    assert again[panel] == gr.update(visible=True)
    assert note not in again
    another = tab.one.show(second, 0.9, False, False, first)
    assert another[note] == ""
    assert another[confirm] == gr.update(visible=False)


def test_a_question_goes_when_what_it_asks_about_cannot_be_done_any_more(tab, history, services):
    assert tab.one.redraw(history[1])[tab.one.confirm.panel] == gr.skip()
    running = write_run(services.runs, a_config(), InventedRun(state="running", steps=3))
    assert tab.one.redraw(running.id)[tab.one.confirm.panel] == gr.update(visible=False)


def test_a_price_of_electricity_lets_runs_say_their_cost(tab, history):
    assert "kWh" not in describe(tab, history[1]).details
    tab.electricity.save_values("0.3", "€", " 200 ")

    assert "at the stated 200 W" in describe(tab, history[1]).details
    changes = Changes(tab, tab.compare([history[1], history[4]], False))
    assert "kWh" in changes.differences
    assert all("cost, €" in scale for scale in json.loads(changes.overlay)["scales"])
    assert tab.electricity.read_values() == ["0.3", "€", "200"]


def test_the_test_sets_of_a_run_are_attached_to_a_project(tab, services):
    tests = [{"source": "set:sums@v1", "scorers": [{"scorer": "number"}]}]
    run = write_run(services.runs, a_config(evaluation__tests=tests), InventedRun())
    without = write_run(services.runs, a_config(), InventedRun())

    tab.one.attach_tests(run.id, "Paper")

    assert [test.title for test in read_project_tests(services.runs, "Paper")] == ["set:sums@v1"]
    with pytest.raises(RunError, match="no test sets"):
        tab.one.attach_tests(without.id, "Paper")
    with pytest.raises(RunError, match="no name"):
        tab.one.attach_tests(run.id, None)
