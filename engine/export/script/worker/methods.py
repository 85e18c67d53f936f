"""The part of a script that single PEFT methods need; `PeftMethod.script_arguments` and `script_callback` name it."""

from typing import Any

import torch
from transformers import TrainerCallback

from engine.export.script.facts import facts


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
    """Return the ends of the names of all modules that IA3 rescales; PEFT wants the feed-forward ones among them."""
    if facts.config.adapter.target_modules == "all-linear":
        targets = [name.rsplit(".", 1)[-1] for name in linear_names(model)]
    else:
        targets = list(facts.config.adapter.target_modules)
    return sorted({*targets, *feedforward_modules(model)})
