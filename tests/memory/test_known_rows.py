"""An estimate for rows whose lengths are known is about the largest pass that the trainer makes of them."""

from dataclasses import replace

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.data.contract import RowLengths
from loratory.engine.hardware.device import Device
from loratory.engine.memory.advice import advise
from loratory.engine.memory.compare import compare_methods
from loratory.engine.memory.estimate import Estimator
from loratory.engine.memory.workload import workload_of_run
from loratory.engine.supervision.memory_measurement import config_of_rows
from tests.fake_inspector import a_shape

GIB = 2**30
SHAPE = a_shape()
CPU = Device("cpu", None, "a CPU", 16 * GIB, 16 * GIB, has_fast_bfloat16=False)
GPU = Device("cuda", 0, "a GPU", 16 * GIB, 16 * GIB, has_fast_bfloat16=True)


def row_lengths(*tokens: int) -> RowLengths:
    return RowLengths(tokens=tokens, trained=tuple(length // 2 for length in tokens), count=len(tokens))


def config_of(**sections):
    return config_from_mapping({"model": {"id": "m"}, "dataset": {"source": "-"}} | sections)


SHORT = row_lengths(*(20 + number % 100 for number in range(300)))
CASES = {
    "joined on a processor": (CPU, {}),
    "padded on a GPU": (GPU, {}),
    "packed": (CPU, {"training": {"packing": True}}),
    "behind a prefix": (CPU, {"adapter": {"method": "prefix_tuning"}}),
    "behind a prompt": (GPU, {"adapter": {"method": "prompt_tuning"}}),
    "all weights": (CPU, {"adapter": {"method": "none"}}),
    "checkpointed": (GPU, {"training": {"gradient_checkpointing": True}}),
}


@pytest.mark.parametrize(("device", "sections"), CASES.values(), ids=CASES)
def test_short_rows_need_no_more_than_the_longest_and_full_ones_just_as_much(device, sections):
    config = config_of(**sections)
    ceiling = Estimator(SHAPE, device).estimate(config)

    full = Estimator(SHAPE, device, row_lengths(*[2000] * 300)).estimate(config)
    short = Estimator(SHAPE, device, SHORT).estimate(config)

    assert (full.pass_rows, full.pass_tokens) == (ceiling.pass_rows, ceiling.pass_tokens)
    assert ceiling.needed_bytes * 0.97 <= full.needed_bytes <= ceiling.needed_bytes  # half of the tokens are trained
    if not config.training.packing:  # many short rows keep more for attention than few long ones
        assert short.pass_tokens < ceiling.pass_tokens / 2
        assert short.needed_bytes < ceiling.needed_bytes


def test_a_pass_holds_rows_of_more_than_one_batch_where_they_are_joined_and_short():
    config = config_of(training={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})

    joined = workload_of_run(SHAPE, config, CPU, SHORT)
    padded = workload_of_run(SHAPE, config, replace(GPU, has_fast_bfloat16=False), SHORT)

    assert (joined.batch_size, sum(joined.joined_lengths)) == (8, sum(joined.joined_lengths))
    assert joined.tokens == -(-sum(joined.joined_lengths) // 16) * 16
    assert (padded.batch_size, padded.length, padded.joined_lengths) == (2, 119, ())


def test_rows_that_cannot_be_packed_as_asked_are_judged_by_the_longest_allowed():
    config = config_of(training={"packing": True}, model={"id": "m", "attn_implementation": "eager"})

    assert workload_of_run(SHAPE, config, GPU, SHORT) == workload_of_run(SHAPE, config, GPU)


def test_the_table_of_methods_is_about_the_same_rows():
    config = config_of()

    table = {need.method: need.needed_bytes for need in compare_methods(SHAPE, config, CPU, SHORT)}

    assert table["LoRA"] == Estimator(SHAPE, CPU, SHORT).need(config).needed_bytes
    whole = {need.method: need.needed_bytes for need in compare_methods(SHAPE, config, CPU)}
    assert all(table[name] < whole[name] for name in whole if whole[name] is not None)


def test_another_device_of_a_step_takes_its_own_rows():
    two = config_of(run={"launcher": "accelerate", "devices": [0, 1]})

    assert [workload_of_run(SHAPE, config, CPU, SHORT).batch_size for config in (config_of(), two)] == [8, 8]


def advise_changes(config, device, rows=SHORT):
    advice = advise(SHAPE, config, device, rows)
    return {change.kind: change for change in (*advice.changes, *advice.limits)}


@pytest.mark.parametrize("free_gib", [16, 1.2], ids=["it fits", "it does not"])
@pytest.mark.parametrize("max_length", [1024, 64], ids=["longer than any row", "rows are cut"])
def test_one_click_sets_the_length_that_the_rows_need(free_gib, max_length):
    device = replace(CPU, free_bytes=round(free_gib * GIB))
    config = config_of(training={"max_length": max_length})

    changes = advise_changes(config, device)

    if max_length == 64 and free_gib < 2:  # longer rows do not fit; it may stay as it is
        assert "data_length" not in changes
        return
    change = changes["data_length"]
    assert (change.change, change.overrides) == ("Max length 128", ("training.max_length=128",))
    assert change.cost == "nothing is cut: the longest row has 119"
    again = Estimator(SHAPE, device, SHORT).estimate(config_of(training={"max_length": 128}))
    assert (change.needed_bytes, change.verdict) == (again.needed_bytes, again.verdict)
    assert "longest_rows" not in changes
    assert not any(kind == "shorter_rows" and "512" in change.change for kind, change in changes.items())


def test_no_length_is_offered_where_it_is_right_or_rows_are_packed():
    assert "data_length" not in advise_changes(config_of(training={"max_length": 128}), CPU)
    assert "data_length" not in advise_changes(config_of(training={"packing": True}), CPU)
    assert "data_length" not in advise_changes(config_of(), CPU, None)


def test_a_batch_is_at_most_all_rows():
    assert advise(SHAPE, config_of(), replace(GPU, free_bytes=10**15), row_lengths(*[20] * 50)).largest_batch_size == 50


@pytest.mark.parametrize(("device", "sections"), CASES.values(), ids=CASES)
def test_a_measurement_takes_a_step_as_large_as_the_largest_of_the_rows(device, sections):
    config, estimator = config_of(**sections), Estimator(SHAPE, device, SHORT)

    measurement = config_of_rows(estimator, config)

    run_estimate, step_estimate = estimator.estimate(config), Estimator(SHAPE, device).estimate_step(measurement)
    assert config_from_mapping(measurement.model_dump(mode="json")) == measurement
    assert step_estimate.pass_rows == run_estimate.pass_rows
    assert (
        run_estimate.pass_tokens <= step_estimate.pass_tokens <= run_estimate.pass_tokens + run_estimate.pass_rows + 16
    )
    assert config_of_rows(Estimator(SHAPE, device), config) == config
