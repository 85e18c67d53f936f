import json
import os
import signal
import subprocess
import sys

import pytest

from loratory.engine.commands.output import ProgressLine
from loratory.engine.commands.train import follow_to_the_end, report, result_json
from loratory.engine.errors import RunError
from loratory.engine.interface.workspace import Run
from loratory.engine.runs.history.log import last_event
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.run import RunState
from loratory.engine.runs.summary import summarize
from loratory.engine.supervision.supervisor import Supervisor, reconcile
from tests.supervision.fake_runs import REPOSITORY, config_for, continue_worker, fake_settings, wait_for_state
from tests.waiting import wait_until

PROMISED_KEYS = {
    "run_id", "directory", "status", "steps", "final_loss", "eval_loss", "base_eval_loss", "tokens_per_second",
    "peak_memory_bytes",
}  # fmt: skip


def start_follower(run) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.commands.follower", run.id],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=dict(os.environ),
    )  # fmt: skip


def last_step(run) -> int:
    return read_history(run.folder.events).last_step


def test_without_a_server_the_command_supervises_and_prints_what_came_out(store, home, capsys):
    run = store.create(config_for("steps=8"))

    report(Run(home, run), follow_to_the_end(Run(home, run), ProgressLine(), fake_settings()), as_json=True)
    result = json.loads(capsys.readouterr().out)

    assert result.keys() >= PROMISED_KEYS
    assert (result["status"], result["steps"], result["eval_loss"], result["base_eval_loss"]) == (
        "completed",
        8,
        1.5,
        3.0,
    )
    assert result["directory"] == str(run.folder.path)
    assert result["peak_memory_bytes"] == 123_456_789


def test_with_a_server_it_files_the_run_and_follows_it(store, home, capsys):
    server = Supervisor(home, fake_settings())
    server.start()
    run = store.create(config_for("steps=5"))
    try:
        summary = follow_to_the_end(Run(home, run), ProgressLine(), fake_settings())
    finally:
        server.stop()

    assert summary.state == "completed"
    assert "A running Loratory server executes it" in capsys.readouterr().err


def test_a_run_continues_when_its_command_is_killed(store, home):
    run = store.create(config_for("steps=40 hold=3"))
    follower = start_follower(run)
    wait_until(lambda: last_step(run) >= 3)
    follower.kill()
    follower.communicate()

    worker = run.folder.read_worker()
    assert worker is not None
    assert worker.is_alive()
    continue_worker(run)
    wait_until(lambda: not worker.is_alive())
    reconcile(home, fake_settings())
    assert run.folder.read_state().state == "completed"
    assert last_step(run) == 40


def test_interrupting_the_command_saves_and_stops_the_run(store):
    run = store.create(config_for("steps=20000"))
    follower = start_follower(run)
    wait_until(lambda: last_step(run) >= 3)
    follower.send_signal(signal.SIGINT)
    output, errors = follower.communicate(timeout=600)

    result = json.loads(output)
    assert (follower.returncode, result["status"]) == (0, "stopped")
    assert "Saving and stopping" in errors
    assert run.folder.newest_checkpoint_step() == last_step(run)


def test_a_second_interrupt_leaves_the_run_alone(store, home):
    run = store.create(config_for("steps=5 hold=2 deaf@9999"))
    follower = start_follower(run)
    wait_until(lambda: last_step(run) >= 2)
    follower.send_signal(signal.SIGINT)
    wait_until(lambda: run.folder.stop_request.exists())
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=600)

    worker = run.folder.read_worker()
    assert worker is not None
    assert worker.is_alive()
    continue_worker(run)
    wait_until(lambda: not worker.is_alive())


def test_a_second_command_waits_its_turn_and_takes_over_when_the_first_is_gone(store):
    first, second = store.create(config_for("steps=30")), store.create(config_for("steps=5"))
    followers = [start_follower(first), start_follower(second)]
    results = [json.loads(follower.communicate(timeout=600)[0]) for follower in followers]

    assert [result["status"] for result in results] == ["completed", "completed"]
    # By its worker's last word: that the first has ended is noted a moment after its device is free.
    last_word = last_event(first.folder.events)
    assert last_word is not None
    assert second.folder.read_state().started >= last_word.time


def test_a_run_whose_folder_is_gone_ends_the_command_with_the_reason(store):
    run = store.create(config_for("steps=5 hold=2"))
    follower = start_follower(run)
    wait_until(lambda: last_step(run) >= 2)
    worker = run.folder.read_worker()

    run.folder.path.rename(run.folder.path.with_name("away"))

    error = follower.communicate(timeout=600)[1]
    worker.kill()
    assert follower.returncode == 1
    assert f"The folder of {run.id} was deleted or moved, and its training ends." in error


def test_a_failed_run_prints_its_figures_and_fails_the_command_in_two_sentences(store, home, capsys):
    run = store.create(config_for("steps=8 fail@3"))
    summary = follow_to_the_end(Run(home, run), ProgressLine(), fake_settings())

    with pytest.raises(RunError) as failure:
        report(Run(home, run), summary, as_json=True)
    assert str(failure.value) == "The loss is not a number. Lower the learning rate."
    assert json.loads(capsys.readouterr().out)["status"] == "failed"


def test_figures_that_are_not_known_are_null(store):
    run = store.create(config_for())
    run.folder.write_state(RunState(state="failed", cause="Nothing happened."))
    result = result_json(run.folder.path, summarize(run))

    assert result["final_loss"] is None
    assert result["tokens_per_second"] is None
    assert result["peak_memory_bytes"] is None
    json.dumps(result, allow_nan=False)


def test_a_run_can_be_followed_in_words(store, home, capsys):
    run = store.create(config_for("steps=4"))
    report(Run(home, run), follow_to_the_end(Run(home, run), ProgressLine(), fake_settings()), as_json=False)
    text = capsys.readouterr().out

    assert "completed." in text
    assert "(base 3.0000, best " in text
    wait_for_state(run, "completed")
