"""Measuring on the page: started, followed, read row by row and across runs."""

import re

import gradio as gr
import pytest

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.config.results import TestSet
from loratory.engine.evaluation.job import EvaluationRequest
from loratory.engine.evaluation.samples import AnswerSample, PromptSamples, measure_test
from loratory.engine.scoring.base import Verdict
from loratory.ui.backend.results import MeasuredRun
from loratory.ui.backend.run_reader import FINAL
from loratory.ui.tabs.chat import ChatTab
from loratory.ui.tabs.chat_choice import A_MODEL, AS_TRAINED, NOTHING, Chosen
from loratory.ui.views.evaluation import question_of, render_across, render_answered, render_evaluation
from loratory.ui.views.html import ListPage
from tests.data.workshop.made_sets import make_set
from tests.fake_results import FakeEvaluation, a_preference_evaluation, a_rated_evaluation, an_evaluation
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.changes import Changes

WAIT_SECONDS = 300


@pytest.fixture
def tab(laid_out) -> ChatTab:
    return laid_out(ChatTab)


@pytest.fixture
def part(tab):
    return tab.evaluate


@pytest.fixture
def run(services):
    return write_run(services.runs, a_config(run__name="faq <16>"), InventedRun())


def start(part, run_id, checkpoint=FINAL, rows=None, answered_rows=20, test=("", ())) -> str:
    """Return the status after a start, as the page has it."""
    handler = part.job.shown_in_status(part.start)
    return handler(run_id, checkpoint, 0, "local", rows, answered_rows, 64, True, *test)[part.job.status]


def show(part, run_id, checkpoint=FINAL, number=0) -> Changes:
    return Changes(part, part.show(run_id, checkpoint, number))


def pick(part, run_id, what, number=0) -> Changes:
    event = gr.EventData(None, {"pick": what})
    return Changes(part, part.open_row(event, run_id, FINAL, number, "local", None, 20, 64, True, "", ()))


def buttons(part, changes) -> Changes:
    return Changes(part.job, changes._updates)


def measure(part, services, run, checkpoint=FINAL, answered_rows=20):
    start(part, run.id, checkpoint, answered_rows=answered_rows)
    assert services.results.measuring.find(run.id).done.wait(WAIT_SECONDS)


def test_before_it_is_measured_it_reports_what_would_be(part, run):
    changes = show(part, run.id)

    assert "Not measured yet" in changes.result
    assert buttons(part, changes).start["value"] == "Measure"
    assert changes.rows == ""


def test_a_model_alone_cannot_be_measured(part):
    changes = show(part, A_MODEL)

    assert "Choose a run to measure" in changes.result
    assert not buttons(part, changes).start["interactive"]
    assert "No run is chosen" in start(part, A_MODEL)


def test_while_it_measures_the_bar_moves_and_it_can_be_stopped(part, services, run):
    request = EvaluationRequest(target=ChatTarget.of_run(run.folder.path))
    services.results.measuring.start(run.id, "An evaluation", FakeEvaluation(request, pace_seconds=5))

    changes = show(part, run.id)
    assert buttons(part, changes).stop["visible"]
    assert not buttons(part, changes).start["interactive"]
    assert "is under way" in start(part, run.id)

    part.job.end(run.id)
    assert services.results.measuring.find(run.id).done.wait(WAIT_SECONDS)
    changes = show(part, run.id)
    assert "measured losses are kept" in buttons(part, changes).status
    assert "Not measured yet" in changes.result


def test_what_was_found_is_read_page_by_page_and_survives_the_server(part, services, run, laid_out):
    measure(part, services, run)

    changes = show(part, run.id)
    assert "1.0821" in changes.result
    assert "15.09" in changes.result  # e to 2.7143
    assert "1–5 of 20 answered rows" in changes.rows
    assert changes.rows.count("<section>") == 5
    assert 'data-pick="page:1"' in changes.rows
    assert "Worse" not in changes.rows
    assert pick(part, run.id, "page:2").number == 2
    assert pick(part, run.id, "page:x", number=1).number == 1
    last = show(part, run.id, number=99)
    assert last.number == 3
    assert "Better" not in last.rows

    services.results.measuring._works.clear()  # as after a restart of the server
    assert "1.0821" in show(laid_out(ChatTab).evaluate, run.id).result


def test_a_result_of_another_process_is_shown_once_it_is_there(part, services, run):
    question = show(part, run.id)._updates[part.job.poll]
    assert part.job.news(question, "") is None

    FakeEvaluation(EvaluationRequest(target=ChatTarget.of_run(run.folder.path)), 0).run(lambda _: None)

    assert '"submit":true' in part.job.news(question, "")


def test_each_state_of_a_run_has_its_own_result_and_row_in_the_table(part, services, run):
    other = write_run(services.runs, a_config(run__name="other"), InventedRun())
    measure(part, services, run, "step-90")
    measure(part, services, other)

    changes = show(part, run.id)

    assert "Not measured yet" in changes.result
    assert "1.0821" in show(part, run.id, "step-90").result
    assert changes.across.count("data-pick") == 2
    assert "faq &lt;16&gt;" in changes.across
    assert f'data-pick="{run.id}/step-90"' in changes.across
    assert "loratory-faq" in changes.across


def test_settings_out_of_bounds_are_named_as_their_boxes_are(part, services, run):
    html = start(part, run.id, rows=0, answered_rows=-1)

    assert "2 settings need your attention" in html
    assert "Rows to answer" in html
    assert "answered_rows" not in html
    assert services.results.measuring.find(run.id) is None


def test_a_test_set_is_answered_with_the_scorers_that_are_chosen(part, services, run):
    assert "at least 1" in start(part, run.id, test=("rows.jsonl", ()))
    start(part, run.id, test=(" rows.jsonl ", ("number", "length")))

    work = services.results.measuring.find(run.id)
    assert work.done.wait(WAIT_SECONDS)
    (test,) = work.job.request.tests
    assert (test.source, [scorer.scorer for scorer in test.scorers]) == ("rows.jsonl", ["number", "length"])
    choices = {name for _, name in part.scorers.choices}
    assert {"equals", "number", "rouge_l"} <= choices
    assert not {"file", "judge", "regex"} & choices, "they need settings"


def test_scores_of_a_test_set_are_shown_with_their_intervals_and_answers_escaped():
    scorers = TestSet.model_validate({"source": "rows.jsonl", "scorers": [{"scorer": "number"}]})

    def samples(text, score):
        verdicts = (Verdict(score, "Another <number>."),)
        answer = AnswerSample.from_verdicts(text, 2, verdicts, scorers.scorers, is_cut=False)
        return PromptSamples(row=0, prompt="<b>2 + 2?", reference="4", answers=(answer,), tag="easy")

    test = measure_test(scorers, {"base": [samples("<i>5", 0.0)], "tuned": [samples("4", 1.0)]})
    html = render_evaluation(an_evaluation().model_copy(update={"tests": (test,)}))

    assert "rows.jsonl: Number" in html
    assert "1.000" in html
    assert "1 turned right and 0 turned wrong, which may be chance" in html
    assert "easy" in html
    assert "<b>2 + 2" not in html
    assert "<number>" not in html
    only = an_evaluation().model_copy(update={"losses": {}, "tests": (test,)})
    assert "rows.jsonl: Number" in render_evaluation(only), "of prompts, which have no loss"


def test_all_rows_of_the_runs_data_or_of_a_set_are_measured_by_one_button(part, services, run, tmp_path):
    make_set(services.home, tmp_path, name="support")
    html = show(part, run.id).result
    assert re.findall(r'data-pick="measure:(.*?)">(.*?)<', html) == [
        ("", "the run&#x27;s dataset"),
        ("support", "support"),
    ]

    pick(part, run.id, "measure:support")
    work = services.results.measuring.find(run.id)
    assert work.done.wait(WAIT_SECONDS)

    assert work.job.request.settings.model_dump(exclude={"max_new_tokens"}) == {
        "max_rows": None, "answered_rows": 0, "general_text": False, "source": "set:support",
    }  # fmt: skip
    html = show(part, run.id).result
    assert "Loss by row of set:support" in html
    assert "Not measured yet" in html, "the held-out rows"
    assert part._evaluations.across() == []


def test_what_is_picked_names_a_set_and_never_a_file(part, services, run):
    services.results.measuring.start(run.id, "An evaluation", FakeEvaluation(EvaluationRequest(target=ChatTarget()), 5))
    handler = part.job.shown_in_status(part.open_row)
    event = gr.EventData(None, {"pick": "measure:/etc/passwd"})
    assert "is under way" in handler(event, run.id, FINAL, 0, "local", None, 20, 64, True, "", ())[part.job.status]
    services.results.measuring.stop(run.id)
    assert services.results.measuring.find(run.id).done.wait(WAIT_SECONDS)

    pick(part, run.id, "measure:/etc/passwd")

    work = services.results.measuring.find(run.id)
    assert work.done.wait(WAIT_SECONDS)
    assert work.job.request.settings.source == "set:/etc/passwd"


@pytest.mark.parametrize("phase", ["ready", "generating", "loading"])
def test_the_model_of_the_chat_is_unloaded_first_whatever_it_does(tab, services, run, phase):
    list(tab.load_chosen(*Chosen(run.id, FINAL, "", "", NOTHING, AS_TRAINED)))
    services.chat._state = services.chat.state.model_copy(update={"phase": phase})

    measure(tab.evaluate, services, run)

    assert services.chat.state.phase == "empty"


def test_a_model_stays_loaded_while_another_machine_measures(tab, services, run):
    list(tab.load_chosen(*Chosen(run.id, FINAL, "", "", NOTHING, AS_TRAINED)))

    services.free_device("slurm")

    assert services.chat.state.phase == "ready"


def test_everything_that_was_written_is_escaped():
    result = an_evaluation()

    html = render_evaluation(result) + render_answered(result, ListPage.at(0, 99, 99))

    assert "<i>first" not in html
    assert "&lt;i&gt;first" in html


def test_answers_are_shown_as_the_markdown_they_are():
    first, *rest = an_evaluation().answered_rows
    bold = first.model_copy(update={"reference": "**Rank** is `r`."})
    result = an_evaluation().model_copy(update={"answered_rows": (bold, *rest)})

    assert "<strong>Rank</strong> is <code>r</code>" in render_answered(result, ListPage.at(0, 1, 1))


def test_what_was_forgotten_is_next_to_what_was_gained():
    result = an_evaluation()

    html = render_evaluation(result)

    assert "<b>gained 60%</b>held-out rows</div><div><b>forgot 3%</b>general text" in html
    assert "3.1000 → 3.1930" in html
    older = render_evaluation(result.model_copy(update={"general_losses": {}}))
    assert "forgot" not in older.lower()
    assert "gained" not in older


def test_a_run_that_made_it_worse_is_reported_as_such():
    result = an_evaluation()
    losses = {"base": result.losses["tuned"], "tuned": result.losses["base"]}

    assert "Training made it worse" in render_evaluation(result.model_copy(update={"losses": losses}))


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is r?<|im_end|>\n<|im_start|>assistant\n",
        "<s>[INST] What is r? [/INST]",
        "<bos><start_of_turn>user\nWhat is r?<end_of_turn>\n<start_of_turn>model\n",
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is r?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "What is r?",
    ],
)
def test_an_answered_row_shows_its_question_without_the_template(prompt):
    assert question_of(prompt) == "What is r?"


def test_preferences_are_shown_for_base_start_and_result_with_their_uncertainty():
    html = render_evaluation(a_preference_evaluation())

    assert "Start: faq &lt;b&gt;" in html
    assert "13 of 30 · 43%" in html
    assert "28 of 30 · 93%" in html
    assert "93% (79%–98%)" in html
    assert "the true share lies between 79% and 98%" in html
    assert "changed to the chosen one in 15 of 30 pairs and away from it in 0: that is clear" in html
    assert "since its start, faq &lt;b&gt;, the chosen answer gained" in html
    assert "Forgot: how far" in html, "the other measures stay"
    assert "Preferences" not in render_evaluation(an_evaluation())


def test_ratings_are_shown_with_their_rewards_and_what_they_are_worth():
    html = render_evaluation(a_rated_evaluation())

    assert "83% (66%–93%)" in html
    assert "+0.850" in html  # desirable: 18 gained 10 nats, 2 lost 5
    assert "-0.670" in html  # undesirable: 7 lost 10 nats, 3 gained 1
    assert "+1.520" in html
    assert "in 25 of 30 held-out completions (18 of 20 desirable, 7 of 10 undesirable)" in html
    assert "gained since the base model: above zero is right for a desirable one" in html
    across = render_across([MeasuredRun("a", "", "rated", "completed", "rows", a_rated_evaluation())], "")
    assert "Preference accuracy" in across
    assert "83%" in across
