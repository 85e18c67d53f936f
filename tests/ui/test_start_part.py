"""Starting runs and sweeps from the form, once and with reasons."""

import re
import threading
import time
from types import SimpleNamespace

import pytest

from loratory.engine.errors import DatasetError, Problem
from loratory.engine.runs.provenance import read_provenance
from loratory.ui.backend.dataset_checks import CheckQuestion
from loratory.ui.build import build_app
from loratory.ui.components import UNCHANGED
from loratory.ui.tabs.start import REFUSED, StartPart, render_reason, start_key, sweep_of, why_not
from loratory.ui.tabs.train import FOLLOW, TrainTab
from loratory.ui.views.html import duration
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.changes import Changes
from tests.ui.drafts import form_values, values_of
from tests.waiting import wait_until

PAGE = SimpleNamespace(session_hash="page-1")


@pytest.fixture
def tab(laid_out) -> TrainTab:
    return laid_out(TrainTab)


def begin(tab: TrainTab, token: str, copied_from: str, *values) -> Changes:
    return Changes(tab.start, tab.start.begin("run", token, "", copied_from, "", *values))


def begin_sweep(tab: TrainTab, token: str, copied_from: str, *values) -> Changes:
    return Changes(tab.start, tab.start.begin("sweep", token, "", copied_from, *values))


def agree(tab: TrainTab, question: Changes, token: str, *values) -> Changes:
    return waited_for(
        tab, Changes(tab.start, tab.start.begin_agreed(question.open_question, token, "", "", "", *values))
    )


def words_of(tab: TrainTab, question: Changes) -> str:
    assert question._updates[tab.start.confirm.panel]["visible"]
    return str(question._updates[tab.start.confirm.question])


def chosen(tab: TrainTab, changes: Changes) -> str:
    return changes._updates[tab.page.chosen_run]


def waited_for(tab: TrainTab, changes: Changes) -> Changes:
    """Return what the page shows in the end."""
    deadline = time.monotonic() + 300
    while changes._updates[tab.start.job.poll]:
        assert time.monotonic() < deadline, "the start did not come to an end"
        time.sleep(0.01)
        changes = Changes(tab.start, tab.start.show(changes.pending))
    return changes


def start_run(tab: TrainTab, token: str, config) -> Changes:
    return waited_for(tab, begin(tab, token, "", *values_of(tab, config)))


def test_a_complete_draft_starts_a_run_and_the_page_follows_it(tab):
    changes = start_run(tab, "token", a_config(training__max_steps=3))

    run = tab.page.services.runs.get(chosen(tab, changes))
    assert changes.problems == ""
    changes = tab.after_start(changes.goes_to, 0.9, False, False, "")
    assert changes[tab.view] == FOLLOW
    assert changes[tab.follow_column]["visible"]
    assert run.id in (changes[tab.follow.run_shown], changes[tab.follow.choice]["value"])
    assert "No active run" not in changes[tab.follow.heading]
    assert run.folder.read_config().training.max_steps == 3


def test_a_late_answer_changes_nothing_about_where_the_page_goes(tab):
    start_run(tab, "token", a_config(training__max_steps=3))

    assert tab.start.goes_to not in tab.start.show("")


def test_a_start_that_is_asked_for_twice_before_it_is_shown_is_one_run(tab):
    values = values_of(tab, a_config(training__max_steps=3))

    first = waited_for(tab, begin(tab, "token", "", *values))
    second = Changes(tab.start, tab.start.begin("run", "token", first.pending, "", "", *values))

    assert chosen(tab, first) == chosen(tab, second)
    assert second.start["interactive"] is False  # until the run is shown
    assert len(tab.page.services.runs.ids()) == 1


def test_an_unchanged_draft_starts_again_only_if_that_is_confirmed(tab):
    config, runs = a_config(run__name="faq <1>", training__max_steps=3), tab.page.services.runs
    values = values_of(tab, config)
    first = chosen(tab, start_run(tab, "token", config))

    question = begin(tab, "token", "", *values)  # as after a reload
    assert "ago as <b>faq &lt;1&gt;</b>. Start again?" in words_of(tab, question)
    assert question.goes_to.startswith(REFUSED)
    assert runs.ids() == [first]

    again = [agree(tab, question, "token", *values) for _ in range(2)]
    assert chosen(tab, again[0]) == chosen(tab, again[1]) != first
    assert "Start again?" in words_of(tab, begin(tab, first, "", *values))
    for run_id in runs.ids():
        wait_until(lambda run_id=run_id: runs.get(run_id).folder.read_state().is_final)
        runs.delete(run_id)
    assert chosen(tab, start_run(tab, first, config)) in runs.ids()


def test_an_unchanged_sweep_is_queued_again_only_if_that_is_confirmed(tab):
    values = values_of(tab, a_config(training__max_steps=3))
    for _ in range(2):
        question = waited_for(tab, begin_sweep(tab, "token", "", "training.learning_rate = 1e-4, 5e-4, 1e-3", *values))

    assert "and 2 more runs. Start again?" in words_of(tab, question)
    assert len(tab.page.services.runs.ids()) == 3


def test_a_learning_rate_far_above_the_usual_one_is_asked_about_once(tab):
    values = values_of(tab, a_config(training__max_steps=3, training__learning_rate=1))

    question = begin(tab, "token", "", *values)
    text = words_of(tab, question)
    assert "The learning rate 1 is 5,000 times the usual 0.0002 for LoRA. Lower it, or start anyway." in text
    assert question._updates[tab.start.confirm.really] == "Start anyway"
    assert not tab.page.services.runs.ids()

    start = agree(tab, question, "token", *values)
    # What follows the refusal may come later than that click: the page still waits for the start.
    assert tab.start.enable(question.goes_to) == {tab.start.pending: UNCHANGED}
    assert chosen(tab, start) in tab.page.services.runs.ids()
    assert tab.start.enable(start.goes_to)[tab.start.pending] == ""
    swept = begin_sweep(tab, "token", "", "training.learning_rate=1e-4, 0.5", *values_of(tab, a_config()))
    assert "The learning rate 0.5 is 2,500 times" in words_of(tab, swept)


@pytest.mark.parametrize(("max_length", "is_asked"), [(113, True), (114, False)])  # cuts 5.4% and 4.5%
def test_a_start_that_cuts_more_than_a_tail_of_the_rows_is_asked_about(tab, max_length, is_asked):
    config = a_config(training__max_steps=3, training__max_length=max_length)
    check = tab.page.services.checks.read(CheckQuestion.from_config(config))
    wait_until(lambda: check.is_done)
    rows = check.report.row_lengths
    assert (rows.cut_rows(max_length) > 0.05 * rows.count) is is_asked
    values = values_of(tab, config)

    question = begin(tab, "token", "", *values)

    if is_asked:
        cut = f"{rows.cut_rows(max_length)} of {rows.count} training rows are cut at {max_length} tokens; the longest has 240."
        assert f"{cut} Raise Max length, or start anyway." in words_of(tab, question)
        assert not tab.page.services.runs.ids()
        question = agree(tab, question, "token", *values)
    assert chosen(tab, waited_for(tab, question)) in tab.page.services.runs.ids()


def test_a_run_remembers_which_one_its_settings_were_copied_from(tab):
    original = chosen(tab, start_run(tab, "token", a_config(training__max_steps=3)))
    values = values_of(tab, a_config(training__max_steps=4))
    runs = tab.page.services.runs

    copy = chosen(tab, waited_for(tab, begin(tab, "token", original, *values)))
    orphan = chosen(tab, waited_for(tab, begin(tab, "later", "20250101-000000-000-abcd", *values)))
    waited_for(tab, begin_sweep(tab, "token", original, "training.learning_rate=1e-4, 5e-4", *values))

    assert read_provenance(runs.get(copy).folder).copied_from == original
    assert read_provenance(runs.get(orphan).folder).copied_from is None
    swept = [run for run in runs.list() if run.id not in (original, copy, orphan)]
    assert [read_provenance(run.folder).copied_from for run in swept] == [original] * 2


def test_a_changed_draft_or_a_later_start_is_another_run(tab):
    ids = {
        chosen(tab, start_run(tab, "token", a_config(training__max_steps=3))),
        chosen(tab, start_run(tab, "token", a_config(training__max_steps=4))),
        chosen(tab, start_run(tab, "later", a_config(training__max_steps=3))),
    }

    assert len(ids) == 3
    assert start_key("a", [a_config()]) != start_key("b", [a_config()])


def test_problems_are_shown_in_place_and_nothing_starts(tab):
    mapping = a_config().model_dump(mode="json")
    values = form_values(tab.page.form, mapping, training__learning_rate=7.0, adapter__r=0)

    changes = begin(tab, "token", "", *values)

    assert "2 settings need your attention" in changes.problems
    assert "training.learning_rate" in changes.problems
    assert not tab.page.services.runs.ids()
    assert tab.page.chosen_run not in changes._updates  # the chosen run stays
    assert changes._updates[tab.start.job.poll] == ""


def test_a_start_reports_what_it_is_checking_and_holds_no_handler_meanwhile(tab, monkeypatch):
    launcher, goes_on = tab.page.services.launcher, threading.Event()
    start = launcher.start

    def slow(config, key, *, on_progress, **settings):
        on_progress("Checking the data: 12 rows.")
        assert goes_on.wait(300)
        return start(config, key, **settings)

    monkeypatch.setattr(launcher, "start", slow)
    changes = begin(tab, "token", "", *values_of(tab, a_config(training__max_steps=3)))
    question = changes._updates[tab.start.job.poll]
    wait_until(lambda: "12 rows" in str(tab.start.job.news(question, "")))
    goes_on.set()
    assert waited_for(tab, changes).problems == ""


def test_a_start_that_is_refused_reports_why_and_can_be_tried_again(tab, monkeypatch):
    def refuse(*_, **__):
        raise DatasetError("The file is gone.", "Choose another.")

    launcher = tab.page.services.launcher
    monkeypatch.setattr(launcher, "start", refuse)
    config = a_config(training__max_steps=3)
    changes = start_run(tab, "token", config)
    assert "The file is gone." in changes.problems
    assert changes.start["interactive"]
    monkeypatch.undo()
    assert chosen(tab, start_run(tab, "token", config)) in tab.page.services.runs.ids()


def test_a_start_is_compared_with_the_rows_that_the_page_counted(tab, monkeypatch):
    reports = []

    def refuse(*_, **settings):
        reports.append(settings["preview"])
        raise DatasetError("The file changed since the preview.", "Look at its rows on the Data tab.")

    services, config = tab.page.services, a_config(training__max_steps=3)
    monkeypatch.setattr(services.launcher, "start", refuse)
    question = CheckQuestion.from_config(config)
    check = services.checks.request(question)
    wait_until(lambda: check.is_done)

    changes = start_run(tab, "token", config)

    assert reports == [check.report]
    assert check.report is not None
    assert "changed since the preview" in changes.problems
    assert services.checks.find(question) is None, "its rows are read again"


def test_a_sweep_files_a_run_for_every_combination_once_and_shows_them(tab):
    values = values_of(tab, a_config(training__max_steps=3, adapter__r=16, adapter__lora_alpha=32))

    changes = waited_for(
        tab, begin_sweep(tab, "token", "", "training.learning_rate = 1e-4, 5e-4\n\nadapter.r = 8,16,", *values)
    )

    configs = [run.folder.read_config() for run in tab.page.services.runs.list()]
    assert sorted((c.training.learning_rate, c.adapter.r, c.adapter.lora_alpha) for c in configs) == [
        (1e-4, 8, 16), (1e-4, 16, 32), (5e-4, 8, 16), (5e-4, 16, 32),
    ]  # fmt: skip
    assert changes.goes_to.startswith("runs ")
    origins = [read_provenance(run.folder) for run in tab.page.services.runs.list()]
    assert len({origin.sweep for origin in origins}) == 1
    assert {(*origin.swept.items(),) for origin in origins} == {
        (("adapter.r", rank), ("training.learning_rate", rate)) for rank in ("8", "16") for rate in ("0.0001", "0.0005")
    }


def plan(tab: TrainTab, axes: str, config) -> str:
    return tab.start.plan_sweep(axes, *values_of(tab, config))


def test_a_sweep_is_planned_while_it_is_typed(tab, services):
    config = a_config(training__max_steps=120)
    services.shapes.learn(config.model)
    check = services.checks.request(CheckQuestion.from_config(config))
    wait_until(lambda: check.is_done)
    axes = "r = 8, 64\nseed = 1, 2, 3"

    unknown = plan(tab, axes, config)
    assert "6 runs, time unknown until a similar run." in unknown
    assert re.search(r"Fits in memory. The largest, r 64, seed \d, needs [\d.]+ of [\d.]+ GiB free.", unknown)

    write_run(services.runs, config, InventedRun())
    tab.page.reader.invalidate()
    draft = tab.page.draft(values_of(tab, config))
    seconds = tab.seconds_of(draft, [config])
    assert seconds is not None
    assert seconds > tab.around_seconds(tab.similar_run(draft))
    assert f"6 runs, ≈ {duration(6 * seconds)} one by one." in plan(tab, axes, config)
    longer = tab.seconds_of(draft, [config, a_config(training__max_steps=240)])
    assert 2 * seconds < longer < 3 * seconds


def test_the_largest_of_a_sweep_may_not_fit(tab, services, monkeypatch):
    config = a_config()
    services.shapes.learn(config.model)
    text = plan(tab, "training.per_device_train_batch_size = 1, 4096, 2", config)

    assert "3 runs" in text
    assert "Does not fit in memory. The largest, per_device_train_batch_size 4096, needs" in text


def test_what_is_wrong_with_a_sweep_is_shown_while_it_is_typed(tab):
    config = a_config()

    assert "1 run," in plan(tab, "adapter.r = 8", config)
    for axes, field, message in (
        ("training.learning_rate = 1e-4, fast", "learning_rate", "fast"),
        ("adapter.rank = 8", "adapter.rank", "adapter.r"),
        ("adapter.r = 8, 8", "adapter.r", "is given twice"),
    ):
        text = plan(tab, axes, config)
        assert 'role="status"' in text
        assert field in text
        assert message in text
    assert "Each combination" in plan(tab, " ", config)
    assert "Each combination" in tab.start.plan_sweep("adapter.r = 8", *tab.page.form.updates({}))


def test_a_swept_alpha_follows_no_rank(tab):
    configs = sweep_of(a_config(), "adapter.r = 8, 16\nadapter.lora_alpha = 8, 16")

    assert [(config.adapter.r, config.adapter.lora_alpha) for config in configs] == [(8, 8), (8, 16), (16, 8), (16, 16)]


@pytest.mark.parametrize(("axes", "message"), [("", "has no values"), ("training.learning_rate=seven", "learning_rate"), ("adapter.r=0", "adapter.r"), ("r", "section.field"), ("rank = 8, 16", "did you mean adapter.r?")])  # fmt: skip
def test_a_sweep_that_cannot_work_reports_it_and_files_nothing(tab, axes, message):
    changes = begin_sweep(tab, "token", "", axes, *values_of(tab, a_config()))

    assert message in changes.problems
    assert not tab.page.services.runs.ids()


def test_an_incomplete_draft_cannot_be_started_and_reports_why(tab):
    page = tab.page
    wrong = form_values(page.form, a_config().model_dump(mode="json"), training__num_train_epochs=-1)

    assert why_not(page.draft(page.form.updates({}))) == "Choose a model. Choose a dataset."
    draft = page.draft(wrong)
    assert why_not(draft) == "One setting needs your attention."
    assert "training.num_train_epochs" in render_reason(draft)
    assert isinstance(draft.problems[0], Problem)


def test_a_refusal_leaves_with_the_draft_that_it_was_about(services):
    app = build_app(services)
    start = next(
        function.fn.__self__
        for function in app.fns.values()
        if getattr(function.fn, "__func__", None) is StartPart.show
    )
    (clearing,) = [function for function in app.fns.values() if function.targets == [(start.draft_key._id, "change")]]

    assert clearing.outputs == [start.problems, start.confirm.panel]
    assert clearing.fn is None
    assert clearing.js.startswith("() => [''")
    drafts = [start.page.draft(start.page.form.updates(a_config(dataset__source=name).model_dump(mode="json"))) for name in ("bad", "bad", "good")]  # fmt: skip
    keys = [dict(start.page.views)[start.draft_key](draft) for draft in drafts]
    assert keys[0] == keys[1] != keys[2]
