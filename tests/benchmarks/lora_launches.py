"""`python -m tests.benchmarks.lora_launches`: the operations of a pass that a GPU would launch kernels for, without a GPU.

Prints a Markdown table for LoRA on the 0.5B shape, with and without the optimizations of its layers.
"""

import os
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from loratory.engine.config.optimizations import VARIABLE
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.training.methods.registry import method_trainer
from tests.benchmarks.training_trial import RANK
from tests.gpu.cuda_training import SHAPES


class _Launches(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
        if not views and "empty" not in func._schema.name and "detach" not in func._schema.name:
            self.count += 1
        return func(*args, **(kwargs or {}))


def count_launches(layers: int, without: str) -> tuple[int, int]:
    """Return the operations of a forward and of a backward pass that launch a kernel, of so many layers of the 0.5B shape.

    Layers are those of the shape, on the processor; a few tokens and words are enough to see what is dispatched.
    """
    os.environ[VARIABLE] = without
    entry = find_in_catalog(SHAPES["0.5B"])
    assert entry is not None
    values = {name: value for name, value in entry.config.items() if name not in ("model_type", "layer_types")}
    config = AutoConfig.for_model(
        str(entry.config["model_type"]), **(values | {"num_hidden_layers": layers, "vocab_size": 512})
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    states = torch.randn(1, 16, config.hidden_size, dtype=torch.bfloat16)
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bfloat16)  # made before, which reads values
    decoder, method = model.get_base_model().model, method_trainer("lora")

    def forward() -> Any:
        return decoder(inputs_embeds=states, attention_mask=mask, use_cache=False).last_hidden_state

    method.prepare(model)
    with method.observing(model), torch.no_grad():
        forward()
    with _Launches() as launches, method.step(model):
        loss = forward().sum()
        before = launches.count
        loss.backward()
    return before, launches.count - before


def launches_table() -> str:
    """Return launches per pass of the 0.5B shape as a Markdown table: per layer, and of its 24 layers."""
    kinds = {
        "each branch apart": "fused_lora",
        "one function a layer": "shared_inputs",
        "one function an input": "",
    }
    lines = ["| LoRA | forward a layer | backward a layer | 24 layers |", "|---|---:|---:|---:|"]
    for label, without in kinds.items():
        single, double = count_launches(1, without), count_launches(2, without)
        forward, backward = double[0] - single[0], double[1] - single[1]
        whole = sum(single) + 23 * (forward + backward)
        lines.append(f"| {label} | {forward} | {backward} | {whole:,} |")
    os.environ.pop(VARIABLE, None)
    return "\n".join(lines)


if __name__ == "__main__":
    print(launches_table())
