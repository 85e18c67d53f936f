"""An estimate for rows whose lengths are known is about the largest pass that the trainer makes of them."""

import pytest

from engine.config.load import config_from_mapping
from engine.data.contract import RowLengths
from engine.hardware.device import Device
from engine.memory.compare import compare_methods
from engine.memory.estimate import Estimator
from engine.memory.workload import workload_of_run
from tests.fake_inspector import a_shape

GIB = 2**30
SHAPE = a_shape()
CPU = Device("cpu", None, "a CPU", 16 * GIB, 16 * GIB, has_fast_bfloat16=False)
GPU = Device("cuda", 0, "a GPU", 16 * GIB, 16 * GIB, has_fast_bfloat16=True)


def known(*tokens: int) -> RowLengths:
    return RowLengths(tokens=tokens, trained=tuple(length // 2 for length in tokens), count=len(tokens))


def config_of(**sections):
    return config_from_mapping({"model": {"id": "m"}, "dataset": {"source": "-"}} | sections)


SHORT = known(*(20 + number % 100 for number in range(300)))
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

    full = Estimator(SHAPE, device, known(*[2000] * 300)).estimate(config)
    short = Estimator(SHAPE, device, SHORT).estimate(config)

    assert (full.pass_rows, full.pass_tokens) == (ceiling.pass_rows, ceiling.pass_tokens)
    assert ceiling.needed_bytes * 0.97 <= full.needed_bytes <= ceiling.needed_bytes  # half of the tokens are trained
    if not config.training.packing:  # many short rows keep more for attention than few long ones
        assert short.pass_tokens < ceiling.pass_tokens / 2
        assert short.needed_bytes < ceiling.needed_bytes


def test_a_pass_holds_rows_of_more_than_one_batch_where_they_are_joined_and_short():
    config = config_of(training={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})

    joined = workload_of_run(SHAPE, config, CPU, SHORT)
    padded = workload_of_run(SHAPE, config, GPU, SHORT)

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
