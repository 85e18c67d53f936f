"""What a device cannot do is refused, with what it can."""

import pytest

from loratory.engine.hardware.devices import device_problems
from tests.supervision.fake_runs import apple, config_for, cpu, gpu


def test_dora_on_int8_weights_is_refused_on_a_processor():
    config = config_for(model={"id": "m", "quantization": "int8"}, adapter={"use_dora": True})

    (problem,) = device_problems(config, cpu())

    assert problem.field == "adapter.use_dora"
    assert "nf4 is the nearest" in problem.message
    assert device_problems(config, gpu(0)) == []
    assert (
        device_problems(config_for(model={"id": "m", "quantization": "nf4"}, adapter={"use_dora": True}), cpu()) == []
    )


@pytest.mark.parametrize(
    ("sections", "device", "fields"),
    [
        ({"training": {"optim": "adamw_8bit"}}, apple(), ["training.optim"]),
        ({"model": {"attn_implementation": "flash_attention_2"}}, apple(), ["model.attn_implementation"]),
        ({"model": {"quantization": "nf4"}}, apple(), []),
        (
            {"model": {"quantization": "int8"}},
            apple(has_fast_bfloat16=False),
            ["model.quantization"],
        ),
        (
            {"model": {"compute_dtype": "bfloat16"}},
            apple(has_fast_bfloat16=False),
            ["model.compute_dtype"],
        ),
        ({"model": {"compute_dtype": "float16"}}, apple(), []),
    ],
)
def test_what_apples_gpu_cannot_do_is_refused(sections, device, fields):
    sections = {**sections, "model": {"id": "some/model", **sections.get("model", {})}}

    problems = device_problems(config_for(**sections), device)

    assert [problem.field for problem in problems] == fields
    assert all("Apple's GPU" in problem.message for problem in problems)
