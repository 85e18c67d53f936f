"""One worst step is really taken: by the real worker, on rows as long as they may be, and nothing of it stays."""

import os
import subprocess
import sys
import threading

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.objectives import OBJECTIVES
from loratory.engine.data.formats import require_rows_of
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import DeviceError, RunError
from loratory.engine.hardware.lease import LeaseBook, LeaseHolder
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.inspector.worker.inventory import module_inventory
from loratory.engine.memory.estimate import estimate_memory
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.processes.messages import CancelledRequestError
from loratory.engine.runs.history.events import Event, FailedData
from loratory.engine.runs.history.log import read_events
from loratory.engine.runs.job import JobSpec
from loratory.engine.runs.run import RunFolder
from loratory.engine.runs.store import list_owners
from loratory.engine.supervision.memory_measurement import (
    MeasurementJob,
    measuring_run,
    sweep_measurements,
    worst_case,
    write_rows,
)
from loratory.engine.supervision.supervisor import Supervisor
from tests.supervision.fake_runs import fake_settings, fake_worker_command


def config_for(folder, **sections):
    return config_from_mapping(
        {
            "model": {"id": str(folder)},
            "dataset": {"source": "sample:lab-chats"},
            "training": {"max_length": 96, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        }
        | sections
    )


def job_for(home, config):
    shape = module_inventory(config.model, home)
    return MeasurementJob(home, config, estimate_memory(shape, config, describe_processor()))


@pytest.fixture
def other_process():
    """Another process that is alive."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    identity = ProcessIdentity.from_pid(process.pid)
    assert identity is not None
    yield identity
    process.kill()
    process.wait()


def leftovers(home):
    return sorted(path.name for path in (home.cache / "measurements").iterdir())


def test_the_worst_case_keeps_what_memory_depends_on(tmp_path):
    config = config_for(
        "x",
        adapter={"method": "lora", "r": 4, "warm_start": "20260101-000000-000-abcd"},
        training={"max_length": 96, "eval_steps": 5, "early_stopping_patience": 2, "packing": True, "optim": "sgd"},
    )

    worst = worst_case(config, tmp_path / "rows.jsonl")

    assert worst.model == config.model
    assert worst.adapter == config.adapter.model_copy(update={"warm_start": None})
    assert (worst.training.packing, worst.training.optim, worst.training.max_length) == (True, "sgd", 96)
    assert worst.training.early_stopping_patience is None
    assert worst.dataset.eval_fraction == 0


@pytest.mark.e2e
def test_a_step_is_measured_and_nothing_of_it_stays(home, tiny_model_folder):
    config, messages = config_for(tiny_model_folder), []

    step = job_for(home, config).run(lambda progress: messages.append(progress.message))

    assert step.measures_process
    assert step.measured_bytes > 200 * 2**20
    # Nearly all of it is the process itself, of whose libraries a system may hold more or fewer pages in memory.
    assert abs(step.error) < 0.8
    assert step.step_seconds > 0
    assert (step.rows, step.tokens) == (2, 96)
    assert "Step 2 of 2 is done." in messages
    assert leftovers(home) == []
    assert LeaseBook(home).holder("cpu") is None


def test_a_measurement_can_be_stopped(home, tiny_model_folder):
    job = measuring(home, tiny_model_folder, fake_worker_command)

    with pytest.raises(CancelledRequestError):
        job.run(lambda progress: job.stop())

    assert leftovers(home) == []


def test_memory_that_ran_out_is_reported_with_the_advice(home, tiny_model_folder, monkeypatch):
    ran_out = FailedData(cause="out_of_memory", what="Memory ran out.", fix="Halve max_length.")
    failed = Event.wrap(ran_out, seq=1, attempt=1, time=0.0)
    monkeypatch.setattr(
        "loratory.engine.supervision.memory_measurement.read_events",
        lambda *_: read_events(home.root / "no").__class__((failed,), 0),
    )

    with pytest.raises(DeviceError) as error_info:
        measuring(home, tiny_model_folder, fake_worker_command).run()

    assert error_info.value.fix == "Halve max_length."
    assert leftovers(home) == []


@pytest.mark.e2e
def test_what_cannot_train_is_reported_in_the_workers_words(home, tiny_model_folder):
    config = config_for(tiny_model_folder, adapter={"method": "lora", "target_modules": ["q_proj"]})
    broken = config.model_copy(
        update={"adapter": config.adapter.model_copy(update={"target_modules": ("no_such_layer",)})}
    )
    shape = module_inventory(config.model, home)
    job = MeasurementJob(home, broken, estimate_memory(shape, config, describe_processor()))

    with pytest.raises(RunError, match="no_such_layer"):
        job.run()

    assert leftovers(home) == []


def measuring(home, folder, command):
    config = config_for(folder, run={"name": "steps=50000"})
    estimate = estimate_memory(module_inventory(config.model, home), config, describe_processor())
    return MeasurementJob(home, config, estimate, command=command)


def test_no_worker_is_started_while_someone_holds_the_device(home, tiny_model_folder, other_process):
    book, started, messages = LeaseBook(home), [], []
    book.take(["cpu"], LeaseHolder(purpose="training", title="a long run", process=other_process))
    job = measuring(home, tiny_model_folder, lambda order: started.append(order) or fake_worker_command(order))

    def stop_once_it_waits(progress):
        messages.append(progress.message)
        job.stop()

    with pytest.raises(CancelledRequestError):
        job.run(stop_once_it_waits)

    assert started == []
    assert messages == ["Waiting for the device, which is in use for training (a long run)."]
    assert book.holder("cpu").title == "a long run"
    assert leftovers(home) == []


def test_a_supervisor_has_nothing_to_do_with_a_measurement(home, tiny_model_folder):
    """It starts no worker of its own for it, and neither names nor ends the one that measures."""
    orders: list[JobSpec] = []
    supervisor = Supervisor(home, fake_settings(command=lambda order: orders.append(order) or []))
    supervisor.start()
    job = measuring(home, tiny_model_folder, fake_worker_command)
    has_begun = threading.Event()

    def stop_when_it_has_begun(progress):
        if progress.message == "Training.":
            has_begun.set()

    errors = []

    def measure():
        with pytest.raises(CancelledRequestError) as error:
            job.run(stop_when_it_has_begun)
        errors.append(error)

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        assert has_begun.wait(300)
        holder = LeaseBook(home).holder("cpu")
        assert (holder.purpose, holder.process != ProcessIdentity.current()) == ("measurement", True)
        assert list_owners(home) == []
    finally:
        job.stop()
        thread.join(300)
        supervisor.stop()
    assert len(errors) == 1
    assert orders == []
    assert LeaseBook(home).holder("cpu") is None


def test_what_a_dead_process_left_of_its_measurement_is_swept_after_a_day(home):
    theirs = RunFolder(home.cache / "measurements" / "measurement-theirs")
    theirs.control.mkdir(parents=True)
    os.utime(theirs.path, (1.0, 1.0))

    with measuring_run(home) as mine:
        sweep_measurements(home)

        assert leftovers(home) == [mine.id]
    assert leftovers(home) == []


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_worst_case_has_rows_that_its_objective_learns_from(objective, tmp_path):
    rewards = [{"scorer": "length"}] if OBJECTIVES[objective].samples_answers else []
    training = {"max_length": 16, "objective": objective, "gradient_accumulation_steps": 4, "rewards": rewards}
    config = config_for("x", training=training)
    path = tmp_path / "rows.jsonl"

    write_rows(path, config)
    reader = DatasetReader(worst_case(config, path).dataset, SourceOptions())
    rows = list(reader.rows())

    assert len(rows) == 2 * 2 * 2  # rows, passes and steps
    assert [row.problem for row in rows] == [""] * 8
    require_rows_of(OBJECTIVES[objective], [reader.detection.format], config.dataset)
