"""A real worker on the tiny model: its events, its files, its end."""

import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from loratory.engine.accounts.accounts import open_database
from loratory.engine.accounts.lab import LabSettings, save_settings
from loratory.engine.accounts.limits import LabLimits
from loratory.engine.runs.checkpoints import list_checkpoints
from loratory.engine.runs.control import request_cancel, request_stop
from loratory.engine.runs.disk import disk_use
from loratory.engine.runs.history.events import StatusData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.training.trackers import TENSORBOARD_FOLDER
from loratory.engine.training.worker import EXIT_CANCELLED, EXIT_FAILED, EXIT_FINISHED, EXIT_HELD_BY_ANOTHER, EXIT_USAGE
from tests.supervision.fake_runs import wait_for_step
from tests.training.forked_ranks import train_on_two
from tests.training.test_trackers import read_scalars
from tests.training.worker_runs import data_of_events, events_of, history_of, losses_of, require_losses_of

pytestmark = pytest.mark.e2e


@contextlib.contextmanager
def held_at_step(step, workers, run, folder):
    """Start a worker that waits once it has logged a step, and let it continue at the end."""
    pid = workers.start(run.folder.path, f"training:step-{step}=wait:{folder / 'go'}")
    try:
        wait_for_step(run, step)
        yield pid
    finally:
        (folder / "go").touch()


def test_a_run_from_beginning_to_end(workers, runs):
    run = runs.create(training={"max_steps": -1, "num_train_epochs": 1, "report_to": ["tensorboard"]})

    assert workers.run(run.folder.path) == EXIT_FINISHED

    phases = [data.phase for data in data_of_events(run, "status")]
    assert list(dict.fromkeys(phases)) == [
        "loading_model",
        "reading_data",
        "preparing",
        "evaluating",
        "training",
        "saving",
        "finished",
    ]
    assert all(data.message for data in data_of_events(run, "status"))
    (parameters,) = data_of_events(run, "parameters")
    assert 0 < parameters.trainable < parameters.total
    assert parameters.compute_dtype in ("bfloat16", "float32")
    assert parameters.batching == "joined"
    (report,) = data_of_events(run, "data_report")
    assert (report.train_rows, report.eval_rows) == (27, 3)
    steps = data_of_events(run, "step")
    assert [data.step for data in steps] == list(range(1, 8))
    assert (steps[-1].trained_tokens, steps[-1].tokens - steps[-1].trained_tokens) == (
        report.trained_tokens,
        report.masked_tokens,
    )
    assert [data.step for data in data_of_events(run, "eval")] == [0, 5, 7]
    assert [data.name for data in data_of_events(run, "checkpoint")] == ["step-5", "step-7"]
    assert all(data.seconds > 0 for data in data_of_events(run, "checkpoint"))
    assert data_of_events(run, "memory")[-1].peak_process_bytes > 100e6
    assert [event.seq for event in events_of(run)] == list(range(1, len(events_of(run)) + 1))
    assert data_of_events(run, "failed") == data_of_events(run, "warning") == []
    scalars = read_scalars(run.folder.path / TENSORBOARD_FOLDER)
    assert scalars["train/loss"] == [(data.step, data.loss) for data in steps]
    assert scalars["eval/loss"] == [(data.step, data.eval_loss) for data in data_of_events(run, "eval")]
    files = {path.name for path in run.folder.adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in files)
    assert not (run.folder.path / ".reserve").exists()
    assert "trainable params:" in run.folder.log.read_text()
    adapter = json.loads((run.folder.adapter / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(runs.model)  # a local model has no other name


def test_a_default_padding_token_is_logged_and_a_default_template_warned_of(workers, runs, tmp_path):
    folder = shutil.copytree(runs.model, tmp_path / "bare")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink()
    run = replace(runs, model=folder).create()

    assert workers.run(run.folder.path) == EXIT_FINISHED

    (warning,) = data_of_events(run, "warning")
    assert (warning.code, "no chat template" in warning.message) == ("template", True)
    log = run.folder.log.read_text()
    assert "Padding uses the token" in log
    assert warning.message in log


def test_the_held_out_loss_of_step_0_is_the_base_models(workers, runs):
    short = {"training": {"max_steps": 1}}
    run = runs.create(adapter={"method": "prefix_tuning", "num_virtual_tokens": 4}, **short)
    other = runs.create(**short)

    workers.run(run.folder.path)
    workers.run(other.folder.path)

    prefix, lora = data_of_events(run, "eval")[0], data_of_events(other, "eval")[0]
    assert prefix.adapter_disabled
    assert not lora.adapter_disabled
    assert prefix.eval_loss == pytest.approx(lora.eval_loss, rel=0.01)


def test_prompts_are_answered_in_each_evaluation_with_the_same_losses(workers, runs):
    plain, answering = runs.create(), runs.create(training={"eval_max_new_tokens": 4})

    for run in (plain, answering):
        assert workers.run(run.folder.path) == EXIT_FINISHED

    losses, same_losses = ([step.loss for step in data_of_events(run, "step")] for run in (plain, answering))
    assert losses == same_losses
    answers = data_of_events(answering, "answers")
    assert [point.step for point in answers] == [0, 5, 10]
    assert all(len(set(point.prompts)) == 3 for point in answers)
    assert data_of_events(plain, "answers") == []
    evaluation = data_of_events(answering, "eval")[-1]
    assert evaluation.seconds > answers[-1].seconds > 0


def test_a_run_has_one_worker_and_cancel_ends_it_at_once(workers, runs, tmp_path):
    run = runs.create(training={"save_steps": 2})
    with held_at_step(3, workers, run, tmp_path) as pid:
        assert workers.run(run.folder.path) == EXIT_HELD_BY_ANOTHER
        request_cancel(run)

    assert workers.wait(pid) == EXIT_CANCELLED
    assert data_of_events(run, "status")[-1].phase == "stopped"
    assert data_of_events(run, "step")[-1].step == 3
    assert not run.folder.adapter.exists()
    assert [c.step for c in list_checkpoints(run.folder.checkpoints)] == [2]  # earlier ones stay


def test_a_request_before_the_first_step_is_obeyed(workers, runs):
    run = runs.create()
    request_stop(run)

    assert workers.run(run.folder.path) == EXIT_FINISHED

    assert data_of_events(run, "status")[-1].phase == "stopped"
    assert data_of_events(run, "step") == []


def test_a_stopped_run_saves_and_continues_where_it_stopped(workers, runs, tmp_path):
    whole = runs.create(training={"max_steps": 12})
    workers.run(whole.folder.path)
    run = runs.create(training={"max_steps": 12})
    with held_at_step(3, workers, run, tmp_path) as pid:
        request_stop(run)
    assert workers.wait(pid) == EXIT_FINISHED
    last = data_of_events(run, "status")[-1]
    assert (last.phase, "Stopped on request" in last.message) == ("stopped", True)
    assert [c.step for c in list_checkpoints(run.folder.checkpoints)] == [4]
    assert load_file(run.folder.adapter / "adapter_model.safetensors")
    assert not run.folder.has_living_worker()
    run.folder.stop_request.unlink()

    assert workers.run(run.folder.path) == EXIT_FINISHED

    assert losses_of(run) == losses_of(whole)
    assert data_of_events(run, "status")[-1].phase == "finished"
    assert data_of_events(run, "resumed")[0].checkpoint == "step-4"


@pytest.mark.parametrize(("limit_mb", "steps", "last_word"), [(4.0, [4, 5], "finished"), (2.6, [1], "stopped")])
def test_a_disk_limit_holds_at_each_checkpoint(workers, runs, home, limit_mb, steps, last_word):
    open_database(home).close()
    save_settings(home, LabSettings(limits=LabLimits(free_disk_gb=0, disk_gb_per_person=limit_mb / 1000)))
    transfers = home.for_person("ann").transfers
    transfers.mkdir(parents=True)
    (transfers / "rows.jsonl").write_bytes(bytes(100_000))
    every_step = {"max_steps": 5, "save_steps": 1, "eval_steps": 1, "save_total_limit": 200}
    run = runs.create(adapter={"method": "none"}, training=every_step)  # checkpoints of 1.2 MB

    assert workers.run(run.folder.path) == EXIT_FINISHED

    assert disk_use(home, "ann").total <= limit_mb * 10**6
    assert [checkpoint.step for checkpoint in list_checkpoints(run.folder.checkpoints)] == steps
    assert (run.folder.adapter / "model.safetensors").exists()
    word = data_of_events(run, "status")[-1]
    assert word.phase == last_word
    if last_word == "finished":
        (warning,) = [data for data in data_of_events(run, "warning") if data.code == "disk_limit"]
        assert "of 4.0 MB" in warning.message
    else:
        assert word.stopped_by == "disk_limit"
        assert word.message.startswith(
            "You use 1.5 MB of 2.6 MB (runs 1.4 MB, transfers 100 kB), and there is no room "
        )
        assert word.message.endswith("for a checkpoint of 1.2 MB and the result. Stopped after step 2 of 5.")


def test_a_warm_start_begins_with_the_earlier_weights(workers, runs):
    first = runs.create(training={"learning_rate": 1e-2})
    workers.run(first.folder.path)
    second = runs.create(adapter={"warm_start": first.id}, training={"learning_rate": 1e-2})

    assert workers.run(second.folder.path) == EXIT_FINISHED

    base, *later = data_of_events(second, "eval")
    assert base.adapter_disabled
    assert base.eval_loss == pytest.approx(data_of_events(first, "eval")[0].eval_loss, rel=0.01)
    assert later[0].eval_loss < data_of_events(first, "eval")[1].eval_loss


@pytest.mark.parametrize(
    ("sections", "cause", "message_part"),
    [
        ({"adapter": {"target_modules": ["q_proj", "query"]}}, "config", "query matches no module"),
        ({"model": {"id": "/nowhere/at/all"}}, "model", "/nowhere/at/all"),
        ({"dataset": {"source": "/nowhere/data.jsonl"}}, "dataset", "data.jsonl"),
        ({"adapter": {"warm_start": "20200101-000000-000-abcd"}}, "config", "holds no adapter"),
    ],
    ids=["targets", "model", "dataset", "warm start"],
)
def test_what_cannot_work_is_reported_with_its_cause(workers, runs, sections, cause, message_part):
    run = runs.create(**sections)

    assert workers.run(run.folder.path) == EXIT_FAILED

    (failure,) = data_of_events(run, "failed")
    assert failure.cause == cause
    assert message_part in failure.what
    assert failure.fix
    assert history_of(run).last_step == 0


def test_a_worker_that_comes_back_after_a_later_one_began_writes_nothing_more(workers, runs, tmp_path):
    """As on another host, whose lock is invisible here, when its run was given up and resumed."""
    run = runs.create(training={"save_steps": 2})
    with held_at_step(1, workers, run, tmp_path) as pid:
        later = run.folder.read_worker().model_copy(update={"attempt": 2, "host": "node2", "pid": 4711})
        run.folder.process.write_text(later.model_dump_json())
        with EventWriter(run.folder.events, 2) as writer:
            writer.append(StatusData(phase="loading_model", message="Starting."))
        before = run.folder.events.read_bytes()

    assert workers.wait(pid) == EXIT_HELD_BY_ANOTHER
    assert run.folder.events.read_bytes() == before
    assert not run.folder.adapter.exists()
    assert list_checkpoints(run.folder.checkpoints) == []


def test_wrong_usage_is_reported():
    process = subprocess.run(
        [sys.executable, "-P", "-m", "loratory.engine.training.worker"], capture_output=True, text=True, check=False
    )

    assert process.returncode == EXIT_USAGE
    assert "RUN_DIR" in process.stderr
    assert process.stdout == ""


def test_two_processes_train_as_one_does_and_write_one_log(workers, runs):
    """As under torchrun, Accelerate and Slurm; without a GPU they communicate through gloo."""
    alone = runs.create(model={"compute_dtype": "float32"})
    workers.run(alone.folder.path)
    together = runs.create(model={"compute_dtype": "float32"}, training={"gradient_accumulation_steps": 1})

    train_on_two(together)

    require_losses_of(together, alone)
    assert data_of_events(together, "eval")[-1].eval_loss == pytest.approx(
        data_of_events(alone, "eval")[-1].eval_loss, rel=1e-3
    )
    assert data_of_events(together, "step")[-1].trained_tokens == data_of_events(alone, "step")[-1].trained_tokens
    assert [data.name for data in data_of_events(together, "checkpoint")] == ["step-5", "step-10"]
    names = {path.name for path in together.folder.checkpoint(10).iterdir()}
    assert {"random-0.safetensors", "random-1.safetensors"} <= names
    assert data_of_events(together, "status")[-1].phase == "finished"
