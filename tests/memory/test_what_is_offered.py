"""What advice and the table of methods offer would be accepted by a start: alone, together, and on the device."""

import random
from typing import Any, NamedTuple

import pytest

from loratory.engine.config.load import config_from_mapping, with_overrides
from loratory.engine.errors import ConfigError
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import device_problems
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.advice import AdvisedChange, advise
from loratory.engine.memory.compare import MethodNeed, compare_methods
from loratory.engine.models.catalog import find_in_catalog

GIB = 2**30
MODELS = ["Qwen/Qwen3-8B", "google/gemma-2-2b-it"]
BIASES = {"adapter": {"bias": "all"}}
SPREAD = {"run": {"devices": [0, 1], "device_map": "balanced"}}
PREFIX = {"adapter": {"method": "prefix_tuning", "num_virtual_tokens": 200}, "training": {"max_length": 300}}


@pytest.fixture(scope="module")
def shapes():
    return {model: inventory_of(find_in_catalog(model).config) for model in MODELS}


def device_of(kind: str, gib: float) -> Device:
    return Device(kind, 0, "a device", int(gib * GIB), int(gib * GIB), has_fast_bfloat16=True)


def mapping(**sections):
    return {"model": {"id": MODELS[0]}, "dataset": {"source": "-"}} | sections


class Offer(NamedTuple):
    """What the panel offers for one draft."""

    values: dict[str, Any]
    device: Device
    changes: tuple[AdvisedChange, ...]
    rows: tuple[MethodNeed, ...]


def offer(shape, values, device):
    config = config_from_mapping(values)
    advice = advise(shape, config, device)
    return Offer(values, device, (*advice.changes, *advice.limits), compare_methods(shape, config, device))


def advise_changes(shape, values, device):
    """Return overrides by the labels with which they are offered."""
    result = offer(shape, values, device)
    return {change.change: change.overrides for change in result.changes}, {row.method: row for row in result.rows}


def refusal(values, overrides, device):
    """Return why a start would refuse it; None where it would not."""
    try:
        config = config_from_mapping(with_overrides(values, overrides))
    except ConfigError as error:
        return str(error)
    return device_problems(config, device) or None


def drafts(count):
    """Yield valid configurations, of settings that bear on one another."""
    draw = random.Random(11)
    while count:
        model, kind = draw.choice(MODELS), draw.choice(["cuda", "cuda", "cuda", "cpu", "mps"])
        values = {
            "model": {"id": model, "quantization": draw.choice(["none", "none", "int8", "nf4"])},
            "adapter": {
                "method": draw.choice(["lora", "lora", "ia3", "prefix_tuning", "none"]),
                "bias": draw.choice(["none", "all", "lora_only"]),
                "use_dora": draw.random() < 0.3,
                "num_virtual_tokens": draw.choice([20, 200]),
                "feedforward_modules": draw.choice([[], ["down_proj"]]),
                "target_modules": draw.choice(["all-linear", ["q_proj", "v_proj"]]),
                "warm_start": draw.choice([None, None, "an-earlier-run"]),
            },
            "dataset": {"source": "-"},
            "training": {
                "max_length": draw.choice([64, 300, 1024, 8192]),
                "per_device_train_batch_size": draw.choice([1, 4, 32]),
                "packing": draw.random() < 0.4,
                "gradient_checkpointing": draw.random() < 0.4,
                "optim": draw.choice(["adamw_torch", "paged_adamw_32bit", "sgd"]),
            },
            "run": draw.choice([{}, {}, SPREAD["run"]]) if kind == "cuda" else {},
        }
        try:
            config_from_mapping(values)
        except ConfigError:
            continue
        count -= 1
        yield model, values, device_of(kind, draw.choice([2, 8, 16, 24, 80]))


@pytest.mark.exhaustive(quick=0)
def test_whatever_is_offered_would_be_accepted(shapes):
    tried = 0
    for model, draft, target in drafts(20):
        values, device, changes, rows = offer(shapes[model], draft, target)
        assert len({change.kind for change in changes}) == len(changes)
        usual = {problem.field for problem in device_problems(config_from_mapping(values), device)}
        settings = [(change.change, change.overrides) for change in changes]
        settings += [(row.method, row.overrides) for row in rows]
        for name, overrides in settings:
            why = refusal(values, overrides, device)
            if usual and not isinstance(why, str):  # the draft's own trouble, which no offer has to mend
                why = [problem for problem in why or () if problem.field not in usual] or None
            assert why is None, f"{name} is offered for {values} on {device.kind} and would be refused: {why}"
            tried += 1

    assert tried > 160


def test_a_change_keeps_its_kind_when_free_memory_changes_its_figures(shapes):
    matches = []
    for gib in (64, 80):
        advice = advise(shapes[MODELS[0]], config_from_mapping(mapping()), device_of("cuda", gib))
        changes = (*advice.changes, *advice.limits)
        matches.append({change.kind: change.change for change in changes})
        assert len(matches[-1]) == len(changes)

    assert matches[0].keys() == matches[1].keys()
    assert matches[0]["largest_batch"] != matches[1]["largest_batch"]


def test_quantized_weights_are_offered_together_with_leaving_the_biases_alone(shapes):
    changes, rows = advise_changes(shapes[MODELS[0]], mapping(**BIASES), device_of("cuda", 16))

    assert changes["Hold the frozen weights in nf4 (QLoRA)"] == ("model.quantization=nf4", "adapter.bias=none")
    assert rows["QLoRA"].verdict is not None
    assert "adapter.bias=none" in rows["QLoRA"].overrides
    assert "adapter.bias=none" not in rows["LoRA"].overrides


def test_what_is_spread_over_devices_is_offered_an_optimizer_without_pages(shapes):
    values = mapping(**SPREAD, adapter={"method": "none"})

    changes, _ = advise_changes(shapes[MODELS[0]], values, device_of("cuda", 60))

    assert ("training.optim=adamw_8bit",) in changes.values()


def test_rows_are_not_cut_so_short_that_a_prefix_fills_them(shapes):
    changes, rows = advise_changes(shapes[MODELS[0]], mapping(**PREFIX), device_of("cuda", 16))
    config = config_from_mapping(mapping(**PREFIX))

    assert not [overrides for overrides in changes.values() if "training.max_length=150" in overrides]
    assert advise(shapes[MODELS[0]], config, device_of("cuda", 16)).longest_max_length is None
    assert rows["Prefix tuning"].is_current


def test_prefix_tuning_takes_packing_off_with_it(shapes):
    _, rows = advise_changes(shapes[MODELS[0]], mapping(training={"packing": True}), device_of("cuda", 80))

    assert "training.packing=false" in rows["Prefix tuning"].overrides
    assert rows["Prefix tuning"].verdict == "fits"


def test_a_method_that_nothing_reconciles_has_a_reason_and_no_figure(shapes):
    values = mapping(adapter={"num_virtual_tokens": 200}, training={"max_length": 128})

    _, rows = advise_changes(shapes[MODELS[0]], values, device_of("cuda", 80))

    row = rows["Prefix tuning"]
    assert (row.needed_bytes, row.verdict, row.overrides) == (None, None, ())
    assert "200 virtual tokens" in row.why_not


def test_what_the_device_would_refuse_is_not_offered(shapes):
    dora = mapping(adapter={"use_dora": True})

    changes, rows = advise_changes(shapes[MODELS[0]], dora, device_of("cpu", 16))

    assert not [overrides for overrides in changes.values() if "model.quantization=int8" in overrides]
    assert "DoRA" in rows["LoRA on int8"].why_not
