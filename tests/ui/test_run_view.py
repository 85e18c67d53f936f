"""A run in words, in each of its states."""

import time

import pytest

from engine.data.problems import RowProblem
from engine.data.report import DatasetReport
from engine.runs.events import FailedData
from engine.runs.requests import request_resume
from engine.runs.store import RunStore
from tests.invented_runs import InventedRun, a_config, write_run
from ui.run_reader import ObservedRun, RunReader, log_tail
from ui.views.run_view import (
    render_heading,
    render_left_out,
    render_log,
    render_memory,
    render_trouble,
    render_warnings,
    status_line,
)


@pytest.fixture
def store(home) -> RunStore:
    return RunStore(home, "somebody")


@pytest.fixture
def observe(store):
    """Observe an invented run."""

    def make(**story: object) -> ObservedRun:
        run = write_run(store, a_config(), InventedRun(**story))
        return RunReader(store).observe(run.id)

    return make


def test_a_running_run_says_step_time_speed_and_losses(observe):
    observed = observe(state="running", steps=37, seconds_per_step=0.5)

    line = status_line(observed, now=observed.state.started + 72)

    assert "Step 37 of 120" in line
    assert "1 min 12 s" in line
    assert "left" in line
    assert "1,0" in line  # 540 tokens in half a second, give or take
    assert "tokens/s" in line
    assert "held-out loss 1.36" in line
    assert "base 2.71" in line


def test_a_finished_run_says_how_long_it_took_and_nothing_is_left(observe):
    line = status_line(observe(state="completed", steps=120))

    assert "took 1 min 47 s" in line
    assert "left" not in line


def test_what_was_asked_for_is_said_until_it_has_happened(store, observe):
    observed = observe(state="running", steps=5)
    observed.run.folder.stop_request.touch()

    asked = RunReader(store).observe(observed.run.id)

    assert "saves at the end of this step, then stops" in status_line(asked)
    assert asked.stamp != observed.stamp


def test_a_waiting_run_says_what_it_waits_for(observe):
    observed = observe(state="queued", cause="Waits: the CPU is in use for training (faq).")

    assert status_line(observed) == "the CPU is in use for training (faq)"
    assert "waiting" in render_heading(observed)


def test_a_failure_is_shown_with_cause_and_advice(observe):
    failed = FailedData(cause="out_of_memory", what="Memory ran out at step 31.", fix="Halve max_length.")

    html = render_trouble(observe(state="failed", steps=31, failed=failed))

    assert 'role="alert"' in html
    assert "Memory ran out at step 31." in html
    assert "Halve max_length." in html


def test_an_interrupted_run_says_from_where_it_can_go_on(observe):
    html = render_trouble(
        observe(
            state="interrupted", steps=70, cause="The machine was restarted.", advice="Resume it.", resumable_step=60
        )
    )

    assert "The machine was restarted." in html
    assert "go on from step 60" in html


def test_a_warning_that_comes_often_is_listed_once_and_escaped(observe):
    html = render_warnings(observe(warnings=("odd <row>", "odd <row>", "slow")))

    assert html.count("<li>") == 2
    assert "odd &lt;row&gt;" in html


def test_memory_is_predicted_against_measured(observe):
    html = render_memory(observe())

    assert "<b>1.32</b>" in html
    assert "<b>1.19</b>" in html
    assert "10% less than predicted" in html


def test_a_resume_that_was_asked_for_keeps_the_page_looking(store, observe):
    observed = observe(state="stopped", steps=44)
    assert not observed.is_live
    request_resume(store.home, observed.run)

    asked = RunReader(store).observe(observed.run.id)

    assert asked.is_live
    assert "taken up again" in status_line(asked)


def test_a_log_shows_the_last_state_of_a_progress_bar_only(tmp_path):
    log = tmp_path / "worker.log"
    log.write_bytes(b"loading\n" + b"10%|#\r50%|##\r100%|####\ndone <b>\n")

    assert log_tail(log) == "loading\n100%|####\ndone <b>\n"
    assert "done &lt;b&gt;" in render_log(log_tail(log))
    assert log_tail(tmp_path / "absent") == ""


def test_a_long_log_is_cut_at_a_line(tmp_path):
    log = tmp_path / "worker.log"
    log.write_text("".join(f"line {number}\n" for number in range(10_000)), encoding="utf-8")

    lines = log_tail(log).splitlines()

    assert lines[0].startswith("line ")
    assert lines[-1] == "line 9999"
    assert len("\n".join(lines)) < 25_000


def test_a_title_of_somebody_else_cannot_inject_markup(store):
    run = write_run(store, a_config(run__name="<script>alert(1)</script>"), InventedRun())

    html = render_heading(RunReader(store).observe(run.id), now=time.time())

    assert "<script" not in html


def test_rows_that_the_run_never_saw_are_listed_with_the_reason():
    report = DatasetReport.model_construct(
        dropped=1, problems=(RowProblem(row=7, line=8, problem="no <answer>", kind="no_assistant_turn"),)
    )

    shown = render_left_out(report)

    assert "1 row left out" in shown
    assert "no &lt;answer&gt;" in shown
    assert "data-pick" not in shown
    assert render_left_out(None) == ""
    assert render_left_out(DatasetReport.model_construct(dropped=0, problems=())) == ""
