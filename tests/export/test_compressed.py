"""Compressed models, written by the real llm-compressor, and what is refused before."""

import importlib.util
import json
import math
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loratory.engine.config.methods.registry import METHODS
from loratory.engine.config.results import ExportConfig
from loratory.engine.errors import ModelError
from loratory.engine.export import compressed
from loratory.engine.export.compressed import ENVIRONMENT_VARIABLE, SCHEMES, find_compressor, predict_sizes
from loratory.engine.export.kinds import COMPRESSED
from loratory.engine.processes.messages import CancelledRequestError
from tests.chat.tiny_adapters import lora
from tests.export.exporting import export, write_run
from tests.export.test_precisions import write_base
from tests.recorded_request import RecordedRequest
from tests.tiny_model import make_tiny_model


@pytest.fixture
def compressor() -> Path:
    """Return the Python of a real llm-compressor."""
    if not os.environ.get(ENVIRONMENT_VARIABLE) and not os.environ.get("CI"):
        pytest.skip(f"{ENVIRONMENT_VARIABLE} names no environment with llm-compressor")
    return find_compressor()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("compressed") / "tiny-base", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", base, lora())


@pytest.mark.usefixtures("few_questions", "compressor")
@pytest.mark.parametrize("scheme", ["fp8", "w4a16"])
def test_the_folder_is_a_model_that_transformers_loads(home, base, run, tmp_path, scheme):
    folder = tmp_path / "out"

    result = export(home, run, folder, kind="compressed", compression=scheme)

    names = {file.name for file in result.files}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"}
    assert not names & {"order.json", "recipe.yaml", "merged"}
    assert result.precision == scheme
    assert result.verified is not None, result.notes
    perplexity = result.verified.perplexity
    assert perplexity is not None
    assert abs(math.log(perplexity.file / perplexity.run)) < 0.1
    assert result.verified.passed, result.verified
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert settings["quant_method"] == "compressed-tensors"
    assert settings["ignore"] == ["lm_head"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.isfinite(model(torch.arange(8)[None]).logits).all()
    size = next(file.size_bytes for file in result.files if file.name == "model.safetensors")
    assert size == pytest.approx(predict_sizes(base, "base")[scheme], rel=0.15)
    assert f"vllm serve {folder.name}" in (folder / "README.md").read_text()


@pytest.mark.usefixtures("compressor")
def test_stopping_ends_the_program_and_leaves_nothing(home, run, tmp_path):
    class Stopping(RecordedRequest):
        def is_cancelled(self) -> bool:
            return any("Compressing" in entry["message"] for entry in self.progress_log)

    with pytest.raises(CancelledRequestError):
        export(home, run, tmp_path / "out", Stopping(), kind="compressed")

    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("compressor")
def test_awq_is_refused_without_a_gpu(home, run, tmp_path):
    with pytest.raises(ModelError, match="w4a16_awq needs a GPU"):
        export(home, run, tmp_path / "out", kind="compressed", compression="w4a16_awq")


@pytest.mark.usefixtures("compressor")
def test_a_model_that_no_group_divides_is_named(home, tmp_path):
    odd = make_tiny_model(tmp_path / "odd", hidden_size=24, num_attention_heads=2, num_key_value_heads=2)
    run = write_run(tmp_path / "run", odd, lora())

    with pytest.raises(ModelError, match="24 wide"):
        export(home, run, tmp_path / "out", kind="compressed", compression="w4a16")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scheme", ["mxfp4", "nvfp4"])
def test_schemes_of_one_generation_of_gpus_are_refused_with_the_reason(scheme):
    with pytest.raises(ModelError, match=f"{scheme} is computed by GPUs of NVIDIA's Blackwell generation alone"):
        COMPRESSED.require(None, None, ExportConfig(kind="compressed", compression=scheme), None)


def test_what_is_missing_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError) as missing:
        find_compressor()
    assert "pip install 'loratory[compress]'" in missing.value.fix

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(ModelError) as missing:
        find_compressor()
    assert "python -m venv" in missing.value.fix

    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "elsewhere"))
    with pytest.raises(ModelError) as missing:
        find_compressor()
    assert str(tmp_path) not in missing.value.what


def test_a_method_without_a_merge_is_refused():
    assert "Prefix tuning cannot be merged" in COMPRESSED.why_not(METHODS["prefix_tuning"])


def test_sizes_follow_the_bits_and_the_scales(tmp_path):
    sizes = predict_sizes(write_base(tmp_path / "base", hidden=512), "base")
    odd = predict_sizes(write_base(tmp_path / "odd", hidden=40), "odd")

    assert set(sizes) >= {"q4_k_m", "bf16", "fp8", "w4a16"}
    assert {name for name, scheme in SCHEMES.items() if scheme.refusal} == {"mxfp4", "nvfp4"}
    assert not {"mxfp4", "nvfp4"} & set(sizes)
    assert sizes["w4a16"] < sizes["fp8"] < sizes["bf16"]
    assert "w4a16" not in odd  # no group of weights divides its matrices
    assert compressed.programs_for("fp8").startswith("vLLM")
    assert compressed.programs_for("q8_0").startswith("llama.cpp")
