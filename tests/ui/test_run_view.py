"""A run in words, in each of its states."""

import re
import time
from dataclasses import replace
from typing import Any

import pytest

from loratory.engine.data.contract import DatasetReport, RowProblem
from loratory.engine.quantities import ago
from loratory.engine.runs.control import request_resume
from loratory.engine.runs.history.events import FailedData, MemoryData
from loratory.engine.runs.names import run_label, words_of
from loratory.engine.runs.provenance import MemoryFigures, Provenance
from loratory.engine.runs.store import RunStore
from loratory.engine.runs.summary import summarize
from loratory.ui.backend.run_reader import RunReader, RunSnapshot, log_tail
from loratory.ui.views.run_table import render_run_table
from loratory.ui.views.run_view import (
    render_heading,
    render_left_out,
    render_log,
    render_memory,
    render_run_settings,
    render_trouble,
    render_warnings,
    run_choices,
    status_line,
)
from tests.invented_runs import GIB, InventedRun, a_config, write_run


@pytest.fixture
def store(home) -> RunStore:
    return RunStore(home, "ann")


@pytest.fixture
def observe(store):
    """Observe an invented run."""

    def make(**story: Any) -> RunSnapshot:
        run = write_run(store, a_config(), InventedRun(**story))
        return RunReader(store).observe(run.id)

    return make


def test_a_running_run_says_step_time_speed_and_losses(observe):
    snapshot = observe(state="running", steps=37, seconds_per_step=0.5)

    line = status_line(snapshot, now=snapshot.state.started + 72)

    assert "Step 37 of 120" in line
    assert "1 min 12 s" in line
    assert "left" in line
    assert "1,0" in line  # 540 tokens in half a second, give or take
    assert "tokens/s" in line
    assert "held-out loss 1.36" in line
    assert "base 2.71" in line
    assert "2 × 4 = 8 rows a step" in render_run_settings(snapshot)


def test_a_cluster_job_is_listed_with_its_node_and_gpus(observe):
    snapshot = observe(state="running", steps=3)
    place = {"device": "slurm 1234 · node07 · 1×A100", "job_id": "1234"}
    cluster = replace(snapshot, state=snapshot.state.model_copy(update=place))
    row = summarize(snapshot.run).model_copy(update=place)

    assert "slurm 1234 · node07 · 1×A100" in render_heading(cluster)
    assert "slurm 1234 · node07 · 1×A100" in render_run_table([row], "", (), 1)
    assert "slurm" not in render_run_table([row.model_copy(update={"job_id": ""})], "", (), 1)


def test_a_silent_worker_is_reported_with_its_limit(observe):
    snapshot = observe(state="running", steps=37)
    silent = snapshot.state.model_copy(update={"silent_since": 1000.0, "silence_limit_seconds": 300.0})
    stamps = {
        replace(snapshot, state=silent.model_copy(update={"silent_since": time.time() - age})).stamp for age in (65, 95)
    }

    assert len(stamps) == 2, "the page continues counting"
    heading = render_heading(replace(snapshot, state=silent), now=1090.0)

    assert "no output for 1 min 30 s; will be stopped after 5 min 00 s" in heading
    assert "no output" not in render_heading(snapshot, now=1090.0)
    failed = silent.model_copy(update={"state": "failed"})
    assert "no output" not in render_heading(replace(snapshot, state=failed), now=1090.0)


def test_a_finished_run_reports_how_long_it_took_and_nothing_is_left(observe):
    line = status_line(observe(state="completed", steps=120))

    assert "took 1 min 47 s" in line
    assert "left" not in line


def test_a_request_to_stop_or_resume_is_reported_until_it_has_happened(store, observe):
    running, stopped = observe(state="running", steps=5), observe(state="stopped", steps=44)
    running.run.folder.stop_request.touch()
    request_resume(store.home, stopped.run)

    stopping, resuming = (RunReader(store).observe(snapshot.run.id) for snapshot in (running, stopped))

    assert "saves after this step, then stops" in status_line(stopping)
    assert stopping.stamp != running.stamp
    assert status_line(resuming) == "resuming"
    assert (stopped.is_live, resuming.is_live) == (False, True), "the page continues to refresh"


def test_a_waiting_run_reports_what_it_waits_for(observe):
    snapshot = observe(state="queued", cause="The CPU is in use for training (faq).")

    assert status_line(snapshot) == "The CPU is in use for training (faq)"
    assert "waiting" in render_heading(snapshot)
    cause = {"state": "submitted", "cause": "Waiting at Slurm: Resources, job 1234."}
    at_slurm = replace(snapshot, state=snapshot.state.model_copy(update=cause))
    assert status_line(at_slurm) == "Waiting at Slurm: Resources, job 1234"


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_the_end_of_a_run_has_its_cause_its_advice_and_where_it_can_resume(observe, state):
    failure = FailedData(cause="out_of_memory", what="Memory ran out.", fix="Halve `max_length`.")
    story = {"failed": failure} if state == "failed" else {"cause": failure.what, "advice": failure.fix}

    html = render_trouble(observe(state=state, steps=70, resumable_step=60, **story))

    assert 'role="alert"' in html
    assert "Memory ran out." in html
    assert "Halve <code>max_length</code>. It can resume from step 60." in html


def test_a_job_out_of_sight_reports_why_and_what_to_do(observe):
    trouble = {"reason": "executor_unreachable", "cause": "Sign in again to follow this job.", "advice": "Give <it>."}
    snapshot = observe(state="running", steps=3, **trouble)

    assert "Sign in again to follow this job" in status_line(snapshot)
    assert "Give &lt;it&gt;." in render_trouble(snapshot)


def test_a_warning_that_comes_often_is_listed_once_and_escaped(observe):
    html = render_warnings(observe(warnings=("odd <row>", "odd <row>", "slow")))

    assert html.count("<li>") == 2
    assert "odd &lt;row&gt;" in html


def cells(html):
    """Return the text of each row's cells."""
    rows = re.findall(r"<tr>(<td.*?)</tr>", html)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", row)] for row in rows]


def test_a_peak_is_called_lower_than_predicted_only_once_all_steps_are_done(observe):
    completed, running = observe(state="completed", steps=120), observe(state="running", steps=37)
    grown = replace(running, provenance=Provenance(predicted_memory=MemoryFigures(process_bytes=GIB)))

    assert cells(render_memory(completed)) == [["Whole process, in RAM", "1.32", "1.19", "10% less"]]
    assert "Measured so far" in render_memory(running)
    assert cells(render_memory(running)) == [["Whole process, in RAM", "1.32", "1.19", "–"]]
    assert cells(render_memory(grown)) == [["Whole process, in RAM", "1.00", "1.19", "19% more"]]
    stopped = render_memory(observe(state="stopped", steps=44))
    assert "so far" not in stopped
    assert "less" not in stopped


GPU_PREDICTION = {"allocated_bytes": 10 * GIB, "reserved_bytes": 11 * GIB, "process_bytes": 12 * GIB}
GPU_PEAKS = {"peak_allocated_bytes": 10 * GIB, "peak_reserved_bytes": int(12.1 * GIB), "peak_process_bytes": 3 * GIB}


@pytest.mark.parametrize(
    ("predicted", "measured", "rows"),
    [
        (GPU_PREDICTION, {**GPU_PEAKS, "peak_device_process_bytes": 12 * GIB + 5},
         [["Tensors", "10.00", "10.00", "none"], ["Reserved by PyTorch", "11.00", "12.10", "10% more"],
          ["Whole process, on the GPU", "12.00", "12.00", "none"]]),
        ({"process_bytes": 4 * GIB}, GPU_PEAKS,
         [["Tensors", "–", "10.00", "–"], ["Reserved by PyTorch", "–", "12.10", "–"], ["Whole process, on the GPU", "4.00", "–", "–"]]),
    ],
    ids=["all predicted", "one predicted"],
)  # fmt: skip
def test_on_a_gpu_each_peak_is_compared_with_its_own_prediction(observe, predicted, measured, rows):
    snapshot = observe(state="completed", steps=120)
    on_gpu = replace(
        snapshot,
        provenance=Provenance(predicted_memory=MemoryFigures(**predicted)),
        history=snapshot.history.model_copy(update={"memory": MemoryData(**measured)}),
    )

    assert cells(render_memory(on_gpu)) == rows


def test_the_tail_of_a_log_has_whole_lines_and_one_state_of_a_progress_bar(tmp_path):
    log = tmp_path / "worker.log"
    log.write_bytes(b"loading\n" + b"10%|#\r50%|##\r100%|####\ndone <b>\n")

    assert log_tail(log) == "loading\n100%|####\ndone <b>\n"
    assert "done &lt;b&gt;" in render_log(log_tail(log))
    assert log_tail(tmp_path / "absent") == ""
    log.write_text("".join(f"line {number}\n" for number in range(10_000)), encoding="utf-8")
    tail = log_tail(log)
    assert tail.startswith("line ")
    assert tail.endswith("\nline 9999\n")
    assert len(tail) < 25_000


def test_a_title_of_another_person_cannot_inject_markup(store):
    run = write_run(store, a_config(run__name="<script>alert(1)</script>"), InventedRun())

    html = render_heading(RunReader(store).observe(run.id), now=time.time())

    assert "<script" not in html


def test_rows_that_the_run_never_saw_are_listed_with_the_reason():
    report = DatasetReport.model_construct(
        dropped=1, problems=(RowProblem(row=7, line=8, problem="no <answer>", kind="no_assistant_turn"),)
    )

    html = render_left_out(report)

    assert "1 row skipped" in html
    assert "no &lt;answer&gt;" in html
    assert "data-pick" not in html
    assert render_left_out(None) == ""
    assert render_left_out(DatasetReport.model_construct(dropped=0, problems=())) == ""


def test_a_configuration_that_was_damaged_for_a_moment_is_read_again(store):
    run = write_run(store, a_config(), InventedRun())
    whole, reader = run.folder.config.read_bytes(), RunReader(store)
    run.folder.config.write_bytes(b"model: [")
    assert reader.observe(run.id).config is None

    run.folder.config.write_bytes(whole)

    assert reader.observe(run.id).config is not None


def test_a_dropdown_has_name_method_state_age_and_loss_in_one_line(store):
    row = RunReader(store).summary(write_run(store, a_config(run__name="first"), InventedRun()).id)
    moment = time.time() - 3.4 * 3600
    row = row.model_copy(update={"created": moment, "best_eval_loss": 1.0, "base_eval_loss": 2.0, "star": True})
    automatic = row.model_copy(update={"name": f"faq-lora-{words_of(row.id)}", "best_eval_loss": None, "star": False})

    assert [label for label, _ in run_choices([row, automatic])] == [
        f"✓ ★ first · {row.id[-4:]} · LoRA · completed · 3 h ago · loss 1.000, 50% below base",
        f"✓ faq-lora-{words_of(row.id)} · completed · 3 h ago · loss {row.final_loss:.3f}, not held out",
    ]
    assert run_label(automatic.name, f"ann/{row.id}") == automatic.name, "shared runs are named with their owner"


def test_only_its_owner_is_offered_to_change_name_and_star(store):
    snapshot = RunReader(store).observe(write_run(store, a_config(run__name="<i>'\"&"), InventedRun()).id)

    assert "<button" not in render_heading(snapshot)
    heading = render_heading(snapshot, can_change=True)
    assert heading.count("<button") == 2
    assert "<i>'" not in heading
    assert 'data-name="&lt;i&gt;&#x27;&quot;&amp;"' in heading


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "just now"), (61, "1 min ago"), (3599, "59 min ago"), (7100, "1 h ago"), (47.9 * 3600, "47 h ago"), (49 * 3600, "2 days ago")],
)  # fmt: skip
def test_an_age_has_one_unit(seconds, text):
    assert ago(time.time() - seconds) == text
    assert ago(0.0) == ago(None) == "never"
