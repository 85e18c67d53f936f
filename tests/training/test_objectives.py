"""An objective decides which sequences a row gives and what its loss is; the trainer does the rest for any of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from loratory.engine.config.objectives import OBJECTIVES, objective_of
from loratory.engine.config.optimizations import VARIABLE
from loratory.engine.training.assembly import TRAINING_OBJECTIVES
from loratory.engine.training.objectives.reference import ReferenceCache, ReferenceModel
from tests.training.preference_rows import make_pairs, make_ratings
from tests.training.tiny_training import make_config, make_training, train_tiny

PLAIN = {"compute_dtype": "float32", "attn_implementation": "eager"}  # any input may pass through it
ROWS: dict[str, Callable[[int], list[Any]]] = {"dpo": make_pairs, "orpo": make_pairs, "kto": make_ratings}


def train_run(objective, folder, home, *, held_out=0, adapter=None, **training):
    whole_steps = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 4}
    config = make_config(folder, adapter=adapter or {}, training={**whole_steps, "objective": objective, **training})
    rows = ROWS[objective](8 + held_out)
    return train_tiny(config, rows[:8], home, held_out=rows[8:])


def test_each_objective_has_both_halves(tiny_model_folder):
    assert OBJECTIVES.keys() == TRAINING_OBJECTIVES.keys()
    assert objective_of(make_config(tiny_model_folder)).name == "sft"


@pytest.mark.exhaustive
@pytest.mark.parametrize("objective", ROWS)
def test_a_preference_loss_does_not_depend_on_how_a_step_is_divided(objective, tiny_model_folder, tmp_path):
    two_passes = train_run(objective, tiny_model_folder, tmp_path / "two")
    one_pass = train_run(
        objective, tiny_model_folder, tmp_path / "one", per_device_train_batch_size=8, gradient_accumulation_steps=1
    )

    assert one_pass.losses == pytest.approx(two_passes.losses, rel=1e-4)
    for first, second in zip(one_pass.steps, two_passes.steps, strict=True):
        assert first.metrics == pytest.approx(second.metrics, rel=1e-3, abs=1e-4)
        assert first.metrics.keys() >= set(OBJECTIVES[objective].metrics)


@pytest.mark.parametrize("attention", ["eager", "auto"])
def test_padded_and_joined_pairs_have_the_same_losses(attention, tiny_model_folder, tmp_path):
    settings = {"model": {"compute_dtype": "float32", "attn_implementation": attention}}
    config = make_config(tiny_model_folder, **settings, training={"objective": "dpo", "max_steps": 2})
    training = train_tiny(config, make_pairs(8), tmp_path)

    assert training.assembly.setup.settings.batching == ("padded" if attention == "eager" else "joined")
    assert training.losses == pytest.approx([0.693147, 0.69], rel=0.02)


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_a_prompt_that_passes_once_for_both_answers_changes_no_loss(
    objective, tiny_model_folder, tmp_path, monkeypatch
):
    once = train_run(objective, tiny_model_folder, tmp_path / "once", held_out=3)
    monkeypatch.setenv(VARIABLE, "shared_prompts")
    twice = train_run(objective, tiny_model_folder, tmp_path / "twice", held_out=3)

    first, second = (
        training.trainer._batches.__getitems__(next(training.trainer._planner.steps(0))) for training in (once, twice)
    )
    token_counts = [sum(batch.inputs["input_ids"].numel() for batch in step.passes) for step in (first, second)]
    assert token_counts[0] < token_counts[1]
    assert (first.tokens, first.trained_tokens) == (second.tokens, second.trained_tokens)
    assert once.losses == pytest.approx(twice.losses, rel=1e-5)
    for first_step, second_step in zip(once.steps, twice.steps, strict=True):
        assert (first_step.tokens, first_step.grad_norm) == (
            second_step.tokens,
            pytest.approx(second_step.grad_norm, rel=1e-4),
        )
        assert first_step.metrics == pytest.approx(second_step.metrics, rel=1e-3, abs=1e-5)
    measurements = [training.trainer.measure_held_out() for training in (once, twice)]
    assert measurements[0].eval_loss == pytest.approx(measurements[1].eval_loss, rel=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("objective", ROWS)
def test_held_out_preferences_are_measured_by_the_same_loss(objective, tiny_model_folder, tmp_path):
    measurement = train_run(objective, tiny_model_folder, tmp_path, held_out=3).trainer.measure_held_out()

    assert measurement.eval_tokens == measurement.rows == 3
    assert measurement.eval_loss > 0
    assert measurement.metrics.keys() >= {"rewards/margins"}


@pytest.mark.parametrize("bias", ["none", "all"])
def test_the_reference_stays_what_training_started_from(bias, tiny_model_folder, tmp_path):
    training = {"objective": "dpo", "max_steps": 6}
    config = make_config(tiny_model_folder, model=PLAIN, adapter={"bias": bias}, training=training)
    setup = make_training(config, make_pairs(8), tmp_path)
    ids = {"input_ids": torch.tensor([[11, 12, 13, 14]])}
    model, reference = setup.trainer.model, setup.assembly.setup.objective.reference
    with torch.no_grad():
        before = model(**ids).logits

    setup.trainer.train()

    with torch.no_grad():
        assert not torch.equal(model(**ids).logits, before)
    with reference.replacing(model) as base:
        assert torch.equal(base(**ids).logits, before)
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" in name)


def test_a_warm_start_is_the_reference(tiny_model_folder, tmp_path):
    training = make_training(make_config(tiny_model_folder, model=PLAIN), make_ratings(2), tmp_path)
    model, ids = training.trainer.model, {"input_ids": torch.tensor([[11, 12, 13, 14]])}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.fill_(0.02 if "lora_B" in name else 0.1)
        started = model(**ids).logits
        reference = ReferenceModel.from_model(model, warm_started=True)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.3)
        trained = model(**ids).logits

    with reference.replacing(model) as first:
        assert torch.equal(first(**ids).logits, started)
    with torch.no_grad():
        assert torch.equal(model(**ids).logits, trained)


def test_what_was_precomputed_gives_the_losses_of_passes_at_each_step(tiny_model_folder, tmp_path):
    config = make_config(tiny_model_folder, training={"objective": "dpo", "max_steps": 6})
    pairs = make_pairs(11)
    at_each_step, with_cache, again = (
        make_training(config, pairs[:8], tmp_path / name, held_out=pairs[8:]) for name in ("one", "two", "three")
    )
    cache = ReferenceCache(tmp_path / "cache")
    with_cache.trainer.precompute_reference(cache)
    again.trainer.precompute_reference(cache)

    for training in (at_each_step, with_cache):
        training.trainer.train()

    assert with_cache.losses == pytest.approx(at_each_step.losses, rel=1e-5)
    measurements = [training.trainer.measure_held_out() for training in (at_each_step, with_cache)]
    assert measurements[0].eval_loss == pytest.approx(measurements[1].eval_loss, rel=1e-5)
    known: list[list[Any]] = [list(training.trainer._rows.train) for training in (again, with_cache)]
    assert [pair.reference for pair in known[0]] == [pair.reference for pair in known[1]]
    damaged = next((tmp_path / "cache").iterdir())
    damaged.write_bytes(b"nothing")
    assert {cache.load(pairs[:8]) is None, cache.load(pairs[8:]) is None} == {True, False}
