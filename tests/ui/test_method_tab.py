"""The Method tab: trainable parameters, the table of methods and of ways to share GPUs, and targets."""

import re
from dataclasses import replace

import pytest

from loratory.engine.config.constraints import distribution_of
from loratory.engine.config.run import AdapterConfig, RunSection
from loratory.ui.form import targets_update
from loratory.ui.tabs.method import (
    _SHARED_DEFAULTS,
    _settings_of_choice,
    change_of_row,
    method_choice,
    render_method_table,
    render_trainable,
)
from tests.ui.drafts import NAMES, draft_of, small_shape
from tests.ui.drafts import form as form


def test_trainable_parameters_follow_the_targets(form):
    few = draft_of(form, small_shape(), model__id="m", adapter__target_modules=["q_proj"])
    all_of_them = draft_of(form, small_shape(), model__id="m", adapter__target_modules=list(NAMES))

    assert few.estimate.parameters.trainable == 2 * 16 * (64 + 64)
    layers = [module for module in small_shape().modules if module.is_quantizable]
    assert all_of_them.estimate.parameters.trainable == 16 * sum(
        layer.in_features + layer.out_features for layer in layers
    )
    assert f"{few.estimate.parameters.trainable:,}" in render_trainable(few)


@pytest.mark.parametrize(
    ("method", "quantization", "choice"),
    [
        ("lora", "none", "LoRA"),
        ("lora", "nf4", "QLoRA"),
        ("lora", "int8", "LoRA"),
        ("ia3", "nf4", "IA3"),
        ("none", "none", "Full fine-tuning"),
    ],
)
def test_the_choice_of_method_is_named_as_people_name_it(form, method, quantization, choice):
    draft = draft_of(form, None, adapter__method=method, model__quantization=quantization)

    assert method_choice(draft) == choice


def test_the_method_table_compares_all_methods_and_marks_the_current_one(form):
    draft = draft_of(form, small_shape(), model__id="m", adapter__target_modules=list(NAMES))

    table = render_method_table(draft)

    for method in ("Full fine-tuning", "LoRA", "QLoRA", "IA3", "Prefix tuning"):
        assert f">{method}</td>" in table
    assert table.count('class="chosen"') == 1
    widths = [float(width) for width in re.findall(r'class="bar need".*?width:([0-9.]+)%', table)]
    assert len(widths) == table.count('<em class="free"') > 5
    assert max(widths) <= 100
    assert 'aria-label="Fits in memory."' in table


def test_a_bar_that_is_too_long_says_so(form):
    draft = draft_of(form, small_shape(), model__id="m", adapter__target_modules=list(NAMES))
    memory = draft.device_memory
    small = replace(memory, device=replace(memory.device, free_bytes=1, total_bytes=2))

    table = render_method_table(replace(draft, memory_elsewhere=small))

    assert '<span class="no">no</span>' in table
    assert 'aria-label="Does not fit in memory."' in table
    assert 'aria-label="Fits in memory."' not in table


def test_ways_to_share_several_gpus_are_offered_and_the_chosen_one_is_marked(form):
    settings = {"model__id": "m", "adapter__target_modules": list(NAMES)}
    single = draft_of(form, small_shape(), **settings)
    double = replace(single, gpus=(0, 1))
    change = change_of_row(double, "Sharded")
    assert double.memory_config is not None
    run = double.memory_config.run.model_copy(update=RunSection(**change["run"]).model_dump(include=set(change["run"])))

    table, chosen = (
        render_method_table(double),
        render_method_table(replace(double, memory_config=double.memory_config.model_copy(update={"run": run}))),
    )

    assert "GPUs" not in render_method_table(replace(single, gpus=(0,)))
    assert "Your draft on all 2 GPUs" in table
    assert re.findall(r'data-pick="([^"]+)"[^>]*>', table)[-3:] == ["One copy per GPU", "Sharded", "Layers split"]
    assert change == {"run": {"devices": [0, 1], "launcher": "accelerate", "device_map": "none", "fsdp": "full_shard"}}
    assert distribution_of(run).name == "FSDP"
    assert change_of_row(double, "QLoRA")["model"] == {"quantization": "nf4"}
    assert change_of_row(single, "Sharded") == change_of_row(double, "Another") == {}
    assert chosen.count('class="chosen"') == table.count('class="chosen"') + 1


@pytest.mark.parametrize(
    ("targets", "choices", "value"),
    [
        ("all-linear", list(NAMES), list(NAMES)),
        (["q_proj"], list(NAMES), ["q_proj"]),
        (["c_attn"], [*NAMES, "c_attn"], ["c_attn"]),
        (".*q_proj", [*NAMES, ".*q_proj"], [".*q_proj"]),
    ],
)
def test_targets_are_shown_as_the_modules_of_the_model(targets, choices, value):
    update = targets_update(small_shape(), targets)

    assert update["choices"] == choices
    assert update["value"] == value


@pytest.mark.parametrize("method", ["Prefix tuning", "IA3", "AdaLoRA", "LoRA", "Full fine-tuning"])
def test_four_bits_that_came_with_qlora_leave_with_it(method):
    shared = [getattr(AdapterConfig(), name) for name in _SHARED_DEFAULTS]
    by_hand, quantization, former, *shared = _settings_of_choice("QLoRA", "", "none", "lora", *shared)
    assert (quantization, former) == ("nf4", "lora")

    assert _settings_of_choice(method, by_hand, quantization, former, *shared)[:2] == ["", "none"]


@pytest.mark.parametrize(("method", "expected"), [("IA3", "nf4"), ("LoRA", "none"), ("Full fine-tuning", "none")])
def test_four_bits_that_were_set_by_hand_stay_where_the_method_allows_them(method, expected):
    shared = [getattr(AdapterConfig(), name) for name in _SHARED_DEFAULTS]

    assert _settings_of_choice(method, "nf4", "nf4", "lora", *shared)[1] == expected
