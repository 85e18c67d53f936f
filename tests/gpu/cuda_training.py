"""What tests on a GPU share: the GPU, a trainer on it in this process, and models with random weights in the shapes of real ones."""

import itertools
import json
import random
from collections.abc import Mapping
from pathlib import Path

import torch

from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import list_devices
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.training.placement import Placement
from tests.tiny_model import make_tiny_tokenizer
from tests.training.tiny_training import Row, TinyTraining, make_config, make_rows, train_tiny
from tests.training.worker_runs import WORDS

ROWS = make_rows(24)
METHODS = ("lora", "ia3", "prefix_tuning", "none")
QUANTIZATIONS = ("none", "nf4", "fp4", "int8")
CELLS = [
    (method, quantization)
    for method, quantization in itertools.product(METHODS, QUANTIZATIONS)
    if method != "none" or quantization == "none"
]
SHAPES = {
    "0.5B": "Qwen/Qwen2.5-0.5B-Instruct",
    "1.5B": "Qwen/Qwen2.5-1.5B-Instruct",
    "8B": "meta-llama/Llama-3.1-8B-Instruct",
}


def the_gpu() -> Device:
    """Return the first GPU that this process sees."""
    return next(device for device in list_devices() if device.kind == "cuda")


def cuda_placement() -> Placement:
    """Return a placement on that GPU, as the worker's."""
    return Placement(the_gpu(), torch.device("cuda", 0))


def auto_dtype(**sections: dict[str, object]) -> dict[str, dict[str, object]]:
    """Return sections that leave the compute precision to the device."""
    model = {"compute_dtype": "auto", **sections.pop("model", {})}
    return {"model": model, **sections}


def sections_of(method: str, quantization: str) -> dict[str, dict[str, object]]:
    """Return sections of a short run of the demo model, on the GPU, by one of `CELLS`."""
    rates = {"lora": 2e-4, "ia3": 3e-3, "prefix_tuning": 3e-3, "none": 1e-5}
    return {
        "model": {"quantization": quantization},
        "adapter": {"method": method, "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "num_virtual_tokens": 8},
        "training": {"learning_rate": rates[method], "max_length": 128},
        "run": {"devices": "auto"},
    }


def train_on_gpu(folder: Path, out: Path, rows: list[Row] = ROWS, **sections: dict[str, object]) -> TinyTraining:
    """Train a model on the GPU; in float32 unless the sections say otherwise."""
    return train_tiny(make_config(folder, **sections), rows, out, placement=cuda_placement())


def save_in_shape(folder: Path, shape: str, device: str = "cuda") -> Path:
    """Save a model with random weights in bfloat16, of the shape that the catalogue has for it, and a small tokenizer.

    The tokenizer has few tokens; the model's vocabulary is its real one.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    entry = find_in_catalog(SHAPES[shape])
    assert entry is not None
    values: Mapping[str, object] = {name: value for name, value in entry.config.items() if name != "model_type"}
    tokenizer = make_tiny_tokenizer()
    config = AutoConfig.for_model(str(entry.config["model_type"]), **values)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = (
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    return folder


def write_long_answers(path: Path, count: int, word_count: int) -> Path:
    """Write an Alpaca file whose every row has at least as many tokens as its answer has words."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            answer = " ".join(generator.choices(WORDS, k=word_count))
            file.write(json.dumps({"instruction": f"Say {number}.", "input": "", "output": answer}) + "\n")
    return path
