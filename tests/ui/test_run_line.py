"""The line of the run in hand: how far it is, then the steps of its result, each ticked once the disk has a trace of it."""

import re

import pytest

from loratory.engine.evaluation.blind_test import judgements_file
from loratory.engine.evaluation.job import evaluation_file
from loratory.engine.export.contract import records_file
from loratory.ui.backend.run_reader import RunReader
from loratory.ui.views.run_line import progress, render_active, render_run_line
from tests.invented_runs import InventedRun, a_config, write_run


def line_of(services, run) -> str:
    return render_run_line(RunReader(services.runs).observe(run.id))


def test_a_run_at_work_has_its_share_time_left_loss_and_trend(services):
    run = write_run(services.runs, a_config(run__name="faq"), InventedRun(state="running", steps=30))
    snapshot = RunReader(services.runs).observe(run.id)
    now = snapshot.history.last_time

    html = render_run_line(snapshot, now)

    assert re.fullmatch(r"\d+% · .+ left", progress(snapshot, now))
    assert f"{progress(snapshot, now)} · loss {snapshot.history.steps.last('loss'):.2f}" in html
    assert 'aria-label="falling"' in html
    assert f'data-pick="stop:{run.id}">Stop and save<' in html
    assert f'data-pick="follow:{run.id}"' in html
    assert progress(snapshot, now) in render_active(snapshot, now)


@pytest.mark.parametrize(
    ("state", "text", "pick"),
    [
        ("queued", "waiting", "Remove from queue"),
        ("starting", "starting", "Stop and save"),
        ("failed", "failed", "Open"),
    ],
)
def test_other_states_have_their_word_and_what_can_be_done(services, state, text, pick):
    html = line_of(services, write_run(services.runs, a_config(), InventedRun(state=state, steps=0)))

    assert text in html
    assert pick in html


def test_a_run_without_a_result_that_has_a_checkpoint_is_resumed(services):
    run = write_run(services.runs, a_config(), InventedRun(state="failed", steps=44, resumable_step=44))

    assert f'data-pick="resume:{run.id}"' in line_of(services, run)


def test_a_checkpoint_can_be_chatted_with_before_the_end(services):
    early, later = (
        write_run(services.runs, a_config(), InventedRun(state="running", steps=steps)) for steps in (3, 60)
    )

    assert f'data-pick="chat:{early.id}"' not in line_of(services, early)
    assert f'data-pick="chat:{later.id}"' in line_of(services, later)


def test_each_step_of_a_result_is_ticked_and_leads_to_the_next(services):
    run = write_run(services.runs, a_config(), InventedRun())
    traces = {
        "chat": run.folder.chat_mark,
        "blind": judgements_file(run.folder.path, None),
        "measure": evaluation_file(run.folder.path, None),
        "export": records_file(run.folder.path),
    }

    for done, (step, trace) in enumerate(traces.items()):
        html = line_of(services, run)
        assert html.count("✓</span> ") == done
        assert re.findall(r'class="go" data-pick="(\w+):', html) == [step]
        trace.parent.mkdir(exist_ok=True)
        trace.touch()

    html = line_of(services, run)
    assert (html.count("✓</span> "), 'class="go"' in html) == (4, False)
