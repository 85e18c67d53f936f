"""Folders as an export writes them, with weights that are a few numbers."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CARD = "---\nbase_model: org/base\nlibrary_name: peft\ntags: [loratory]\n---\n\n# a run\n"

ADAPTER_FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
}


def adapter_folder(folder: Path, *, seed: int = 0) -> Path:
    """Write an exported adapter."""
    folder.mkdir(parents=True)
    _write_tokenizer(folder)
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "revision": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a": _numbers(seed)}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def merged_folder(folder: Path, shards: int = 2) -> Path:
    """Write an exported complete model."""
    folder.mkdir(parents=True)
    _write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "generation_config.json").write_text("{}")
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    for number, name in enumerate(names):
        save_file({f"w{number}": _numbers(number)}, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {f"w{number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _write_tokenizer(folder: Path) -> None:
    (folder / "README.md").write_text(CARD)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"/home/of": 0, "/root": 1}}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def _numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=20_000).astype(np.float32)
