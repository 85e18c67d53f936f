"""Following a run: stateless, only what is new, and only what can be done."""

import json

import gradio as gr
import pytest

from loratory.engine.errors import EngineError
from loratory.engine.places.huggingface_jobs.layout import JobRecord
from loratory.engine.places.slurm.place import CLUSTER_FILE, JobResources, SlurmRecord
from loratory.engine.runs.control import request_start_anyway, request_stop, resume_is_requested, with_requested_target
from loratory.engine.runs.history.events import StepData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.usage import save_electricity
from loratory.ui.build import build_app
from loratory.ui.tabs.follow import FollowPart
from loratory.ui.tabs.train import TrainTab
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.changes import Changes

NOTHING = gr.skip()


@pytest.fixture
def follow(laid_out) -> FollowPart:
    return laid_out(TrainTab).follow


@pytest.fixture
def invent(services):
    return lambda **story: write_run(services.runs, a_config(), InventedRun(**story))


def show(follow: FollowPart, run_id: str, log_open: bool = False, run_shown: str = "") -> Changes:
    return Changes(follow, follow.show(run_id, 0.9, False, log_open, run_shown))


def show_resume(follow: FollowPart, run_id: str, run_shown: str = "") -> Changes:
    return Changes(follow.resume, follow.show(run_id, 0.9, False, False, run_shown))


def refresh(follow: FollowPart, run_id: str) -> Changes:
    return Changes(follow, follow.refresh(run_id, 0.9, False, False))


def question_of(changes: Changes):
    return changes._updates.get(changes._part.confirm.panel, NOTHING)


def answer(follow: FollowPart, view: Changes, last_stamp: str = "") -> dict | None:
    """Return the answer of the server to a page that shows `view`."""
    reply = follow.answer(view.live, last_stamp)
    return None if reply is None else json.loads(reply)


def log_a_step(run) -> None:
    with EventWriter(run.folder.events, attempt=1) as writer:
        writer.append(StepData(step=11, epoch=0.3, loss=1.0, learning_rate=1e-4, tokens=6000, tokens_per_second=500.0))


def is_visible(update) -> bool:
    return update["visible"]


def test_a_page_that_asks_gets_nothing_where_nothing_is_new(follow, invent):
    view = show(follow, invent(state="running", steps=10).id)

    assert answer(follow, view) is None


def test_a_page_that_asks_gets_what_was_logged_since(follow, invent):
    run = invent(state="running", steps=10)
    view = show(follow, run.id)
    log_a_step(run)

    reply = answer(follow, view)

    assert "Step 11 of 120" in reply["values"]["run-heading"]
    assert reply["values"]["loss-chart"] not in ("", view.loss)
    assert set(reply["values"]) == {
        "run-heading", "run-made-of", "loss-chart", "preference-charts", "small-charts", "run-memory", "run-answers",
        "run-warnings", "run-timeline",
    }  # fmt: skip
    assert reply["submit"] is False
    assert answer(follow, view, reply["stamp"]) is None
    assert answer(follow, view) == reply, "a page that missed the answer gets it again"


def test_what_only_an_event_can_change_is_asked_for_by_one(follow, invent):
    run = invent(state="running", steps=10)
    view = show(follow, run.id)
    log_a_step(run)
    run.folder.stop_request.touch()

    reply = answer(follow, view)

    assert (reply["values"], reply["submit"]) == ({}, True)
    view = refresh(follow, run.id)
    assert view.run_shown == run.id
    assert not is_visible(view.stop)
    assert is_visible(view.cancel)
    assert "Step 11 of 120" in view.heading
    assert any(run.id == value for _, value in view.choice["choices"])
    assert answer(follow, view) is None


def test_a_page_asks_until_the_run_has_ended(follow, invent):
    run = invent(state="completed")

    assert show(follow, run.id).live == ""
    last = refresh(follow, run.id)
    assert last.live == ""
    assert "completed" in last.choice["choices"][0][0]
    assert show(follow, invent(state="running", steps=3).id).live != ""
    assert show(follow, invent(state="queued").id).live != ""


@pytest.mark.parametrize(
    "question",
    ["", "x", "[]", '{"run": 3}', '{"run": "../..", "last_stamp": "", "smoothing": 9, "log_axis": 0, "log_open": 1}'],
)
def test_a_question_that_no_page_of_ours_asks_gets_no_answer(follow, question):
    assert follow.answer(question, "") is None


def test_the_controls_of_the_curve_change_what_is_asked(follow, invent):
    run = invent(state="running", steps=10)

    curve, live = follow.redraw_loss(run.id, 0.5, True, False).values()

    assert json.loads(live)["smoothing"] == 0.5
    assert curve != show(follow, run.id).loss
    log_a_step(run)
    assert '"type":"log"' in json.loads(follow.answer(live, ""))["values"]["loss-chart"]


@pytest.mark.parametrize(("typed", "smoothing"), [(None, 0), (7, 0.99), (-1, 0)])
def test_a_number_that_no_smoothing_can_be_ends_at_the_nearest(follow, invent, typed, smoothing):
    run = invent(state="running", steps=10)

    assert json.loads(follow.redraw_loss(run.id, typed, False, False)[follow.live])["smoothing"] == smoothing


def test_a_run_has_an_axis_of_its_cost_where_its_price_is_known(follow, invent, services):
    ended, job = invent(state="completed"), invent(state="running", steps=9)
    running = invent(state="running", steps=9)
    save_electricity(services.home, 0.3, "EUR", 400)
    record = JobRecord(attempt=1, namespace="ada", flavor="l4x1", limit_hours=1, price_per_hour_usd=0.8)
    record.model_copy(update={"running_seconds": 900.0}).save(job.folder)

    ends = []
    for run in (ended, job, running):
        scale = json.loads(show(follow, run.id).loss)["scales"][0]
        ends.append({title: values[-1] for title, values in scale.items() if title.startswith("cost")})

    assert ends[0]["cost, EUR"] == pytest.approx(0.3 * 0.4 * (120 * 0.8 + 11) / 3600, rel=1e-3)
    assert ends[1:] == [{"cost, USD": 0.2}, {}]


def test_another_server_on_the_same_home_shows_the_same(services, laid_out, invent):
    run = invent(state="running", steps=10)

    first, second = (show(laid_out(TrainTab).follow, run.id) for _ in range(2))

    assert first.loss == second.loss
    assert first.live == second.live


@pytest.mark.parametrize(
    ("story", "buttons"),
    [
        ({"state": "queued"}, {"stop"}),
        ({"state": "running", "steps": 3}, {"stop", "cancel"}),
        ({"state": "running", "steps": 60}, {"stop", "cancel"}),
        ({"state": "stopping", "steps": 3}, {"cancel"}),
        ({"state": "completed"}, set()),
        ({"state": "stopped", "steps": 3}, {"resume"}),
        ({"state": "failed", "steps": 3}, {"resume"}),
        ({"state": "interrupted", "steps": 60, "resumable_step": 60}, {"resume"}),
    ],
)
def test_only_what_can_be_done_is_offered(follow, invent, story, buttons):
    updates = follow.show(invent(**story).id, 0.9, False, False)

    parts = {"stop": follow.stop, "cancel": follow.cancel, "resume": follow.resume.button}
    offers = {name for name, button in parts.items() if is_visible(updates[button])}

    assert offers == buttons


@pytest.fixture
def cluster(services):
    services.home.make_writable()
    (services.home.root / CLUSTER_FILE).write_text("gpu_types: [{name: t4, memory_gib: 15}]\n")


def test_where_a_run_is_resumed_can_be_chosen_where_there_is_a_cluster(follow, invent, services, cluster):
    run = invent(state="stopped", steps=3)
    view = show_resume(follow, run.id)
    assert (is_visible(view.place), view.place["value"]) == (True, "local")
    assert "value" not in show_resume(follow, run.id, run_shown=run.id).place, "what a person has chosen by now stays"

    follow.resume.resume(run.id, "", "", "slurm")

    assert with_requested_target(run.folder.read_config(), run.folder).run.where == "slurm"
    assert resume_is_requested(services.home, run)
    assert not is_visible(show_resume(follow, run.id).place)
    assert show_resume(follow, run.id).place["value"] == "slurm"


def test_a_place_that_no_run_can_be_resumed_in_is_refused(follow, invent, services, cluster):
    run = invent(state="stopped", steps=3)
    for where in ("jobs", "../../etc", "\0"):
        with pytest.raises(EngineError, match="cannot be resumed on"):
            follow.resume.resume(run.id, "", "", where)
    assert not resume_is_requested(services.home, run)


@pytest.mark.parametrize("where", [None, "", "slurm"])
def test_without_a_cluster_a_run_is_resumed_where_it_was(follow, invent, services, where):
    run = invent(state="stopped", steps=3)
    assert not is_visible(show_resume(follow, run.id).place)

    follow.resume.resume(run.id, "", "", where)

    assert not run.folder.place_request.exists()
    assert resume_is_requested(services.home, run)


def test_hardware_of_hugging_face_is_offered_for_its_own_jobs_alone(follow, invent):
    run = invent(state="stopped", steps=3)
    assert not is_visible(show_resume(follow, run.id).next_job)
    SlurmRecord(attempt=1, resources=JobResources(), warning_seconds=60).save(run.folder)
    assert not is_visible(show_resume(follow, run.id).next_job)
    JobRecord(attempt=1, namespace="ada", flavor="l4x1", limit_hours=1).save(run.folder)
    assert is_visible(show_resume(follow, run.id).next_job)


def test_a_run_that_is_gone_leaves_the_empty_state(follow):
    assert "No active run" in show(follow, "").heading
    assert show(follow, "").run_shown == ""
    assert "No active run" in show(follow, "20250101-000000-000-abcd").heading
    assert "No active run" in refresh(follow, "").heading


def test_a_run_that_is_deleted_while_it_is_followed_is_reported_as_gone(follow, invent, services):
    run = invent(state="queued")
    view = show(follow, run.id)
    request_stop(run)
    run.folder.write_state(run.folder.read_state().model_copy(update={"state": "stopped"}))
    services.runs.delete(run.id)

    reply = answer(follow, view)
    assert reply["submit"] is True
    assert answer(follow, view, reply["stamp"]) is None, "it is said once"

    view = refresh(follow, run.id)
    assert "was not found" in view.heading
    assert view.live == ""


def test_the_log_is_read_only_where_it_is_open(follow, invent):
    run = invent(state="running", steps=3, log="something was said\n")

    closed = show(follow, run.id)
    opened = show(follow, run.id, log_open=True)

    assert closed.log == NOTHING
    assert "something was said" in opened.log
    run.folder.log.write_text("something was said\nand more\n", encoding="utf-8")
    assert answer(follow, closed) is None
    assert "and more" in answer(follow, opened)["values"]["run-log"]


def test_two_pages_draw_one_figure(follow, invent, monkeypatch):
    import loratory.ui.tabs.follow as module

    calls = []
    monkeypatch.setattr(module, "loss_figure", lambda *arguments: calls.append(arguments) or "{}")
    run = invent(state="running", steps=3)

    first, _ = show(follow, run.id), show(follow, run.id)
    assert len(calls) == 1

    log_a_step(run)
    assert answer(follow, first) == answer(follow, first)
    assert len(calls) == 2


@pytest.mark.parametrize("prefix", ["", "one-"])
def test_the_buttons_act_on_the_run_that_is_shown(services, prefix):
    """The run that was chosen may be another one by then: chosen on another tab, or just started."""
    page = build_app(services)
    names = {number: block.elem_id for number, block in page.blocks.items()}

    def inputs_of(elem_id, event):
        return [
            function.inputs
            for function in page.fns.values()
            if (elem_id, event) in [(names.get(number), name) for number, name in function.targets]
        ]

    shown_run = inputs_of(f"{prefix}run-live", "submit")[0][0]
    for button in ("stop", "resume", "start-anyway", "cancel", "really-cancel"):
        assert [inputs[0] for inputs in inputs_of(f"{prefix}{button}", "click")] == [shown_run], button


def test_a_question_names_its_run_and_goes_with_it(follow, invent):
    run, other = invent(state="running", steps=3), invent(state="running", steps=4)

    title, _ = follow.cancel_question(run.id)
    assert "smollm2-135m-instruct" in title
    assert question_of(show(follow, run.id, run_shown=run.id)) == NOTHING
    assert not is_visible(question_of(show(follow, other.id, run_shown=run.id)))
    run.folder.cancel_request.touch()
    assert not is_visible(question_of(show(follow, run.id, run_shown=run.id)))


def test_a_run_that_waits_for_memory_alone_may_be_let_start(follow, invent):
    waits = invent(state="queued", reason="memory", cause="It needs 9.0 GiB, and the CPU has 2.0 of 16.0 GiB free.")
    stands_behind = invent(state="queued", reason="earlier_run", cause="Another run comes first.")

    assert is_visible(show(follow, waits.id).anyway)
    assert not is_visible(show(follow, stands_behind.id).anyway)
    view = show(follow, waits.id)
    request_start_anyway(waits)
    assert answer(follow, view)["submit"] is True
    assert not is_visible(show(follow, waits.id).anyway)


def test_a_button_that_becomes_useful_is_asked_for(follow, invent):
    run = invent(state="queued")
    view = show(follow, run.id)
    run.folder.write_state(run.folder.read_state().model_copy(update={"state": "running"}))

    assert answer(follow, view)["submit"] is True
    assert is_visible(show(follow, run.id).cancel)


def test_a_preference_run_begins_with_its_own_charts_and_the_rest_folded(follow, services, invent):
    """Also before its first step: a fold that was open then would stay so."""
    preferring = write_run(services.runs, a_config(training__objective="dpo"), InventedRun(state="running", steps=0))

    assert show(follow, preferring.id).small_fold["open"] is False
    assert show(follow, invent(state="running", steps=0).id).small_fold["open"] is True
