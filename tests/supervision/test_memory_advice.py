"""Advice after memory ran out: the estimate's, in figures, and within what the device has."""

import itertools
import os
import re
import signal

import pytest
import torch

from loratory.engine.config.load import config_from_mapping
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import module_inventory
from loratory.engine.runs import prediction
from loratory.engine.runs.prediction import advice_on_memory
from loratory.engine.supervision import states, worker_monitor
from loratory.engine.training.failure import explain
from tests.supervision.fake_runs import wait_for_state

GPU = Device("cuda", 0, "NVIDIA GeForce RTX 3060", 12 << 30, 12 << 30, has_fast_bfloat16=True)


def config_for(folder, **sections):
    values = {"model": {"id": str(folder)}, "dataset": {"source": "d"}, "training": {"max_length": 512}}
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return config_from_mapping(values)


@pytest.fixture
def inventory(tiny_model_folder, home):
    """Count the modules of a model before, as every launch does."""
    module_inventory(config_for(tiny_model_folder).model, home)
    return tiny_model_folder


def test_the_first_advice_keeps_the_result_and_has_figures(inventory, home):
    config = config_for(inventory, training={"per_device_train_batch_size": 64, "gradient_accumulation_steps": 1})

    advice = advice_on_memory(config, home, GPU)

    with_it, before = map(float, re.search(r"needs ([\d.]+) GiB with it instead of (\d+\.\d)", advice).groups())
    assert with_it <= before
    assert "same result" in advice
    assert "training." in advice
    assert advice.endswith(".")


def test_a_gpu_that_is_full_gets_the_estimates_words(inventory, home, monkeypatch):
    monkeypatch.setattr(prediction, "list_devices", lambda: (GPU,))
    config = config_for(inventory, training={"per_device_train_batch_size": 64})

    failure = explain(torch.OutOfMemoryError("CUDA out of memory."), config, home)

    assert failure.cause == "out_of_memory"
    assert "the estimate needs" in failure.fix


def test_a_model_that_no_one_counted_gets_general_advice(tiny_model_folder, home):
    config = config_for(tiny_model_folder)

    assert advice_on_memory(config, home, GPU) is None
    assert "loratory estimate" in explain(MemoryError(), config, home).fix


def test_the_estimate_itself_may_fail_without_hiding_the_cause(inventory, home, monkeypatch):
    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(prediction, "advise", out_of_memory)

    assert explain(MemoryError(), config_for(inventory), home).cause == "out_of_memory"


def test_a_run_that_the_system_ended_for_want_of_memory_gets_the_estimates_words(
    inventory, store, start_supervisor, monkeypatch
):
    kills = itertools.count()
    # The kernel's count when the attempt begins, and when it ends.
    monkeypatch.setattr(states, "out_of_memory_kills", lambda: 0)
    monkeypatch.setattr(worker_monitor, "out_of_memory_kills", lambda: next(kills) + 1)
    run = store.create(
        config_for(inventory, run={"name": "steps=2 hold=1"}, training={"per_device_train_batch_size": 64})
    )
    start_supervisor()
    wait_for_state(run, "running")
    os.kill(run.folder.read_worker().pid, signal.SIGKILL)
    state = wait_for_state(run, "failed")

    assert "the system killed the worker" in state.cause
    assert re.search(r"the estimate needs [\d.]+ GiB with it instead of [\d.]+", state.advice)
