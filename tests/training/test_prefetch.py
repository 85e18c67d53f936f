"""Prefetched batches are the same batches in the same order, and no thread is left."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from loratory.engine.data.step_plan import Step
from loratory.engine.training.assembly import assemble
from loratory.engine.training.batching.batches import join, pad
from loratory.engine.training.batching.steps import PrefetchedSteps, StepBatch
from loratory.engine.training.callbacks import TrainerHooks
from loratory.engine.training.placement import Placement
from tests.training.tiny_training import GPU, load_adapted, make_config, make_rows, make_training

ROWS = make_rows(13)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def make(folder, tmp_path, *, prefetches, **more):
    config = make_config(folder, adapter={"lora_dropout": 0.1}, training=more.pop("training", {}))
    training = make_training(config, ROWS, tmp_path, held_out=make_rows(5, seed=1), **more)
    training.trainer._setup = replace(training.trainer._setup, prefetches=prefetches)
    return training


def test_steps_come_in_order_and_one_is_prefetched():
    numbers, started = [], threading.Semaphore(0)

    def steps():
        for number in range(3):
            numbers.append(number)
            started.release()
            yield StepBatch((pad([ROWS[number]], 0),), Step(()))

    prefetches = PrefetchedSteps(steps(), pins=False)
    first = next(prefetches)
    assert started.acquire(timeout=300)
    assert started.acquire(timeout=300)  # the second one, before the loop needs it
    assert numbers == [0, 1]

    assert [step.tokens for step in (first, *prefetches)] == [len(row.input_ids) for row in ROWS[:3]]
    assert threads() == []


def test_an_error_in_the_thread_is_raised_in_the_loop():
    def steps():
        yield StepBatch((), Step(()))
        raise OSError("the file is gone")

    prefetches = PrefetchedSteps(steps(), pins=False)
    next(prefetches)
    with pytest.raises(OSError, match="the file is gone"):
        next(prefetches)
    prefetches.close()
    assert threads() == []


@pytest.mark.parametrize("makes", [lambda rows: pad(rows, 0), join, lambda rows: join(rows, flash=True)])
def test_every_tensor_of_a_pass_is_pinned_and_copied_without_waiting(monkeypatch, makes):
    batch = makes(ROWS[:3])
    pinned, copies = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone())

    again = batch.pinned()

    tensors = [*(value for value in batch.inputs.values() if isinstance(value, torch.Tensor)), *batch.trained]
    tensors.append(batch.sequence_of)
    assert [id(tensor) for tensor in pinned] == [id(tensor) for tensor in tensors]
    assert again.tokens == batch.tokens
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking=False: copies.append(non_blocking) or self
    )
    again.to(torch.device("cuda", 0))
    assert copies == [True] * len(tensors)
    copies.clear()
    again.to(torch.device("mps"))  # whose copies are not ordered with what the processor does to their source
    assert copies == [False] * len(tensors)


@pytest.mark.parametrize(("device", "expected"), [("cpu", False), ("cuda", True), ("mps", True)])
def test_batches_are_prefetched_where_the_processor_is_idle(device, expected, tiny_model_folder, monkeypatch):
    config = make_config(tiny_model_folder)
    model, precision = load_adapted(config)

    model_setup = assemble(model, config, precision, Placement(GPU, torch.device(device)), ROWS, 0)

    assert model_setup.setup.prefetches is expected


def test_a_run_is_the_same_bit_by_bit_with_prefetched_batches(tiny_model_folder, tmp_path):
    results = {}
    for prefetches in (False, True):
        training = make(tiny_model_folder, tmp_path, prefetches=prefetches, training={"eval_steps": 1})
        training.trainer.train()
        results[prefetches] = (training.losses, training.weights(), training.trainer.measure_held_out().eval_loss)

    assert results[True][0] == results[False][0]
    assert results[True][2] == results[False][2]
    assert all(torch.equal(tensor, results[False][1][name]) for name, tensor in results[True][1].items())
    assert threads() == []


class StopAfter(TrainerCallback):
    """Ends the loop in the middle of an epoch."""

    def __init__(self, step):
        self._step = step

    def on_step_end(self, args, state, control, **_):
        control.should_save = control.should_training_stop = state.global_step >= self._step


def test_a_resumed_run_continues_bit_by_bit(tiny_model_folder, tmp_path):

    whole = make(tiny_model_folder, tmp_path, prefetches=False)
    whole.trainer.train()
    saved = {}

    def save():
        saved["folder"] = Path(tmp_path / "checkpoint")
        saved["folder"].mkdir()
        stopped.trainer.write_state(saved["folder"], stopped.trainer.gather_state())

    stopped = make(
        tiny_model_folder, tmp_path, prefetches=True, hooks=TrainerHooks(save=save), callbacks=(StopAfter(3),)
    )
    stopped.trainer.train()
    assert threads() == []  # a prefetched batch was not used

    resumed = make(tiny_model_folder, tmp_path, prefetches=True)
    resumed.trainer.train(resume_from_checkpoint=str(saved["folder"]))

    assert stopped.losses + resumed.losses == whole.losses
    expected = whole.weights()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.weights().items())


def test_a_run_that_fails_leaves_no_thread_behind(tiny_model_folder, tmp_path):
    def fail():
        raise RuntimeError("a pass went wrong")

    training = make(tiny_model_folder, tmp_path, prefetches=True, hooks=TrainerHooks(between_passes=fail))

    with pytest.raises(RuntimeError, match="a pass went wrong"):
        training.trainer.train()
    assert threads() == []
