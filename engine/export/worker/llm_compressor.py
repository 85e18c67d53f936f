"""Compress a model: a script for the Python of llm-compressor's environment, with the file of an order as its argument.

It imports nothing of Loratory. An order has `model` and `target`, two folders; `preset` of compressed-tensors with `group_sizes` to
choose from; `modifier` of llm-compressor; `rows` of token ids, `[]` where values are rounded without any; `max_shard_bytes`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import preset_name_to_scheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform import AWQModifier
from transformers import AutoModelForCausalLM

_UNCHANGED = ("lm_head", r"re:.*\.gate$", r"re:.*router.*")  # the head, and what chooses between experts


def compress(order: dict[str, Any]) -> None:
    """Write the compressed weights of an order, with their configuration."""
    model = AutoModelForCausalLM.from_pretrained(
        order["model"], dtype="auto", use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    scheme = preset_name_to_scheme(order["preset"], ["Linear"])
    if scheme.weights.group_size is not None:
        widths = {module.in_features for module in model.modules() if isinstance(module, torch.nn.Linear)}
        sizes = [size for size in order["group_sizes"] if not any(width % size for width in widths)]
        if not sizes:
            raise SystemExit(f"matrices are {min(widths)} wide, and no group of weights that vLLM reads divides that")
        scheme.weights.group_size = sizes[0]
    settings = {"config_groups": {"group_0": scheme}, "ignore": list(_UNCHANGED)}
    recipe = {
        "QuantizationModifier": lambda: [QuantizationModifier(**settings)],
        "GPTQModifier": lambda: [GPTQModifier(**settings)],
        "AWQModifier": lambda: [AWQModifier(), QuantizationModifier(**settings)],
    }[order["modifier"]]()
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in order["rows"]]
    calibration: dict[str, Any] = {}
    if rows:
        calibration = {
            "dataset": Dataset.from_list(rows),
            "num_calibration_samples": len(rows),
            "max_seq_length": max(map(len, order["rows"])),
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, recipe=recipe, **calibration)
    model.save_pretrained(order["target"], save_compressed=True, max_shard_size=order["max_shard_bytes"])


if __name__ == "__main__":
    compress(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
