"""What a device cannot do is refused, with what it can."""

import pytest

from engine.hardware.devices import device_problems
from tests.runs.supervision import apple, config_for, cpu, gpu


def test_dora_on_int8_weights_is_refused_on_a_processor():
    wanted = config_for(model={"id": "m", "quantization": "int8"}, adapter={"use_dora": True})

    (problem,) = device_problems(wanted, cpu())

    assert problem.field == "adapter.use_dora"
    assert "nf4 is the nearest" in problem.message
    assert device_problems(wanted, gpu(0)) == []
    assert (
        device_problems(config_for(model={"id": "m", "quantization": "nf4"}, adapter={"use_dora": True}), cpu()) == []
    )


@pytest.mark.parametrize(
    ("sections", "device", "bitsandbytes", "fields"),
    [
        ({"training": {"optim": "adamw_8bit"}}, apple(), "0.50.2", ["training.optim"]),
        ({"model": {"attn_implementation": "flash_attention_2"}}, apple(), "0.50.2", ["model.attn_implementation"]),
        ({"model": {"quantization": "nf4"}}, apple(), "0.50.2", []),
        ({"model": {"quantization": "nf4"}}, apple(), "0.49.1", ["model.quantization"]),
        (
            {"model": {"quantization": "int8"}},
            apple(has_fast_bfloat16=False),
            "0.50.2",
            ["model.quantization"],
        ),
        (
            {"model": {"compute_dtype": "bfloat16"}},
            apple(has_fast_bfloat16=False),
            "0.50.2",
            ["model.compute_dtype"],
        ),
        ({"model": {"compute_dtype": "float16"}}, apple(), "0.50.2", []),
    ],
)
def test_what_apples_gpu_cannot_do_is_refused(monkeypatch, sections, device, bitsandbytes, fields):
    monkeypatch.setattr("engine.hardware.devices.library_version", lambda _: bitsandbytes)
    sections = {**sections, "model": {"id": "some/model", **sections.get("model", {})}}

    problems = device_problems(config_for(**sections), device)

    assert [problem.field for problem in problems] == fields
    assert all("Apple's GPU" in problem.message for problem in problems)


def test_a_refusal_of_quantized_weights_reports_what_to_update(monkeypatch):
    monkeypatch.setattr("engine.hardware.devices.library_version", lambda _: None)

    (problem,) = device_problems(
        config_for(model={"id": "some/model", "quantization": "nf4"}), apple(has_fast_bfloat16=False)
    )

    assert "need macOS 14 and bitsandbytes 0.50 (this is missing)" in problem.message
    assert "set run.devices to cpu" in problem.message
