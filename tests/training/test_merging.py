"""Passes are merged as far as there is room, and train the same."""

import math
from dataclasses import replace

import pytest
import torch

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.optimizations import VARIABLE
from loratory.engine.data.contract import RowLengths
from loratory.engine.data.step_plan import EpochPlanner, PlanSettings, pad_rows
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.compare import with_changes
from loratory.engine.memory.estimate import Estimator
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.training.batching.choose import choose_merging
from loratory.engine.training.passes import ModelPasses
from tests.training.tiny_training import make_config, make_rows, make_training, train_tiny

QWEN, GIB = "Qwen/Qwen3-0.6B", 2**30
ROWS = RowLengths(tokens=(300,) * 64, trained=(100,) * 64, count=64)


def gpu(gib, kind="cuda"):
    size = int(gib * GIB)
    return Device(kind, 0, f"{gib} GiB", size, size, has_fast_bfloat16=True, cores=2)


@pytest.fixture(scope="module")
def shape():
    return inventory_of(find_in_catalog(QWEN).config)


def accumulating(**training):
    values = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "max_length": 1024} | training
    return config_from_mapping({"model": {"id": QWEN}, "dataset": {"source": "-"}, "training": values})


@pytest.mark.parametrize("gib", [2.6, 3.5, 5, 8, 24])
def test_what_is_merged_fits_by_the_bound_with_room_to_spare(shape, gib):
    config, device = accumulating(), gpu(gib)

    choice = choose_merging(config, shape, device, ROWS)

    if choice.merged > 1:
        parts = max(2, 16 // choice.merged)
        merged = {
            "training.per_device_train_batch_size": choice.merged,
            "training.gradient_accumulation_steps": parts,
        }
        need = Estimator(shape, device, ROWS).need(with_changes(config, merged))
        assert need.needed_bytes < 0.86 * device.free_bytes
    assert choice.merged == 1 if gib < 3 else choice.merged > 1 or gib < 20
    assert bool(choice.why_not) is (choice.merged == 1)


def test_more_room_merges_more(shape):
    merged = [choose_merging(accumulating(), shape, gpu(gib), ROWS).merged for gib in (2.2, 3, 4, 6, 80)]

    assert merged == sorted(merged)
    assert (merged[0], merged[-1]) == (1, 16)


def test_enough_tokens_are_enough(shape):
    long = RowLengths(tokens=(4000,) * 64, trained=(100,) * 64, count=64)

    assert choose_merging(accumulating(max_length=4096), shape, gpu(300), long).merged == 4


@pytest.mark.parametrize(
    ("training", "device"),
    [({}, gpu(80, "cpu")), ({}, gpu(80, "mps")), ({"gradient_accumulation_steps": 1}, gpu(80))],
    ids=["CPU", "Apple", "one pass"],
)
def test_nothing_is_merged_where_nothing_is_gained(training, device, shape):
    choice = choose_merging(accumulating(**training), shape, device, ROWS)

    assert choice.merged == 1
    assert choice.why_not


def test_it_can_be_left_out_and_needs_a_model_that_the_estimate_knows(shape, monkeypatch):
    assert choose_merging(accumulating(), None, gpu(80), ROWS).merged == 1
    monkeypatch.setenv(VARIABLE, "merged_passes")
    assert choose_merging(accumulating(), shape, gpu(80), ROWS).merged == 1


def test_a_resumed_run_continues_as_it_began_while_that_fits(shape):
    config = accumulating()

    assert choose_merging(config, shape, gpu(80), ROWS, checkpoint_merged=4).merged == 4
    assert choose_merging(config, shape, gpu(80), ROWS, checkpoint_merged=1).merged == 1
    assert choose_merging(config, shape, gpu(2.2), ROWS, checkpoint_merged=16).merged == 1


@pytest.mark.parametrize("merged", [1, 2, 3, 8])
def test_merged_passes_have_the_rows_of_the_step_and_little_padding(merged):
    lengths = [60, 50, 49, 30, 30, 12, 11, 10, 9]
    config = make_config("m", training={"per_device_train_batch_size": 2})
    settings = PlanSettings(config.training, merged=merged)

    passes = list(pad_rows(range(9), lengths, settings))

    assert [row for plan in passes for row in plan.rows] == list(range(9))
    assert max(len(plan.rows) for plan in passes) <= 2 * merged
    padded = sum(len(plan.rows) * max(lengths[row] for row in plan.rows) for plan in passes)
    apart = sum(
        len(plan.rows) * max(lengths[row] for row in plan.rows)
        for plan in pad_rows(range(9), lengths, replace(settings, merged=1))
    )
    assert apart <= padded <= 1.2 * apart
    assert (len(passes) < 5) is (merged > 1)


def test_joined_rows_are_merged_up_to_their_tokens():
    config = make_config(
        "m", training={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "max_length": 64}
    )
    settings = PlanSettings(config.training, "joined")

    def passes(merged):
        (step,) = EpochPlanner([60] * 8, replace(settings, merged=merged)).steps(0)
        return [len(plan.rows) for plan in step.passes]

    assert (passes(1), passes(4), passes(8)) == ([1] * 8, [4, 4], [8])


@pytest.mark.parametrize("packing", [False, True])
def test_merged_passes_train_the_same_also_where_they_do_not_fit(tiny_model_folder, tmp_path, monkeypatch, packing):
    """The step in which memory runs out is trained once."""
    training = {"gradient_accumulation_steps": 4, "packing": packing, "max_steps": 3}
    config, rows = make_config(tiny_model_folder, training=training), make_rows(40)
    separate = train_tiny(config, rows, tmp_path / "separate")
    tokens: list[int] = []
    original = ModelPasses.losses

    def losses(self, model, batch, estimate=None):
        tokens.append(batch.tokens)
        result = original(self, model, batch, estimate)
        if batch.tokens > most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return result

    monkeypatch.setattr(ModelPasses, "losses", losses)
    for most_tokens in (math.inf, 2 * 64):
        tokens.clear()
        merged = train_tiny(config, rows, tmp_path / "merged", merged=4)

        assert sum(count > 2 * 64 for count in tokens) == (3 if most_tokens == math.inf else 1)
        assert merged.losses == pytest.approx(separate.losses, rel=1e-5)
        assert [step.tokens for step in merged.steps] == [step.tokens for step in separate.steps]


def test_memory_that_runs_out_without_merged_passes_ends_the_run(tiny_model_folder, tmp_path, monkeypatch):
    def losses(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ModelPasses, "losses", losses)

    with pytest.raises(torch.OutOfMemoryError):
        make_training(make_config(tiny_model_folder), make_rows(8), tmp_path).trainer.train()
