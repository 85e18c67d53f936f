"""What breaks inside a run, with real workers: killed, out of memory, out of disk, out of numbers. Nothing is lost."""

import json
import os
import resource
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from loratory.engine.runs.checkpoints import list_checkpoints
from loratory.engine.runs.control import request_cancel
from loratory.engine.training.worker import EXIT_CANCELLED, EXIT_FAILED, EXIT_FINISHED
from tests.supervision.fake_runs import wait_for_step
from tests.tiny_model import make_tiny_model
from tests.training.worker_runs import data_of_events, events_of, is_pending, losses_of, newest_intact
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

KILLED = -signal.SIGKILL

# A save passes these; a kill at the last one leaves a checkpoint that counts.
PLACES = ("begun", "filled", "on_disk", "described", "renamed")
# Each attempt resumes what the one before it left, and is killed in turn: at every place of the first save of the run, of
# the third, with which rotation begins, and of the last. `begun#2` saves once before.
KILLS = [
    *(f"checkpoint:{place}#1" for place in PLACES),
    *("checkpoint:begun#2", *(f"checkpoint:{place}#1" for place in PLACES[1:])),
    "checkpoint:rotated#1",
    *("checkpoint:begun#1", *(f"checkpoint:{place}#1" for place in PLACES[1:])),
    "session:adapter_saved",
]
STEPS_LEFT = [None, None, None, None, 2, 4, 4, 4, 4, 6, 8, 8, 8, 8, 8, 10, 10]  # newest checkpoint after each

SAVES_OFTEN = {"training": {"save_steps": 2}, "adapter": {"lora_dropout": 0.1}}


def test_a_kill_while_saving_leaves_a_newest_checkpoint_that_loads(workers, runs, losses_without_faults):
    expected = losses_without_faults(SAVES_OFTEN)
    run = runs.create(**SAVES_OFTEN)

    for place, step in zip(KILLS, STEPS_LEFT, strict=True):
        assert workers.run(run.folder.path, f"{place}=kill") == KILLED, place

        newest = newest_intact(run.folder.checkpoints)
        offers = list_checkpoints(run.folder.checkpoints)
        assert (newest is None) == (not offers), place
        assert (newest and newest.step) == step, place
        if newest is not None:
            assert newest == offers[-1], place  # none that is damaged stands before it
            assert load_file(newest.folder / "adapter" / "adapter_model.safetensors")
    assert workers.run(run.folder.path) == EXIT_FINISHED
    assert losses_of(run) == expected
    assert (run.folder.adapter / "adapter_model.safetensors").is_file()
    names = {path.name for path in run.folder.checkpoints.iterdir()}
    assert not any(name.startswith(".") for name in names)


@pytest.mark.parametrize(
    "sections",
    [
        {"adapter": {"lora_dropout": 0.1}},
        {"model": {"quantization": "nf4"}, "adapter": {"lora_dropout": 0.1}},
        {"training": {"packing": True, "num_train_epochs": 100}, "adapter": {"lora_dropout": 0.1}},
    ],
    ids=["LoRA with dropout", "QLoRA", "packing"],
)
def test_a_run_killed_at_step_7_continues_from_step_5_bit_by_bit(sections, workers, runs, losses_without_faults):
    expected = losses_without_faults(sections)
    run = runs.create(**sections)

    assert workers.run(run.folder.path, "training:step-7=kill") == KILLED
    assert workers.run(run.folder.path) == EXIT_FINISHED

    (resumed,) = data_of_events(run, "resumed")
    assert (resumed.step, resumed.checkpoint) == (5, "step-5")
    again = [(data.step, data.loss) for data in data_of_events(run, "step")][7:]
    assert [step for step, _ in again] == [6, 7, 8, 9, 10]
    assert losses_of(run) == expected


def test_a_damaged_checkpoint_is_skipped_and_stays_until_a_later_one_is_complete(workers, runs, losses_without_faults):
    expected = losses_without_faults(SAVES_OFTEN)
    run = runs.create(**SAVES_OFTEN)
    workers.run(run.folder.path, "training:step-9=kill")
    weights = run.folder.checkpoint(8) / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")

    assert workers.run(run.folder.path, "training:step-7=kill") == KILLED

    assert data_of_events(run, "resumed")[0].step == 6
    (warning,) = [data for data in data_of_events(run, "warning") if data.code == "checkpoint_damaged"]
    assert warning.message.startswith(
        "step-8 is damaged (the content of adapter/adapter_model.safetensors has changed)"
    )
    assert {path.name for path in run.folder.checkpoints.iterdir()} == {"step-6", "damaged-step-8"}
    assert workers.run(run.folder.path) == EXIT_FINISHED
    assert losses_of(run) == expected
    assert not list(run.folder.checkpoints.glob("damaged-*"))


def test_a_run_whose_checkpoints_are_all_damaged_restarts_only_when_asked_again(workers, runs, losses_without_faults):
    expected = losses_without_faults(SAVES_OFTEN)
    run = runs.create(**SAVES_OFTEN)
    workers.run(run.folder.path, "training:step-9=kill")
    for path in run.folder.checkpoints.glob("step-*/optimizer.safetensors"):
        path.write_bytes(b"torn")
    assert run.folder.newest_checkpoint_step() is None  # so no one is offered a step to resume from

    assert workers.run(run.folder.path) == EXIT_FAILED

    (failure,) = data_of_events(run, "failed")
    assert "All checkpoints are damaged (step-8, step-6" in failure.what
    assert {path.name for path in run.folder.checkpoints.iterdir()} == {"damaged-step-8", "damaged-step-6"}
    assert workers.run(run.folder.path) == EXIT_FINISHED
    assert data_of_events(run, "resumed")[-1].step == 0
    assert losses_of(run) == expected


@pytest.mark.parametrize(
    ("fault", "training"),
    [
        ("held_out:step-4=nan", {}),
        ("held_out:step-8=nan", {"early_stopping_patience": 1}),
        ("training:loss-2=nan", {}),
        ("training:loss-7=nan", {"early_stopping_patience": 1}),
    ],
    ids=["the first measurement", "a later one", "its weights too", "its weights later"],
)
def test_a_held_out_loss_that_is_not_a_number_is_never_the_best(fault, training, workers, runs):
    """A step whose measurement may save it is logged first, whatever logging_steps says: that notices broken weights."""
    often = {"logging_steps": 10, "eval_steps": 4, "save_steps": 10, "load_best_model_at_end": True}
    run = runs.create(training={**often, **training})

    assert workers.run(run.folder.path, fault) == EXIT_FAILED

    (failure,) = data_of_events(run, "failed")
    step = 8 if "step-8" in fault or "loss-7" in fault else 4
    assert failure.cause == "diverged"
    measurement = "held-out " if fault.startswith("held_out") else ""
    assert f"The {measurement}loss became nan at step {step}" in failure.what
    assert [data.step for data in data_of_events(run, "checkpoint")] == ([] if step == 4 else [4])
    assert all(data.eval_loss > 0 for data in data_of_events(run, "eval"))


def test_a_loss_that_is_not_a_number_ends_the_run_within_one_step(workers, runs):
    run = runs.create()

    assert workers.run(run.folder.path, "training:loss-7=nan") == EXIT_FAILED

    (failure,) = data_of_events(run, "failed")
    assert failure.cause == "diverged"
    assert "step 7" in failure.what
    assert data_of_events(run, "step")[-1].step == 7
    assert newest_intact(run.folder.checkpoints).step == 5


def test_a_diverging_loss_ends_the_run(workers, runs):
    run = runs.create(
        training={"learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0, "max_steps": 60},
        adapter={"method": "none"},
    )

    assert workers.run(run.folder.path) == EXIT_FAILED

    (failure,) = data_of_events(run, "failed")
    assert failure.cause == "diverged"
    assert "The loss rose to" in failure.what
    assert "learning rate" in failure.fix


def test_a_gpu_out_of_memory_has_advice(workers, runs):
    run = runs.create()

    assert workers.run(run.folder.path, "training:pass#12=out_of_memory") == EXIT_FAILED

    (failure,) = data_of_events(run, "failed")
    assert failure.cause == "out_of_memory"
    assert "per_device_train_batch_size to 1" in failure.fix
    assert newest_intact(run.folder.checkpoints) is not None


def test_a_machine_out_of_memory_has_advice(workers, runs, tmp_path):
    rows = [{"instruction": f"What is {number}?", "output": "a rank " * 400} for number in range(12)]
    (tmp_path / "long.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    wide = make_tiny_model(tmp_path / "wide", intermediate_size=16_384)  # 130 MB for each of its products of a batch
    run = runs.create(
        model={"id": str(wide)}, dataset={"source": str(tmp_path / "long.jsonl")},
        training={"per_device_train_batch_size": 4, "max_length": 512},
    )  # fmt: skip
    pid = workers.start(run.folder.path, f"session:load_model=wait:{tmp_path / 'go'}")
    wait_until(lambda: "loading_model" in [status.phase for status in data_of_events(run, "status")])
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (used + 256 * 2**20,) * 2)  # enough for the weights
    (tmp_path / "go").touch()

    assert workers.wait(pid) == EXIT_FAILED

    (failure,) = data_of_events(run, "failed")
    assert failure.cause == "out_of_memory"
    assert failure.fix


def test_training_waits_while_the_disk_is_full_and_continues_by_itself(workers, runs, losses_without_faults):
    expected = losses_without_faults(SAVES_OFTEN)
    run = runs.create(**SAVES_OFTEN)
    full = ";".join(f"checkpoint:filled#{number}=disk_full" for number in (3, 4, 5))

    assert workers.run(run.folder.path, f"{full};disk_full:hurry=yes") == EXIT_FINISHED

    codes = [data.code for data in data_of_events(run, "warning") if data.code.startswith("disk")]
    assert codes == ["disk_full", "disk_has_room"]
    assert [data.step for data in data_of_events(run, "checkpoint")] == [2, 4, 6, 8, 10]
    assert losses_of(run) == expected


@pytest.mark.parametrize(
    "full",
    [
        ";".join(f"events:append#{number}=disk_full" for number in (20, 21, 22)),  # its warning finds no room either
        ";".join(f"folder:{place}#1=disk_full" for place in ("begun", "filled", "between")),
    ],
    ids=["events", "adapter"],
)
def test_a_disk_that_is_full_anywhere_is_waited_for(full, workers, runs, losses_without_faults):
    expected = losses_without_faults(SAVES_OFTEN)
    run = runs.create(**SAVES_OFTEN)

    assert workers.run(run.folder.path, f"{full};disk_full:hurry=yes") == EXIT_FINISHED

    codes = [data.code for data in data_of_events(run, "warning") if data.code.startswith("disk")]
    assert codes[-1] == "disk_has_room"
    assert losses_of(run) == expected
    assert [event.seq for event in events_of(run)] == list(range(1, len(events_of(run)) + 1))
    assert load_file(run.folder.adapter / "adapter_model.safetensors")
    assert not (run.folder.path / ".reserve").exists()
    assert not list(run.folder.path.glob(".unfinished-*"))


def test_a_run_that_is_stopped_while_the_disk_is_full_reports_what_it_could_not_save(workers, runs):
    run = runs.create(**SAVES_OFTEN)
    full = ";".join(f"checkpoint:filled#{number}=disk_full" for number in range(3, 2000))
    pid = workers.start(run.folder.path, f"{full};signal:repeated=yes")
    wait_until(lambda: any(data.code == "disk_full" for data in data_of_events(run, "warning")))

    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGTERM)  # launchers and schedulers say it twice

    assert workers.wait(pid) == EXIT_FAILED
    (failure,) = data_of_events(run, "failed")
    assert failure.cause == "disk_full"
    assert newest_intact(run.folder.checkpoints).step == 4


def test_a_sigterm_that_is_delivered_twice_saves_and_ends(workers, runs, tmp_path):
    run = runs.create(training={"max_steps": 3000, "save_steps": 1000})
    pid = workers.start(run.folder.path, f"training:step-3=wait:{tmp_path / 'go'};signal:repeated=yes")
    wait_for_step(run, 3)

    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_pending(pid, signal.SIGTERM))  # signals that wait together are one
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_pending(pid, signal.SIGTERM))
    (tmp_path / "go").touch()

    assert workers.wait(pid) == EXIT_FINISHED
    assert "SIGTERM" in data_of_events(run, "status")[-1].message
    assert load_file(run.folder.adapter / "adapter_model.safetensors")


def test_a_run_that_waits_for_the_disk_can_be_cancelled(workers, runs):
    run = runs.create(**SAVES_OFTEN)
    pid = workers.start(run.folder.path, "checkpoint:filled=disk_full;disk_full:hurry=yes")
    wait_until(lambda: any(data.code == "disk_full" for data in data_of_events(run, "warning")))

    request_cancel(run)

    assert workers.wait(pid) == EXIT_CANCELLED


def test_faults_are_dead_outside_tests(monkeypatch):
    from loratory.engine.training import faults

    monkeypatch.delenv(faults.VARIABLE, raising=False)

    faults.reached("checkpoint:begun")
    assert not faults.is_armed("training:loss-7")
