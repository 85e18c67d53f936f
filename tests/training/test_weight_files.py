"""What a model keeps of the files that its weights were read from."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loratory.engine.models.source import ModelSource
from loratory.engine.training.build import load_model
from loratory.engine.training.placement import choose_precision
from tests.training.tiny_training import CPU, ON_CPU, make_config


def tensors_in(model: torch.nn.Module, folder: Path) -> list[str]:
    """Names of tensors that lie in a mapped file of the folder."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    ranges = [[int(end, 16) for end in fields[0].split("-")] for fields in maps]
    addresses = ((name, tensor.data_ptr()) for name, tensor in model.state_dict().items())
    return [name for name, address in addresses if any(start <= address < end for start, end in ranges)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_a_quantized_model_on_a_cpu_keeps_no_weight_file_mapped(tiny_model_folder, tmp_path):
    folder = tmp_path / "in-16-bits"
    AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.bfloat16).save_pretrained(folder)
    plain, quantized = (
        make_config(folder, model={"quantization": quantization, "compute_dtype": "bfloat16"})
        for quantization in ("none", "nf4")
    )
    source = ModelSource(str(folder), "tiny")

    assert tensors_in(load_model(source, plain, choose_precision(plain, CPU), ON_CPU), folder)
    assert tensors_in(load_model(source, quantized, choose_precision(quantized, CPU), ON_CPU), folder) == []
