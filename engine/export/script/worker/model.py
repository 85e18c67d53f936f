"""The part of a script that loads the model with its adapter, and what single PEFT methods need."""

from typing import Any

import peft
import torch
from peft import get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback

from engine.export.script.facts import facts
from engine.export.script.worker.encoding import MODEL, REVISION, load_tokenizer

WARM_START = facts.model.warm_start  # adapter that training starts from


class AllocateRanks(TrainerCallback):  # type: ignore[misc]
    """Moves ranks to the layers that need them, which PEFT leaves to the trainer."""

    def on_train_begin(self, _args: Any, state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        model.peft_config["default"].total_step = state.max_steps

    def on_optimizer_step(self, _args: Any, state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        model.base_model.update_and_allocate(state.global_step + 1)


def orthogonality(model: Any) -> Any:
    """Return AdaLoRA's regularizer, which PEFT adds to a model's own loss and not to TRL's."""
    distances = []
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            products = parameter @ parameter.T if ".lora_A." in name else parameter.T @ parameter
            distances.append(torch.linalg.matrix_norm(products - torch.eye(len(products), device=products.device)))
    return model.peft_config["default"].orth_reg_weight * torch.stack(distances).mean()


def linear_names(model: Any) -> list[str]:
    """Return the names of the linear layers, without the output head."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
    ]


def feedforward_modules(model: Any) -> list[str]:
    """Return the ends of the names of the feed-forward modules that the model has."""
    names = [f".{name}" for name in linear_names(model)]
    return [end for end in facts.feedforward_endings if any(name.endswith(f".{end}") for name in names)]


def ia3_targets(model: Any) -> list[str]:
    """Return the ends of the names of all modules that IA3 rescales; PEFT needs the feed-forward ones among them."""
    if facts.config.adapter.target_modules == "all-linear":
        targets = [name.rsplit(".", 1)[-1] for name in linear_names(model)]
    else:
        targets = list(facts.config.adapter.target_modules)
    return sorted({*targets, *feedforward_modules(model)})


def start_prefix(model: Any, tokenizer: Any) -> None:
    """Let the learned keys and values start as those of a text; random ones take far more steps."""
    text = facts.initial_text
    peft.initialize_kv_prefix_from_text(
        model,
        tokenizer,
        text=" ".join([text] * facts.config.adapter.num_virtual_tokens),  # type: ignore[list-item]
        use_chat_template=False,
        max_length=facts.config.adapter.num_virtual_tokens,
    )


def load_model(name: str) -> Any:
    """Load the model with its adapter."""
    if facts.is_quantized:
        quantization = BitsAndBytesConfig(
            **facts.quantization_arguments,
        )
    model = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=getattr(torch, facts.loaded_dtype),
        **facts.model_arguments,
        **({"revision": REVISION if name == MODEL else None} if facts.model.revision else {}),
        **({"quantization_config": quantization} if facts.is_quantized else {}),
    )
    model.config.use_cache = False
    if facts.config.model.quantization in ("nf4", "fp4") and facts.model.on_cpu:
        for module in model.modules():
            # bitsandbytes would repack 4-bit weights for inference at the first evaluation, and cannot train through those.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    if not facts.config.adapter.traits.trains_all:
        settings = getattr(peft, facts.config.adapter.traits.peft_class)(
            task_type="CAUSAL_LM",
            **facts.peft_arguments,
        )
        model = get_peft_model(model, settings)
        if facts.model.warm_start:
            set_peft_model_state_dict(model, load_file(f"{WARM_START}/adapter_model.safetensors"))
        elif facts.initial_text:
            start_prefix(model, load_tokenizer(name))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # trained weights are held in float32
        model.print_trainable_parameters()
    return model
